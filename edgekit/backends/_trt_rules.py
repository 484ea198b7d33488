"""What TensorRT's ONNX parser takes, told from the graph: refusing here is cheap, on a device it is not.

Operators and restrictions: onnx/onnx-tensorrt, docs/operators.md, TensorRT 10.15 (opset 9 to 24). Older
releases lack a few (attention, RMSNormalization); JetPack 6.1 has 10.3. Quantization: NVIDIA's guide
"Working with Quantized Types" (symmetric, int8 signed, per channel for weights only).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_OPSET, MAX_OPSET = 9, 24
MAX_TOP_K = 3840

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization
BlackmanWindow Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh
CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten
Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax
Identity If InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
NonMaxSuppression NonZero Not OneHot Or Pad Pow PRelu QuantizeLinear RandomNormal RandomNormalLike
RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence
RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT Scan Scatter ScatterElements ScatterND Selu Shape
Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum
Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""
OPERATORS = frozenset(_NAMES.split())
PORT_TYPES = ("FP32", "FP16", "FP64", "INT32", "INT64", "UINT8", "BOOL")
"""Of inputs and outputs; int8 exists inside the graph only, between Q and DQ."""
_POOLS = ("AveragePool", "MaxPool", "LpPool")
_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Of a weight's output channels. Products: the last axis, or the first of a Gemm with transB."""


@dataclass(frozen=True)
class Problem:
    """One node that TensorRT would refuse, and why."""

    node: str
    reason: str


def problems(model: Any) -> Iterator[Problem]:
    """Everything in an onnx.ModelProto that the rules forbid, in graph order."""
    opset = max((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        yield Problem("the graph", f"has opset {opset}, TensorRT reads {MIN_OPSET} to {MAX_OPSET}")
    yield from _problems(model.graph, {})


def _problems(graph: Any, outer: Mapping[str, Any]) -> Iterator[Problem]:
    """Of one graph and the graphs inside its nodes; `outer`: initializers that they can see."""
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    constants |= {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for reason in _reasons(node, constants, readers, makers):
            yield Problem(node.name or f"the {node.op_type} to {node.output[0]}", reason)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _problems(attribute.g, constants)


def _reasons(
    node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]], makers: Mapping[str, Any]
) -> Iterator[str]:
    kind = node.op_type
    if node.domain not in ("", "ai.onnx"):
        yield f"is {node.domain}.{kind}, no standard ONNX operator"
    elif kind not in OPERATORS:
        yield f"is a {kind}, which TensorRT's parser does not know"
    elif kind in ("QuantizeLinear", "DequantizeLinear"):
        yield from _quantization(node, constants, readers, makers)
    else:
        yield from _restrictions(node, constants)


def _restrictions(node: Any, constants: Mapping[str, Any]) -> Iterator[str]:
    """Of operators that are taken with reservations."""
    kind, said = node.op_type, _attributes(node)
    if kind in _POOLS and len(said.get("kernel_shape", (1, 1))) not in (2, 3):
        yield f"is a {kind} over {len(said['kernel_shape'])} dimension, TensorRT pools over 2 or 3"
    if kind in _POOLS and set(said.get("dilations", (1,))) != {1}:
        yield f"is a {kind} with dilations"
    if kind == "MaxPool" and _outputs(node) > 1:
        yield "is a MaxPool whose indices are used"
    if kind == "LayerNormalization" and _outputs(node) > 1:
        yield "is a LayerNormalization whose mean or deviation is used"
    if kind == "Resize":
        mode, where = said.get("mode", b"nearest"), said.get("coordinate_transformation_mode", b"half_pixel")
        if mode.decode() not in ("nearest", "linear") or said.get("antialias", 0):
            yield f"is a Resize with mode {mode.decode()}{' and antialias' if said.get('antialias') else ''}"
        if where.decode() not in _COORDINATES:
            yield f"is a Resize with coordinates {where.decode()}"
    if kind == "TopK":
        count = _value(node, 1, constants)
        if not said.get("sorted", 1):
            yield "is a TopK with sorted = 0"
        if count is not None and int(count.max()) >= MAX_TOP_K:
            yield f"is a TopK of {int(count.max())}, TensorRT sorts fewer than {MAX_TOP_K}"
    if kind == "LSTM" and (said.get("input_forget", 0) or said.get("layout", 0)):
        yield "is an LSTM with input_forget or layout"
    if kind == "ScatterND" and said.get("reduction", b"none") != b"none":
        yield f"is a ScatterND with reduction {said['reduction'].decode()}"
    if kind.startswith("Reduce") and len(node.input) > 1 and node.input[1] not in ("", *constants):
        yield f"is a {kind} whose axes are computed"


def _quantization(
    node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]], makers: Mapping[str, Any]
) -> Iterator[str]:
    """Symmetric and signed; a scale per channel for weights only, along their output channels."""
    kind = node.op_type
    scale, zero = _value(node, 1, constants), _value(node, 2, constants)
    if scale is None:
        yield f"is a {kind} whose scale is computed"
        return
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        yield f"is a {kind} with a scale that is not positive"
    if zero is None and kind == "QuantizeLinear" and "output_dtype" not in _attributes(node):
        yield "is a QuantizeLinear to uint8, TensorRT's int8 is signed"
    elif zero is not None and zero.dtype != np.int8:
        yield f"is a {kind} with {zero.dtype} values, TensorRT's int8 is signed"
    elif zero is not None and np.any(zero):
        yield f"is a {kind} with zero point {int(np.abs(zero).max())}, TensorRT's int8 is symmetric"
    if scale.size > 1:
        yield from _per_channel(node, constants, readers, makers)


def _per_channel(
    node: Any, constants: Mapping[str, Any], readers: Mapping[str, list[Any]], makers: Mapping[str, Any]
) -> Iterator[str]:
    weight = node.input[0] in constants or (
        node.input[0] in makers and makers[node.input[0]].input[0] in constants
    )
    if not weight:
        yield f"is a {node.op_type} of an activation with a scale per channel, TensorRT wants one scale"
        return
    axis = int(_attributes(node).get("axis", 1))
    for reader in readers.get(node.output[0], []):
        wanted = _channel_axis(reader)
        if wanted is not None and axis not in (wanted, wanted - _rank(node, constants, makers)):
            yield (
                f"scales the weight of {reader.name or reader.op_type} along axis {axis}, "
                f"its output channels are axis {wanted}"
            )


def _channel_axis(reader: Any) -> int | None:
    if reader.op_type == "Gemm":
        return 0 if _attributes(reader).get("transB", 0) else 1
    return 1 if reader.op_type == "MatMul" else _CHANNEL_AXIS.get(reader.op_type)


def _rank(node: Any, constants: Mapping[str, Any], makers: Mapping[str, Any]) -> int:
    name = node.input[0] if node.input[0] in constants else makers[node.input[0]].input[0]
    return len(constants[name].dims)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {one.name: helper.get_attribute_value(one) for one in node.attribute}


def _value(node: Any, place: int, constants: Mapping[str, Any]) -> Any:
    """The constant at one of the node's inputs; None where there is none."""
    from onnx import numpy_helper

    if len(node.input) <= place or node.input[place] not in constants:
        return None
    return numpy_helper.to_array(constants[node.input[place]])


def _outputs(node: Any) -> int:
    return sum(bool(name) for name in node.output)
