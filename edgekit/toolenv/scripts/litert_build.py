"""ONNX to LiteRT's flatbuffer with onnx2tf, then quantized with ai-edge-quantizer.

job.json: inputs [{"shape"}] (batch fixed to 1), precision, only ("products": nothing but matrix products),
    keep (ONNX names of layers that stay in floating point)
in/model.onnx; in/calibration.npz: "I/J", input I of row J, where the precision needs it
out/model.tflite
result.json: inputs [{"tensor", "axes"}]: the file's tensor is the source's with its axes in this order;
    outputs [{"tensor", "axes", "datatype", "shape"}]: here the source's is the file's with its axes so

onnx2tf turns images to channels-last as it sees fit, and what it says about it cannot be relied upon: the
order of axes is found by running both models on the same inputs. A file that does not answer as ONNX Runtime
does is refused here.
"""

import contextlib
import io
import itertools
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _conversion as tool
import numpy as np
import onnx

warnings.simplefilter("ignore")
NODE = "edgekit_n{}"
"""Names that nodes get for the journey: onnx2tf derives the names of weights from them."""
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV")
TOLERANCE = 1e-3
"""Largest difference from ONNX Runtime, as a share of the largest answer; what was seen was below 1e-5."""
PROBES = 2
OTHER_ENGINE = "build this model for onnxruntime, which needs no conversion"


def build(folder, job):
    try:
        source = onnx.load(folder / "in" / "model.onnx")
    except Exception as exc:
        raise tool.Refusal(f"not a readable ONNX model: {exc}") from None
    names = [node.name or f"{node.op_type} to {node.output[0]}" for node in source.graph.node]
    try:
        with quiet():
            model = prepared(source, job)
            plain = converted(model, folder / "work")
        feeds, answers = probes(model, job)
        order = places(opened(plain))
        inputs, outputs = matched(plain, order, feeds, answers)
        made = plain
        if job["precision"] != "fp32":
            rows = [[value.transpose(axes) for value, axes in zip(row, inputs, strict=True)]
                    for row in calibration(folder, job)]  # fmt: skip
            with quiet():
                made = quantized(plain, job, rows, kept(plain, names, job["keep"]))
            must_run(made, order, feeds, inputs, job["precision"])
    except tool.Refusal as exc:
        raise tool.Refusal(readable(exc, names), exc.hint) from None
    except Exception as exc:
        raise tool.Refusal(unknown(exc, source, names) or readable(exc, names), OTHER_ENGINE) from None
    (folder / "out" / "model.tflite").write_bytes(made)
    ins, outs = ports(opened(made), order)
    return {
        "inputs": [{"axes": axes, "tensor": port["name"]} for axes, port in zip(inputs, ins, strict=True)],
        "outputs": [
            {"axes": axes, "tensor": port["name"], "datatype": str(value.dtype), "shape": list(value.shape)}
            for axes, port, value in zip(outputs, outs, answers[0], strict=True)
        ],
    }


@contextlib.contextmanager
def quiet():
    """Both libraries draw progress bars and explain themselves at length."""
    logging.disable(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def readable(exc, names):
    """One line, with the source's names of nodes."""
    words = next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
    own = re.compile(NODE.format(r"(\d+)"))
    return own.sub(lambda found: repr(names[int(found[1])]), words)[:300]


def unknown(exc, source, names):
    """onnx2tf turns an operator that LiteRT lacks into a custom one, which nothing can run."""
    found = re.search(r"unresolved custom op: ONNX_(\w+)", str(exc))
    if found is None:
        return ""
    has = (names[i] for i, node in enumerate(source.graph.node) if node.op_type.upper() == found[1])
    return f"LiteRT has no operator {found[1].title()} (node {next(has, '?')!r})"


def prepared(source, job):
    """A copy with a batch of 1 and with names that survive the journey."""
    import onnxslim

    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    users = [name for node in graph.node for name in node.input]
    for place, node in enumerate(graph.node):
        node.name = NODE.format(place)
        if node.op_type in WEIGHTED and node.input[1] in weights and users.count(node.input[1]) == 1:
            weight = weights[node.input[1]]
            weight.name = node.input[1] = f"{node.name}_weight"
    values = [value for value in graph.input if value.name not in weights]
    for value, item in zip(values, job["inputs"], strict=True):
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for size in item["shape"]:
            shape.dim.add().dim_value = size
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    inputs = [f"edgekit_i{place}" for place in range(len(values))]
    tool.renamed(model, inputs, [f"edgekit_o{place}" for place in range(len(graph.output))])
    return ends_apart(onnxslim.slim(onnx.shape_inference.infer_shapes(model)))


def ends_apart(model):
    """onnx2tf loses an output that the graph itself reads on: give it one that nothing reads."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input}
    for name in [value.name for value in graph.output if value.name in read]:
        for node in graph.node:
            node.input[:] = [f"{name}_inside" if one == name else one for one in node.input]
            node.output[:] = [f"{name}_inside" if one == name else one for one in node.output]
        graph.node.append(onnx.helper.make_node("Identity", [f"{name}_inside"], [name], name=f"{name}_end"))
    return model


def converted(model, work):
    """The fp32 flatbuffer."""
    import onnx2tf

    onnx2tf.convert(
        onnx_graph=model,
        output_folder_path=str(work),
        non_verbose=True,
        verbosity="error",
    )
    return next(work.glob("*_float32.tflite")).read_bytes()


def probes(model, job):
    """Inputs (lists, in the source's order and axes) and ONNX Runtime's answers."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    generator = np.random.default_rng(20260101)
    ports = [(onnx_dtype(value.type), item["shape"]) for value, item in
             zip(session.get_inputs(), job["inputs"], strict=True)]  # fmt: skip
    feeds = [[tool.sample(generator, *port) for port in ports] for _ in range(PROBES)]
    names = [value.name for value in session.get_inputs()]
    return feeds, [session.run(None, dict(zip(names, feed, strict=True))) for feed in feeds]


def onnx_dtype(text):
    kind = re.sub(r"tensor\((\w+)\)", r"\1", text)
    return {"float": "float32", "double": "float64"}.get(kind, kind)


def orders(shape, target):
    """Orders of axes that turn `shape` into `target`: as it is, or with the channels moved to the end."""
    count = len(shape)
    plain = list(range(count))
    known = [plain, [0, *plain[2:], 1]] if count > 2 else [plain]
    return [axes for axes in known if [shape[axis] for axis in axes] == list(target)]


def matched(data, order, feeds, answers):
    """The order of axes of every input and output, proven on the probes."""
    interpreter = opened(data)
    ins, outs = ports(interpreter, order)
    if len(ins) != len(feeds[0]) or len(outs) != len(answers[0]):
        raise tool.Refusal("the conversion lost an input or output", OTHER_ENGINE)
    choices = [orders(value.shape, port["shape"]) for value, port in zip(feeds[0], ins, strict=True)]
    worst, culprit = np.inf, 0
    for inputs in itertools.product(*choices):
        seen = [answered(interpreter, ins, outs, feed, inputs) for feed in feeds]
        outputs, errors = [], []
        for place in range(len(outs)):
            axes, error = closest([one[place] for one in seen], [one[place] for one in answers])
            outputs.append(axes)
            errors.append(error)
        if max(errors) <= TOLERANCE:
            return list(inputs), outputs
        if max(errors) < worst:
            worst, culprit = max(errors), int(np.argmax(errors))
    if not np.isfinite(worst):
        raise tool.Refusal("the converted model has tensors of other shapes than the source", OTHER_ENGINE)
    raise tool.Refusal(
        f"the converted model answers differently: output {culprit} is off by {worst:.2g} of its largest",
        OTHER_ENGINE,
    )


def closest(seen, wanted):
    """Order of axes from the file to the source with the smallest relative error, and that error."""
    best = (None, np.inf)
    # From the file to the source is the inverse of an order that `orders` knows.
    for axes in orders(wanted[0].shape, seen[0].shape):
        back = [int(axis) for axis in np.argsort(axes)]
        pairs = [(one.transpose(back).astype(np.float64), two.astype(np.float64))
                 for one, two in zip(seen, wanted, strict=True)]  # fmt: skip
        scale = max(float(np.abs(two).max(initial=0.0)) for _, two in pairs) + 1e-6
        gap = max(float(np.abs(one - two).max(initial=0.0)) for one, two in pairs) / scale
        if gap < best[1]:  # never true of NaN
            best = (back, gap)
    return best


def opened(data):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def ports(interpreter, order):
    """Inputs and outputs in the source's order."""
    ends = (interpreter.get_input_details(), interpreter.get_output_details())
    return [[details[place] for place in places] for details, places in zip(ends, order, strict=True)]


def places(interpreter):
    """Where the source's inputs and outputs are among the file's, told by the names that `prepared` gave.

    The quantizer gives some of them other names, but keeps their order.
    """
    found = []
    for kind, details in (("i", interpreter.get_input_details()), ("o", interpreter.get_output_details())):
        by_name = {one["name"].split(":")[0]: place for place, one in enumerate(details)}
        wanted = [f"edgekit_{kind}{place}" for place in range(len(details))]
        if set(by_name) != set(wanted):
            raise tool.Refusal("the conversion lost an input or output", OTHER_ENGINE)
        found.append([by_name[name] for name in wanted])
    return found


def answered(interpreter, ins, outs, feed, inputs):
    for port, value, axes in zip(ins, feed, inputs, strict=True):
        interpreter.set_tensor(port["index"], np.ascontiguousarray(value.transpose(axes), port["dtype"]))
    interpreter.invoke()
    return [np.array(interpreter.get_tensor(port["index"])) for port in outs]


def calibration(folder, job):
    """Rows, each a list of inputs in the source's axes."""
    path = folder / "in" / "calibration.npz"
    if not path.exists():
        return []
    with np.load(path, allow_pickle=False) as file:
        count = len(file.files) // len(job["inputs"])
        return [[file[f"{place}/{row}"] for place in range(len(job["inputs"]))] for row in range(count)]


def kept(data, names, keep):
    """Regular expressions for the quantizer: the layers of the file that came from the nodes `keep`."""
    if not keep:
        return []
    from ai_edge_quantizer import qtyping
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffer

    layers = {getattr(qtyping.BuiltinOperator, name) for name in LAYERS}
    places = {str(names.index(name)) for name in keep if name in names}
    own = re.compile(NODE.format(r"(\d+)_"))
    model = flatbuffer.read_model(bytearray(data))
    found = []
    for graph in model.subgraphs:
        for op in graph.operators:
            if model.operatorCodes[op.opcodeIndex].builtinCode not in layers:
                continue
            tensors = [graph.tensors[i] for i in op.inputs if i >= 0]
            weights = [flatbuffer.get_tensor_name(t) for t in tensors if holds(model, t)]
            if any(hit[1] in places for hit in map(own.match, weights) if hit):
                found += [re.escape(flatbuffer.get_tensor_name(graph.tensors[i])) for i in op.outputs]
    if not found:
        raise tool.Refusal(f"none of the layers to keep is left after conversion: {', '.join(keep)[:120]}")
    return [f"^{name};$" for name in found]


def holds(model, tensor):
    data = model.buffers[tensor.buffer].data
    return data is not None and len(data) > 0


def quantized(data, job, rows, scopes):
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    precision, kinds, nothing = job["precision"], qtyping.TFLOperationName, AlgorithmName.NO_QUANTIZE
    everything = kinds.ALL_SUPPORTED
    touched = (kinds.FULLY_CONNECTED, kinds.BATCH_MATMUL) if job["only"] == "products" else (everything,)
    made = quantizer.Quantizer(bytearray(data))
    if precision in ("int8", "int16x8"):
        for kind in touched:
            made.add_static_config(".*", kind, 16 if precision == "int16x8" else 8, 8)
        # Callers speak floating point: the engine converts faster inside than NumPy does outside.
        for end in (kinds.INPUT, kinds.OUTPUT):
            made.update_quantization_recipe(".*", end, None, nothing)
    elif precision == "int8-dynamic":
        made.add_dynamic_config(".*", everything, 8)
    elif precision in ("int8-weights", "int4-weights"):
        made.add_weight_only_config(".*", everything, 4 if precision == "int4-weights" else 8)
    elif precision == "fp16":
        made.add_weight_only_config(".*", everything, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    else:
        raise tool.Refusal(f"there is no {precision} for this engine")
    for scope in scopes:
        made.update_quantization_recipe(scope, everything, None, nothing)
    statistics = None
    if made.need_calibration:
        names = [f"edgekit_i{place}" for place in range(len(rows[0]))]
        feeds = [dict(zip(names, row, strict=True)) for row in rows]
        statistics = made.calibrate({"serving_default": feeds}, num_threads=1)
    return bytes(made.quantize(statistics, enable_progress_report=False).quantized_model)


def must_run(data, order, feeds, inputs, precision):
    """Files that the quantizer made, and that the engine then refused, were seen for every precision."""
    remedy = "use another precision: int8-dynamic, int8-weights and fp32 ask less of the engine"
    try:
        interpreter = opened(data)
        ins, outs = ports(interpreter, order)
        answers = [answered(interpreter, ins, outs, feed, inputs) for feed in feeds]
    except (RuntimeError, ValueError) as exc:
        words = " ".join(str(exc).split())
        raise tool.Refusal(f"the engine cannot run the {precision} model: {words}", remedy) from None
    if not all(np.isfinite(value).all() for one in answers for value in one):
        raise tool.Refusal(f"the {precision} model answers NaN or infinity", remedy)


def main():
    folder = Path(sys.argv[1])
    (folder / "work").mkdir()
    os.chdir(folder / "work")
    job = json.loads((folder / "job.json").read_text())
    try:
        result = build(folder, job)
    except tool.Refusal as exc:
        result = {"error": f"{exc}", "hint": exc.hint}
    except MemoryError:
        result = {"error": "needs more memory than its limit", "hint": "convert it on a larger machine"}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
