"""Is this graph one that can be built from? Every refusal names the input, weight or node."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.build.sources.onnx_file import library
from edgekit.bundle.model import TensorSpec
from edgekit.errors import ModelError
from edgekit.runtimes._base import DTYPE_NAMES

_MASKING = {"Where", "Add", "Max", "Min", "Clip", "Pad", "Expand", "Concat", "Slice", "Cast", "Unsqueeze"}
"""Operators through which attention masks bring minus infinity in on purpose."""
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Whose operators the engines have."""


def graph_inputs(model: Any) -> Iterator[Any]:
    """Inputs that a caller gives: old models list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return (value for value in model.graph.input if value.name not in weights)


def ports(path: Path, model: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs. Raises ModelError for one that is open, of no number type, or absent."""
    inputs = tuple(_spec(path, "input", value) for value in graph_inputs(model))
    outputs = tuple(_spec(path, "output", value) for value in model.graph.output)
    if not inputs or not outputs:
        raise ModelError(f"{path}: the graph has no {'inputs' if not inputs else 'outputs'}")
    return inputs, outputs


def apply_hints(path: Path, model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write `shapes` into the graph's open input dimensions; an open batch (dimension 0) stays open."""
    values = {value.name: value for value in graph_inputs(model)}
    for name, shape in shapes.items():
        if name not in values:
            known = ", ".join(sorted(values))
            raise ModelError(f"{path}: --shape names {name!r}, the model's inputs are {known}")
        dims = values[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise ModelError(
                f"{path}: --shape gives input {name!r} {len(shape)} dimensions, it has {len(dims)}"
            )
        for place, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                if size != dim.dim_value and place:
                    raise ModelError(
                        f"{path}: --shape says {size} for dimension {place} of input {name!r}, "
                        f"it is {dim.dim_value}"
                    )
            elif place:
                dim.dim_value = size
    if shapes:
        del model.graph.value_info[:]  # computed for the open shapes


def close_batch(model: Any) -> None:
    """One row at a time, for sources whose open batch is one in name only."""
    for value in (*graph_inputs(model), *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].dim_value:
            dims[0].dim_value = 1
    del model.graph.value_info[:]


def _spec(path: Path, kind: str, value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    try:
        datatype = DTYPE_NAMES[np.dtype(library().helper.tensor_dtype_to_np_dtype(tensor.elem_type))]
    except (KeyError, TypeError):
        raise ModelError(f"{path}: {kind} {value.name!r} is not a numeric tensor") from None
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if kind == "input" and (not shape or shape[0] > 1):
        raise ModelError(
            f"{path}: input {value.name!r} has shape {shape}: its first dimension is not an open batch or 1",
            "export it with a batch dimension; devices are asked for one sample at a time",
        )
    loose = [position for position, size in enumerate(shape) if size < 1 and position > 0]
    if loose and kind == "input":
        example = ",".join(
            "1" if not place else str(size) if size > 0 else "N" for place, size in enumerate(shape)
        )
        raise ModelError(
            f"{path}: input {value.name!r} has no fixed size in dimension {loose[0]} of {shape}",
            f"only the batch (dimension 0) may be open; say the size: --shape {value.name}={example}",
        )
    return TensorSpec(value.name, datatype, tuple(size if size > 0 else -1 for size in shape))


def weights(path: Path, model: Any) -> None:
    """Raise ModelError for a weight that cannot be read or is not finite; masks may hold infinity."""
    used: dict[str, set[str]] = defaultdict(set)
    for node in model.graph.node:
        for name in node.input:
            used[name].add(node.op_type)
    for tensor in model.graph.initializer:
        try:
            array = library().numpy_helper.to_array(tensor)
        except Exception as exc:  # whatever NumPy says of a size or type that cannot be
            words = f"{path}: weight {tensor.name!r} cannot be read: {type(exc).__name__}: {exc}"
            raise ModelError(words, "export the model again") from None
        bad = int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind == "f" else 0
        if bad and not (used[tensor.name] <= _MASKING and not np.isnan(array).any()):
            raise ModelError(
                f"{path}: weight {tensor.name!r} holds {bad} values that are NaN or infinite",
                "the training went wrong; export a sound checkpoint",
            )


def operators(path: Path, model: Any) -> None:
    """Raise ModelError, naming the node, for an operator that no engine has."""
    defs = library().defs
    own = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if not isinstance(node.op_type, str) or not isinstance(node.domain, str):
            raise ModelError(f"{path}: not a valid model: an operator's name is not text", "export it again")
        known = node.domain == "com.microsoft" or defs.has(node.op_type, node.domain)
        if (node.domain, node.op_type) in own or (known and node.domain in _DOMAINS):
            continue
        where = node.name or (node.output[0] if node.output else "")
        full = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ModelError(
            f"{path}: node {where!r}: operator {full} is not in ONNX",
            "no engine has it; replace this layer and export again",
        )


def valid(path: Path, model: Any) -> None:
    """ONNX's own checker. Raises ModelError."""
    try:
        library().checker.check_model(model)
    except Exception as exc:  # ValidationError, or UnicodeDecodeError for its message about a broken name
        words = str(exc).strip().splitlines() or [type(exc).__name__]
        raise ModelError(f"{path}: not a valid model: {words[0]}", "export the model again") from None
