"""TensorFlow to ONNX: SavedModel folders, Keras .keras and .h5, TFLite. See _conversion.py for the files."""

import json
import logging
import os
import sys
import warnings
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
import _conversion as tool
import numpy as np

warnings.simplefilter("ignore")


def convert(path, job):
    import tensorflow as tf

    logging.disable(logging.WARNING)
    tf.get_logger().setLevel("ERROR")
    how = {"savedmodel": _saved_model, "keras": _keras, "keras-h5": _keras, "tflite": _tflite}
    return how[job["format"]](path, job)


def _saved_model(path, job):
    """The version 1 loader reads every SavedModel; the version 2 loader trips over old optimizer slots."""
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.tools import saved_model_utils

    tags = saved_model_utils.get_saved_model_tag_sets(str(path))
    chosen = next((one for one in tags if "serve" in one), tags[0])
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, chosen, str(path))
        signature = _signature(meta.signature_def)
        sources = {key: info.name for key, info in sorted(signature.inputs.items())}
        targets = {key: info.name for key, info in sorted(signature.outputs.items())}
        ports = []
        for key in sources:
            info = signature.inputs[key]
            if info.tensor_shape.unknown_rank:
                raise tool.Refusal(f"input {key!r} has no known rank", "save it with an input signature")
            shape = [None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim]
            ports.append((tf.DType(info.dtype).as_numpy_dtype, tool.fixed(key, shape, job)))
        names = list(sources.values())

        def run(inputs):
            return session.run(list(targets.values()), dict(zip(names, inputs, strict=True)))

        probes, batch = tool.probes_of(ports, run)
        ends = [name.split(":")[0] for name in targets.values()]
        frozen = tf.compat.v1.graph_util.convert_variables_to_constants(
            session, session.graph.as_graph_def(), ends
        )
    model, _ = tf2onnx.convert.from_graph_def(
        frozen, input_names=names, output_names=list(targets.values()), opset=tool.OPSET
    )
    return _named(model, names, list(targets.values()), list(sources), list(targets)), probes, batch


def _signature(signatures):
    usable = {key: one for key, one in signatures.items() if one.outputs and not key.startswith("__")}
    if "serving_default" in usable:
        return usable["serving_default"]
    if len(usable) == 1:
        return next(iter(usable.values()))
    said = ", ".join(sorted(usable)) or "none"
    raise tool.Refusal(
        f"the SavedModel has no signature serving_default; it has: {said}",
        "save it with signatures={'serving_default': ...}",
    )


def _keras(path, job):
    import keras
    import tensorflow as tf
    import tf2onnx

    if not job["trust"]:
        _no_code(_config(path))
    model = keras.saving.load_model(path, compile=False, safe_mode=not job["trust"])
    given = not model.inputs and len(job["shapes"]) == 1  # then the input has the name that the hint says
    if given:
        model.build((None, *next(iter(job["shapes"].values()))[1:]))
    if not model.inputs:
        raise tool.Refusal(
            "the Keras model does not know its input shape", "say it: --shape input=1,224,224,3"
        )
    known = [one.name.split(":")[0] for one in model.inputs]
    names = list(job["shapes"]) if given else known
    ports = [
        (one.dtype, tool.fixed(name, list(one.shape), job))
        for name, one in zip(names, model.inputs, strict=True)
    ]

    def call(*inputs):
        tree = keras.tree.pack_sequence_as(model.input, list(inputs))
        return keras.tree.flatten(model(tree, training=False))

    def run(inputs):
        return [one.numpy() for one in call(*(tf.constant(one) for one in inputs))]

    probes, batch = tool.probes_of(ports, run)
    specs = [
        tf.TensorSpec(shape, dtype, name=f"edgekit_{place}") for place, (dtype, shape) in enumerate(ports)
    ]
    converted, _ = tf2onnx.convert.from_function(tf.function(call), input_signature=specs, opset=tool.OPSET)
    inputs = [f"edgekit_{place}" for place in range(len(ports))]
    outputs = [value.name for value in converted.graph.output]
    return _named(converted, inputs, outputs, names, list(model.output_names)), probes, batch


def _config(path):
    """The model's description as plain JSON, without building anything from it."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
        if text is None:
            raise tool.Refusal(
                "the HDF5 file holds no Keras model, perhaps only weights",
                "save it whole: model.save('x.keras')",
            )
        return json.loads(text)


def _no_code(config):
    """Layers that run code or read files when they are loaded."""
    stack = [config]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item
        if not isinstance(item, dict):
            continue
        name, module = item.get("class_name"), str(item.get("module") or "")
        if (
            name in ("Lambda", "TorchModuleWrapper", "TFSMLayer", "__lambda__", "function")
            and name != "function"
        ):
            raise tool.Refusal(f"it holds a {name} layer, which runs code when it is loaded", tool.TRUST)
        if module and module.split(".")[0] not in ("keras", "builtins"):
            raise tool.Refusal(f"it imports {module!r} when it is loaded", tool.TRUST)
        if isinstance(item.get("vocabulary"), str):
            raise tool.Refusal("a layer of it reads its vocabulary from a file", tool.TRUST)
        stack += item.values()


def _tflite(path, job):
    import tensorflow as tf
    import tf2onnx

    kernels = tf.lite.experimental.OpResolverType

    def interpreter(count, kind):
        one = tf.lite.Interpreter(model_path=str(path), experimental_op_resolver_type=kind)
        for detail in one.get_input_details():
            shape = tool.fixed(_plain(detail), _open(detail), job)
            one.resize_tensor_input(detail["index"], [shape[0] or count, *shape[1:]] if shape else shape)
        one.allocate_tensors()
        return one

    details = tf.lite.Interpreter(model_path=str(path)).get_input_details()
    ends = tf.lite.Interpreter(model_path=str(path)).get_output_details()
    ports = [(one["dtype"], tool.fixed(_plain(one), _open(one), job)) for one in details]

    def run(inputs, kind=kernels.AUTO):
        one = interpreter(len(inputs[0]), kind)
        for detail, value in zip(details, inputs, strict=True):
            one.set_tensor(detail["index"], value)
        one.invoke()
        return [np.array(one.get_tensor(detail["index"])) for detail in ends]

    probes, batch = tool.probes_of(ports, run, rows=(1, 1, 1, 1, 1, 1, 1, 1, 3))
    model, _ = tf2onnx.convert.from_tflite(str(path), opset=tool.OPSET)
    names, outs = [one["name"] for one in details], [one["name"] for one in ends]
    plain = [[_plain(one) for one in some] for some in (details, ends)]
    slack = _slack(probes, lambda inputs: run(inputs, kernels.BUILTIN_WITHOUT_DEFAULT_DELEGATES))
    return _named(model, names, outs, *plain), probes, batch, slack


def _slack(probes, other):
    """How far TFLite's other kernels answer from its usual ones: quantised models have no one answer."""
    worst = [0.0] * len(probes[0][1])
    for inputs, outputs in probes:
        for place, (one, two) in enumerate(zip(outputs, other(inputs), strict=True)):
            worst[place] = max(worst[place], float(np.abs(one.astype(float) - two.astype(float)).max()))
    return worst


def _plain(detail):
    """TensorFlow's converter writes serving_default_x:0 for x."""
    return detail["name"].removeprefix("serving_default_").split(":")[0]


def _open(detail):
    """None for an open size; files of old converters have no signature and a fixed batch."""
    sizes = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return [None if size < 0 else int(size) for size in sizes]


def _named(model, inputs, outputs, wish_inputs, wish_outputs):
    """The graph's inputs and outputs in the given order, under the names that people know."""
    for values, order in ((model.graph.input, inputs), (model.graph.output, outputs)):
        by_name = {value.name: value for value in values}
        missing = [name for name in order if name not in by_name]
        if missing:
            raise tool.Refusal(f"tf2onnx lost {missing[0]!r} on the way")
        ordered = [by_name[name] for name in order]
        del values[:]
        values.extend(ordered)
    return tool.renamed(model, wish_inputs, wish_outputs)


if __name__ == "__main__":
    tool.main(convert)
