"""PyTorch to ONNX: torch.export archives (.pt2) and TorchScript. See _conversion.py for the files."""

import functools
import io
import json
import re
import sys
import warnings
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _conversion as tool

warnings.simplefilter("ignore")

# Expressions over shapes are evaluated by sympy; sound ones are names, numbers, calls and comparisons.
_CODE = re.compile(r"__|\.\s*[A-Za-z_]|\b(lambda|exec|eval|open|import|getattr|compile|globals|vars)\b")

_TARGET = re.compile(r"torch\.ops\.|_operator\.|math\.|torch\.sym_|torch\._sym_|#|$")
"""What a node of an exported graph may call; "#..." names a submodule, none a tensor's mutation."""


def convert(path, job):
    if job["format"] == "torchscript":
        return _torchscript(path, job)
    return _export(path, job)


def _export(path, job):
    import torch

    if not job["trust"]:
        _no_code(path)
        torch.load = functools.partial(_tensors_only, torch.load)
    program = torch.export.load(path)
    wanted = program.graph_signature.user_inputs
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    ports = []
    for name in wanted:
        value = nodes.get(name)
        if not isinstance(value, torch.Tensor):
            raise tool.Refusal(f"input {name!r} is no tensor", "export a model whose inputs are tensors")
        shape = [size if isinstance(size, int) else None for size in value.shape]
        ports.append((_numpy(value.dtype), tool.fixed(name, shape, job)))
    module = program.module()

    def run(inputs):
        flat = [torch.from_numpy(one) for one in inputs]
        args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
        with torch.no_grad():
            return _arrays(module(*args, **kwargs))

    probes, batch = tool.probes_of(ports, run)
    buffer = io.BytesIO()
    converted = _one_line(
        lambda: torch.onnx.export(program, (), dynamo=True, opset_version=18, verbose=False)
    )
    converted.save(buffer, include_initializers=True)
    return _model(buffer), probes, batch


def _torchscript(path, job):
    import torch

    if not job["trust"]:
        _no_files(path)
    module = torch.jit.load(path, map_location="cpu").eval()
    arguments = module.forward.schema.arguments[1:]
    names = [argument.name for argument in arguments if not argument.has_default_value()]
    ports = []
    for argument in arguments[: len(names)]:
        if str(argument.type) != "Tensor":
            raise tool.Refusal(f"input {argument.name!r} is {argument.type}, not a tensor")
        if argument.name not in job["shapes"]:
            raise tool.Refusal(
                f"TorchScript does not say the shape of input {argument.name!r}",
                f"say it: --shape {argument.name}=1,3,224,224",
            )
        ports.append([None, *job["shapes"][argument.name][1:]])

    def run(inputs):
        with torch.no_grad():
            return _arrays(module(*(torch.from_numpy(one) for one in inputs)))

    try:
        typed = [("float32", shape) for shape in ports]
        probes, batch = tool.probes_of(typed, run)
    except RuntimeError as first:  # token identifiers are whole numbers
        typed = [("int64", shape) for shape in ports]
        try:
            probes, batch = tool.probes_of(typed, run)
        except RuntimeError:
            words = [line for line in str(first).splitlines() if line.strip()]
            raise tool.Refusal(f"it does not run on inputs of that shape: {words[-1][:300]}") from None
    outputs = [f"output{place}" if place else "output" for place in range(len(probes[0][1]))]
    example = tuple(torch.from_numpy(one) for one in probes[0][0])
    buffer = io.BytesIO()
    _one_line(
        lambda: torch.onnx.export(
            module,
            example,
            buffer,
            dynamo=False,
            opset_version=tool.OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_axes={name: {0: "batch"} for name in (*names, *outputs)} if batch else None,
        )
    )
    return _model(buffer), probes, batch


def _one_line(export):
    """The exporter's failures run over pages; the line that names the operator is what a person needs."""
    try:
        return export()
    except Exception as exc:
        told = "\n".join(str(one) for one in _chain(exc))
        found = re.search(r"No ONNX function found for.*|[Uu]nsupported.*operator.*|.*'aten::\w+'.*", told)
        words = found[0] if found else next((line for line in told.splitlines() if line.strip()), "")
        raise tool.Refusal(
            f"PyTorch's ONNX exporter: {' '.join(words.split())[:300]}",
            "write the model without this operator, or export it to ONNX yourself",
        ) from None


def _chain(exc):
    while exc is not None:
        yield exc
        exc = exc.__cause__ or exc.__context__


def _tensors_only(load, *args, **kwargs):
    return load(*args, **{**kwargs, "weights_only": True})


def _no_code(path):
    """Archives hold graphs as JSON; what torch.load would unpickle is held to tensors by `_tensors_only`."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if re.search(r"data/constants/.*(custom_obj|opaque)|data/(aotinductor|executorch|mtia)/", name):
                raise tool.Refusal(f"it holds a pickled object or machine code ({name})", tool.TRUST)
            if name.endswith(".json"):
                _no_code_in_graph(json.loads(archive.read(name)))


def _no_code_in_graph(document):
    stack = [document]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            expression, target = item.get("expr_str"), item.get("target")
            if isinstance(expression, str) and _CODE.search(expression):
                raise tool.Refusal("a shape expression in it looks like code", tool.TRUST)
            if isinstance(target, str) and (not _TARGET.match(target) or "from_file" in target):
                raise tool.Refusal(f"its graph calls {target[:80]!r}", tool.TRUST)
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _no_files(path):
    """TorchScript cannot run Python, but two of its operators write and read files."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and "/code/" in name:
                found = re.search(
                    rb"torch\.(from_file|save)\(|ops\.aten\.(from_file|save)", archive.read(name)
                )
                if found:
                    raise tool.Refusal(f"its code calls {found[0].decode()!r}: it reaches files", tool.TRUST)


def _numpy(dtype):
    import torch

    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise tool.Refusal(f"inputs of type {dtype} are not supported") from None


def _arrays(value):
    import torch

    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.numpy(force=True) for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _model(buffer):
    import onnx

    return onnx.ModelProto.FromString(buffer.getvalue())


if __name__ == "__main__":
    tool.main(convert)
