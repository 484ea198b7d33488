"""TensorRT: an ONNX graph in the wanted precision, and a plan from which the device builds its own engine.

TensorRT's engines belong to one GPU, driver and version, so none is built here, and TensorRT itself need not
be installed: ONNX Runtime answers in its place, on the same graph (`stand_in`). int8 is explicit, as
TensorRT wants it: signed and symmetric, q = round(x / scale) with scale = max|x| / 127, per output channel
for weights (Jacob et al. 2018, arXiv:1712.05877, with zero point 0); biases and all between stay fp32.

Three of a target's options are for the engine's builder, the others for the device:
    max_batch            int   rows of one inference at most; default 8
    workspace_mib        int   scratch memory of a kernel; default 512
    optimization_level   int   0 to 5; default 3
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from edgekit import codec
from edgekit.backends import _ort_quantizer, _trt_rules
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value, versions
from edgekit.backends._graph import WEIGHTED, facts, kept
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import _trt_plan as plans
from edgekit.runtimes._trt_plan import Plan, Range, Tensor

_NAME = "tensorrt"
_BUILDER_OPTIONS = ("max_batch", "workspace_mib", "optimization_level")
_MAX_BATCH = 8
_QUANTIZED = ["Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "MaxPool", "AveragePool", "GlobalAveragePool"]
"""Operators that have int8 kernels worth having. Their inputs are quantized, not their outputs: TensorRT
fuses what follows (NVIDIA's guide, "Q/DQ Placement Recommendations")."""


class Engine:
    """The onnx and onnxruntime packages; TensorRT is on the device."""

    runtime = _NAME
    stand_in = "onnxruntime"

    def lend(
        self, files: Mapping[str, bytes], options: Mapping[str, Value]
    ) -> tuple[dict[str, bytes], dict[str, Value]]:
        """The graph alone: the plan, and options, mean nothing to onnxruntime."""
        del options
        return {"model.onnx": files["model.onnx"]}, {"intra_threads": 1}

    def tools(self) -> dict[str, str]:
        return versions(_NAME, ("onnxruntime", "onnx"))

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        ours = {key: value for key, value in target.options.items() if key in _BUILDER_OPTIONS}
        device = {key: value for key, value in target.options.items() if key not in _BUILDER_OPTIONS}
        if precision in ("fp32", "fp16"):
            yield Recipe(_NAME, precision, ours, device)
        elif precision == "int8":
            # A symmetric range must not reach for one outlier (keyword spotter: .910 against .904).
            for method in dict.fromkeys(("percentile", policy.method, "minmax", "entropy")):
                yield Recipe(_NAME, precision, {**ours, "method": method}, device, needs_calibration=True)

    def layers(self, model: SourceModel) -> list[str]:
        return list(facts(model).layers)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        """`model.onnx` and `plan.json`. Raises EngineError naming the first node TensorRT would refuse."""
        import onnx

        try:
            source = onnx.ModelProto.FromString(model.onnx)
            _refuse(recipe, source)
            made = _graph(model, source, recipe, calibration)
            if made is not model.onnx:
                _refuse(recipe, onnx.ModelProto.FromString(made))
        except EngineError:
            raise
        except Exception as exc:  # the quantizer raises whatever its parts raise
            raise EngineError(f"{recipe.name}: cannot build: {type(exc).__name__}: {exc}") from None
        plan = _plan(model, recipe, sparse_weights=any(map(_two_of_four, _weights(source))))
        return {"model.onnx": made, "plan.json": codec.to_json(plan)}


def _graph(model: SourceModel, source: Any, recipe: Recipe, calibration: Calibration) -> bytes:
    if recipe.precision == "fp32":
        return model.onnx
    if recipe.precision == "fp16":
        return _ort_quantizer.half(model.onnx)
    return _ort_quantizer.calibrated(
        model.onnx,
        calibration,
        method=str(recipe.options["method"]),
        keep=[*kept(recipe.options), *_biases(source)],
        only=_QUANTIZED,
        settings={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": _QUANTIZED,
        },
    )


def _refuse(recipe: Recipe, model: Any) -> None:
    """Raises EngineError for what breaks a rule; the stand-in has loaded this very graph, so it takes it."""
    found = list(_trt_rules.problems(model))
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise EngineError(
            f"{recipe.name}: {found[0].node} {found[0].reason}{more}",
            f"{Engine.stand_in} runs this model: list it in the profile, or replace the node",
        )


def _plan(model: SourceModel, recipe: Recipe, *, sparse_weights: bool) -> Plan:
    numbers = {key: recipe.options[key] for key in _BUILDER_OPTIONS if key in recipe.options}
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < (key != "optimization_level"):
            raise EngineError(f"{_NAME}: option {key!r} cannot be {value!r}")
    most = int(numbers.get("max_batch", _MAX_BATCH))
    made = Plan(
        precision=recipe.precision,
        inputs=tuple(map(_tensor, model.inputs)),
        outputs=tuple(map(_tensor, model.outputs)),
        ranges=tuple(_range(item, most) for item in model.inputs if -1 in item.shape),
        workspace_mib=int(numbers.get("workspace_mib", Plan.workspace_mib)),
        optimization_level=int(numbers.get("optimization_level", Plan.optimization_level)),
        sparse_weights=sparse_weights,
    )
    return plans.parse(codec.to_json(made))  # never ship what the device would refuse


def _tensor(item: TensorSpec) -> Tensor:
    if item.datatype not in _trt_rules.PORT_TYPES:
        raise EngineError(
            f"{_NAME}: {item.name!r} is {item.datatype}", f"TensorRT takes {', '.join(_trt_rules.PORT_TYPES)}"
        )
    return Tensor(item.name, item.datatype, item.shape)


def _range(item: TensorSpec, most: int) -> Range:
    if -1 in item.shape[1:]:
        raise EngineError(
            f"{_NAME}: input {item.name!r} has an open dimension besides the batch: {list(item.shape)}",
            "export it with a fixed size",
        )
    one, largest = (1, *item.shape[1:]), (most, *item.shape[1:])
    return Range(item.name, one, one, largest)


def _biases(model: Any) -> list[str]:
    """Additions of a constant: part of a layer's bias, not a joint of two branches."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "Add" and constants & set(node.input)]


def _weights(model: Any) -> Iterator[Any]:
    """Constant weights of layers, each with the axis that is summed over last."""
    from onnx import helper, numpy_helper

    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in WEIGHTED or node.input[1] not in tensors:
            continue
        values = numpy_helper.to_array(tensors[node.input[1]])
        transposed = any(a.name == "transB" and helper.get_attribute_value(a) for a in node.attribute)
        summed = 1 if node.op_type == "Conv" or transposed else 0
        if values.ndim >= 2:
            yield np.moveaxis(values, summed if node.op_type != "MatMul" else -2, -1)


def _two_of_four(weights: Any) -> bool:
    """At most two of each four neighbours along the summed axis are not zero (NVIDIA's 2:4 pattern)."""
    if weights.shape[-1] % 4 or not weights.any():
        return False
    groups = weights.reshape(-1, 4)
    return bool(np.all(np.count_nonzero(groups, axis=1) <= 2))


BACKEND: Backend = Engine()
