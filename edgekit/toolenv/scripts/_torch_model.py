"""Trainable models: whatever the source, one graph of Conv, Linear, BatchNorm and Dropout modules.

torch.export writes layers as functions of weights. They become modules again here, so that pruning, folding
and fake quantization find them, and BatchNorm and Dropout train as they should.
"""

import functools
import importlib.util
import traceback

import _conversion as tool
import from_torch
import torch
from torch import nn

aten = torch.ops.aten
_CONVS = {aten.conv1d.default: nn.Conv1d, aten.conv2d.default: nn.Conv2d, aten.conv2d.padding: nn.Conv2d}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}


def load(source, folder, shapes, trust):
    """A GraphModule in evaluation mode that takes tensors and returns a tuple.

    `source`: {"file"} of a .pt2, or {"code", "function", "weights", "partial"}; names under `folder`.
    `shapes`: one row of each input.
    """
    if "file" in source:
        path = folder / source["file"]
        if not trust:
            from_torch._no_code(path)
            torch.load = functools.partial(from_torch._tensors_only, torch.load)
        program = torch.export.load(path)
    else:
        program = _exported(_built(source, folder), shapes)
    model = lifted(program)
    try:
        with torch.no_grad():
            model(*(torch.zeros(3, *shape) for shape in shapes))
    except Exception:
        raise tool.Refusal(
            "it does not take several rows at once", "export it with an open batch: dynamic_shapes"
        ) from None
    return model


def _built(source, folder):
    """The module that the user's function returns, its weights loaded as tensors only."""
    path = folder / source["code"]
    spec = importlib.util.spec_from_file_location("model_code", path)
    code = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(code)
        module = getattr(code, source["function"])()
    except Exception as exc:  # the user's code raises what it likes
        line = traceback.extract_tb(exc.__traceback__)[-1].lineno
        raise tool.Refusal(f"{source['function']}(), line {line}: {type(exc).__name__}: {exc}") from None
    if not isinstance(module, nn.Module):
        raise tool.Refusal(f"{source['function']}() returned {type(module).__name__}, not a torch.nn.Module")
    if source["weights"]:
        module.load_state_dict(_state(folder / source["weights"], module, source["partial"]), strict=False)
    return module.eval()


def _state(path, module, partial):
    """A state dict, also one level down and with the prefix of DataParallel, as checkpoints come."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:
        words = " ".join(str(exc).split())[:200]
        raise tool.Refusal(
            f"weights: {words}", "save a state dict: torch.save(model.state_dict(), ...)"
        ) from None
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    state = {str(name).removeprefix("module."): value for name, value in found.items()}
    have, want = (
        {n for n in names if not n.endswith("num_batches_tracked")} for names in (state, module.state_dict())
    )
    strange = sorted(want - have) or sorted(have - want) * (not partial)
    if strange:
        where = "lack" if want - have else "hold"
        raise tool.Refusal(f"the weights {where} {strange[0]!r} ({len(strange)} names differ)")
    return state


def _exported(module, shapes):
    example = tuple(torch.zeros(2, *shape) for shape in shapes)
    free = tuple({0: torch.export.Dim.DYNAMIC} for _ in shapes)
    try:
        return torch.export.export(
            module, example, dynamic_shapes={"args": free} if _variadic(module) else free
        )
    except Exception as exc:
        words = next((line for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
        raise tool.Refusal(f"torch.export cannot read it: {words[:300]}") from None


def _variadic(module):
    return module.forward.__code__.co_flags & 0x04


def lifted(program):
    """The exported program as modules; functions without a module of their own stay functions."""
    source = program.module(check_guards=False)
    owner, graph = nn.Module(), source.graph
    graph.set_codegen(torch.fx.graph.CodeGen())  # tensors in, a tuple out; no nested inputs
    made = {}
    for node in list(graph.nodes):
        if node.op == "call_function":
            _loosened(node)
            layer = _layer(node, source)
            if layer is not None:
                weight = node.args[1].target if isinstance(node.args[1], torch.fx.Node) else node.name
                name = made.setdefault(weight, weight.removesuffix(".weight").replace(".", "_"))
                if not hasattr(owner, name):
                    setattr(owner, name, layer)
                node.op, node.target, node.args, node.kwargs = "call_module", name, node.args[:1], {}
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
        elif node.op == "get_attr":  # weights of functions that stay functions
            value, name = _tensor(source, node), node.target.replace(".", "_")
            if isinstance(value, nn.Parameter):
                owner.register_parameter(name, value)
            else:
                owner.register_buffer(name, value)
            node.target = name
    return torch.fx.GraphModule(owner, graph).eval()


def _layer(node, source):
    """The module that does what this function call does; None where there is none."""
    if node.target in _CONVS:
        _, weight, bias, stride, padding, dilation, groups = _arguments(node)
        weight, bias = _tensor(source, weight), _tensor(source, bias)
        if weight is None:
            return None
        layer = _CONVS[node.target](
            weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), tuple(stride),
            padding if isinstance(padding, str) else tuple(padding), tuple(dilation), groups,
            bias is not None,
        )  # fmt: skip
    elif node.target is aten.linear.default:
        _, weight, bias = _arguments(node)
        weight, bias = _tensor(source, weight), _tensor(source, bias)
        if weight is None:
            return None
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    elif node.target is aten.batch_norm.default:
        _, weight, bias, mean, variance, _, momentum, eps, _ = _arguments(node)
        weight, bias, mean, variance = (_tensor(source, one) for one in (weight, bias, mean, variance))
        if weight is None or mean is None:
            return None
        layer = _NORMS[node.args[0].meta["val"].dim()](len(weight), eps, momentum)
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(variance)
    elif node.target is aten.dropout.default:
        return nn.Dropout(node.args[1])
    else:
        return None
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def _arguments(node):
    """All arguments in the operator's order, defaults filled in."""
    schema = node.target._schema.arguments
    given = {one.name: value for one, value in zip(schema, node.args, strict=False)} | dict(node.kwargs)
    values = [given.get(one.name, one.default_value) for one in schema]
    if node.target in _CONVS:
        spatial = 1 if node.target is aten.conv1d.default else 2
        for place in (3, 4, 5):
            if isinstance(values[place], list | tuple) and len(values[place]) == 1:
                values[place] = list(values[place]) * spatial
    return values


def _tensor(source, node):
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr":
        return None
    return functools.reduce(getattr, node.target.split("."), source)


def _loosened(node):
    """Flattening to (batch, 64) becomes (batch, -1): there may be fewer channels later."""
    if node.target in (aten.view.default, aten.reshape.default) and len(node.args[1]) == 2:
        rows, columns = node.args[1]
        if isinstance(rows, torch.fx.Node) and isinstance(columns, int):
            node.args = (node.args[0], [rows, -1])


def to_onnx(model, shapes, inputs, outputs):
    """ONNX with these names, an open batch, and no trace of where it was made."""
    import io

    import onnx

    example = tuple(torch.zeros(2, *shape) for shape in shapes)
    batch = torch.export.Dim("batch", min=1)
    buffer = io.BytesIO()
    from_torch._one_line(
        lambda: torch.onnx.export(
            model, example, dynamo=True, opset_version=18, verbose=False, input_names=inputs,
            output_names=outputs, dynamic_shapes=tuple({0: batch} for _ in shapes),
        )
    ).save(buffer, include_initializers=True)  # fmt: skip
    made = onnx.ModelProto.FromString(buffer.getvalue())
    graph = made.graph
    for item in (
        made,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.value_info,
        *graph.input,
        *graph.output,
    ):
        item.ClearField("metadata_props")  # stack traces name temporary folders
        item.ClearField("doc_string")
    return made


def layers(model):
    """Name and module of what has weights to compress."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, kinds)]


def size(model, shapes):
    """Parameters, and multiply-accumulates of one row."""
    import torch_pruning

    example = tuple(torch.zeros(1, *shape) for shape in shapes)
    macs, parameters = torch_pruning.utils.count_ops_and_params(model.eval(), example)
    return {"parameters": int(parameters), "macs": int(macs)}
