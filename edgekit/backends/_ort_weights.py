"""Weights in 8 or 4 bits, arithmetic in floating point: what needs no calibration and no integer kernels.

A weight w of one output channel becomes q = round(w / s), s = max|w| / (2^(bits-1) - 1), symmetric, and a
DequantizeLinear that gives q * s back (Krishnamoorthi 2018, arXiv:1806.08342, section 2.2). ONNX has 4-bit
tensors since opset 21.

A table of embeddings gets one scale per row and always 8 bits: it is read, not multiplied, so that fewer bits
lose accuracy and win no time (nncf and llama.cpp keep tables at 8 bits by default too).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends._base import SourceModel
from edgekit.backends._graph import WEIGHTED
from edgekit.errors import EngineError

SMALLEST = 256
"""Elements; below, the scales and the extra node weigh more than what is saved."""
_TABLE_BITS = 8


def compressed(model: SourceModel, bits: int, keep: list[str]) -> bytes:
    """The model with every weight of a convolution or product in `bits` (8 or 4) and every table of
    embeddings in 8, but for the nodes `keep`.

    Raises EngineError when there is nothing to compress.
    """
    made = _packed(_proto(model.onnx, 21 if bits < 8 else 13), bits, keep)
    if made is None:
        raise EngineError(
            f"no weight of a convolution or product has {SMALLEST} elements or more", "use fp32 or fp16"
        )
    return made


def with_small_tables(onnx_bytes: bytes) -> bytes:
    """The model with its tables of embeddings in 8 bits and everything else as it was."""
    return _packed(_proto(onnx_bytes, 13), 0, []) or onnx_bytes


def quantized(
    weight: NDArray[np.float32], axis: int, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the weight's shape and one scale per index of `axis`."""
    largest = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-12).astype(np.float32) / np.float32(largest)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale


def _proto(onnx_bytes: bytes, opset: int) -> Any:
    """With at least that opset: 13 brought scales per channel, 21 integers of 4 bits."""
    import onnx
    from onnx import version_converter

    proto = onnx.ModelProto.FromString(onnx_bytes)
    has = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    return version_converter.convert_version(proto, opset) if has < opset else proto


def _packed(proto: Any, bits: int, keep: list[str]) -> bytes | None:
    """`bits` 0: tables alone. None when nothing was packed."""
    import onnx
    from onnx import helper

    graph = proto.graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    added = []
    for tensor in list(graph.initializer):
        name = tensor.name
        readers = [node for node in users.get(name, []) if node.name not in keep]
        if len(readers) < len(users.get(name, [])) or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        is_table = bool(readers) and all(_reads_rows(node, name) for node in readers)
        axis, width = (0, _TABLE_BITS) if is_table else (_axis(name, readers, len(tensor.dims)), bits)
        weight = onnx.numpy_helper.to_array(tensor)
        if axis is None or not width or weight.size < SMALLEST or weight.ndim < 2:
            continue
        values, scale = quantized(weight, axis, width)
        graph.initializer.remove(tensor)
        graph.initializer.append(_stored(f"{name}.q", values, width))
        graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        given = [f"{name}.q", f"{name}.scale"]
        added.append(helper.make_node("DequantizeLinear", given, [name], name=f"{name}.dq", axis=axis))
    if not added:
        return None
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *nodes])
    proto.ir_version = max(proto.ir_version, 10) if 0 < bits < 8 else proto.ir_version
    return bytes(proto.SerializeToString(deterministic=True))


def _reads_rows(node: Any, name: str) -> bool:
    """Whether `node` picks rows of the tensor: an embedding."""
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
    return node.op_type == "Gather" and list(node.input).index(name) == 0 and axis == 0


def _axis(name: str, users: list[Any], dimensions: int) -> int | None:
    """The output channel's axis when every user is a layer that reads the tensor as its weight."""
    axes = set()
    for node in users:
        if node.op_type not in WEIGHTED or list(node.input).index(name) != 1:
            return None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed):
            axes.add(0)
        else:
            axes.add(dimensions - 1 if node.op_type == "MatMul" else 1)
    return axes.pop() if len(axes) == 1 else None


def _stored(name: str, values: NDArray[np.int8], bits: int) -> Any:
    import onnx
    from onnx import TensorProto, helper

    if bits == 8:
        return onnx.numpy_helper.from_array(values, name)
    flat = values.reshape(-1).astype(np.uint8) & 0xF
    flat = np.append(flat, np.zeros(flat.size % 2, np.uint8))
    packed = (flat[0::2] | (flat[1::2] << 4)).astype(np.uint8).tobytes()
    return helper.make_tensor(name, TensorProto.INT4, values.shape, packed, raw=True)
