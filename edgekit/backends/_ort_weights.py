"""Weights in 8 or 4 bits, arithmetic in floating point: what needs no calibration and no integer kernels.

A weight w of one output channel becomes q = round(w / s), s = max|w| / (2^(bits-1) - 1), symmetric, and a
DequantizeLinear that gives q * s back (Krishnamoorthi 2018, arXiv:1806.08342, section 2.2). ONNX has 4-bit
tensors since opset 21.
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


def compressed(model: SourceModel, bits: int, keep: list[str]) -> bytes:
    """The model with every weight of a convolution or product in `bits` (8 or 4), but for the nodes `keep`.

    Raises EngineError when there is nothing to compress.
    """
    import onnx
    from onnx import helper, version_converter

    proto = onnx.ModelProto.FromString(model.onnx)
    opset = next(item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    if opset < 21 and bits < 8:
        proto = version_converter.convert_version(proto, 21)
    elif opset < 13:
        proto = version_converter.convert_version(proto, 13)
    graph = proto.graph
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    added = []
    for name, tensor in tensors.items():
        axis = _axis(name, users.get(name, []), keep)
        weight = onnx.numpy_helper.to_array(tensor)
        if axis is None or weight.dtype != np.float32 or weight.size < SMALLEST:
            continue
        values, scale = quantized(weight, axis, bits)
        graph.initializer.remove(tensor)
        graph.initializer.append(_stored(f"{name}.q", values, bits))
        graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
        added.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}.q", f"{name}.scale"], [name], name=f"{name}.dq", axis=axis
            )
        )
    if not added:
        raise EngineError(
            f"no weight of a convolution or product has {SMALLEST} elements or more", "use fp32 or fp16"
        )
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *nodes])
    proto.ir_version = max(proto.ir_version, 10 if bits < 8 else proto.ir_version)
    return bytes(proto.SerializeToString(deterministic=True))


def quantized(
    weight: NDArray[np.float32], axis: int, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of the weight's shape and one scale per index of `axis`."""
    largest = 2 ** (bits - 1) - 1
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others), 1e-12).astype(np.float32) / np.float32(largest)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.rint(weight / scale.reshape(shape)).astype(np.int8), scale


def _axis(name: str, users: list[Any], keep: list[str]) -> int | None:
    """The output channel's axis when every user is a layer that reads the tensor as its weight."""
    axes = set()
    for node in users:
        if node.op_type not in WEIGHTED or node.name in keep or list(node.input).index(name) != 1:
            return None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "Conv" or (node.op_type == "Gemm" and transposed):
            axes.add(0)
        else:
            axes.add(1)
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
