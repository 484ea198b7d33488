"""What is built for TensorRT, on real models: the graph's quantization, the plan, what is refused."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends
from edgekit.backends import Recipe, SourceModel, _trt_rules
from edgekit.build import sources
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import _trt_plan
from tests.unit.runtimes import kws

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("backends")]

BACKEND = backends.get("tensorrt")
RESNET = Path(__file__).parents[4] / "shared" / "data" / "cifar10-resnet20" / "resnet20.onnx"
KWS = Path(__file__).parents[3] / "examples" / "kws" / "kws_fp32.onnx"


@cache
def source(name: str) -> SourceModel:
    path = KWS if name == "kws" else RESNET
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return sources.load(path)


@cache
def built(name: str, precision: str) -> dict[str, bytes]:
    model = source(name)
    item = model.inputs[0]
    rows = np.random.default_rng(1).normal(size=(16, *item.shape[1:])).astype(np.float32)
    return BACKEND.build(model, recipe(precision), {item.name: rows})


def recipe(precision: str, **options: Any) -> Recipe:
    target = Target("tensorrt", ("fp32", "fp16", "int8"), options=options)
    return next(iter(BACKEND.recipes(precision, target, CalibrationPolicy())))


def graph(files: dict[str, bytes]) -> Any:
    return onnx.load_model_from_string(files["model.onnx"]).graph


@pytest.mark.parametrize("name", ["kws", "resnet20"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_real_models_keep_every_rule(name: str, precision: str) -> None:
    files = built(name, precision)
    assert set(files) == {"model.onnx", "plan.json"}
    assert list(_trt_rules.problems(onnx.load_model_from_string(files["model.onnx"]))) == []


@pytest.mark.parametrize(("name", "layers"), [("kws", 10), ("resnet20", 20)])
def test_int8_is_explicit_symmetric_and_per_channel(name: str, layers: int) -> None:
    found = graph(built(name, "int8"))
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.initializer}
    makers = {output: node for node in found.node for output in node.output}
    quantizers = [node for node in found.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert {values[node.input[2]].dtype for node in quantizers} == {np.dtype(np.int8)}
    assert not any(values[node.input[2]].any() for node in quantizers)
    weighted = [node for node in found.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    assert len(weighted) >= layers
    for node in weighted:
        dequantize = makers[node.input[1]]
        quantize = makers[dequantize.input[0]]
        assert (dequantize.op_type, quantize.op_type) == ("DequantizeLinear", "QuantizeLinear")
        weight, scale = values[quantize.input[0]], values[quantize.input[1]]
        assert weight.dtype == np.float32, "TensorRT quantizes the weights itself"
        channels = weight.shape[0] if node.op_type == "Conv" else scale.size
        assert scale.size == channels
        assert all(makers[one].op_type != "DequantizeLinear" for one in node.input[2:] if one in makers)


def test_a_layer_may_stay_in_floating_point() -> None:
    model = source("kws")
    assert isinstance(BACKEND, backends.Layered)
    (first, *_) = BACKEND.layers(model)
    base = recipe("int8")
    kept = dataclasses.replace(base, options={**base.options, "keep": first})
    rows = np.random.default_rng(1).normal(size=(4, 49, 10, 1)).astype(np.float32)
    found = graph(BACKEND.build(model, kept, {model.inputs[0].name: rows}))
    makers = {output: node for node in found.node for output in node.output}
    node = next(node for node in found.node if node.name == first)
    assert node.input[1] not in makers or makers[node.input[1]].op_type != "DequantizeLinear"


def test_the_plan_says_how_to_build() -> None:
    plan = _trt_plan.parse(built("kws", "int8")["plan.json"])
    assert (plan.precision, plan.strongly_typed, plan.tf32, plan.sparse_weights) == (
        "int8",
        True,
        False,
        False,
    )
    (one,) = plan.ranges
    assert (one.input, one.minimum, one.maximum) == (kws.INPUT, (1, 49, 10, 1), (8, 49, 10, 1))
    assert plan.max_batch == 8
    asked = recipe("fp16", max_batch=3, workspace_mib=64, fallback="cpu")
    assert asked.runtime_options == {"fallback": "cpu"}, "what the device decides does not change the files"
    plan = _trt_plan.parse(BACKEND.build(source("kws"), asked, {})["plan.json"])
    assert (plan.max_batch, plan.workspace_mib, plan.precision) == (3, 64, "fp16")


def test_two_of_four_weights_ask_for_sparse_kernels() -> None:
    weight = np.random.default_rng(0).normal(size=(8, 8, 1, 1)).astype(np.float32)
    dense = BACKEND.build(_conv(weight), recipe("fp32"), {})
    assert not _trt_plan.parse(dense["plan.json"]).sparse_weights
    weight.reshape(8, 2, 4)[:, :, 1:3] = 0
    sparse = BACKEND.build(_conv(weight), recipe("fp32"), {})
    assert _trt_plan.parse(sparse["plan.json"]).sparse_weights


@pytest.mark.parametrize("options", [{"max_batch": 0}, {"workspace_mib": "1"}, {"optimization_level": 9}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match="tensorrt: "):
        BACKEND.build(source("kws"), recipe("fp32", **options), {})


def test_what_onnxruntime_would_make_for_a_cpu_is_refused() -> None:
    """Unsigned activations with zero points: right for x86, not for TensorRT."""
    target = Target("onnxruntime", ("int8",), activation="u8")
    backend = backends.get("onnxruntime")
    model = source("kws")
    rows = np.random.default_rng(1).normal(size=(8, 49, 10, 1)).astype(np.float32)
    other = next(iter(backend.recipes("int8", target, CalibrationPolicy())))
    files = backend.build(model, other, {model.inputs[0].name: rows})
    found = list(_trt_rules.problems(onnx.load_model_from_string(files["model.onnx"])))
    assert any("TensorRT's int8 is signed" in one.reason for one in found)
    assert all(one.node for one in found)


def test_an_operator_that_the_parser_does_not_know_is_named() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node("Det", ["a"], ["y"], name="the_bad_one"),
    ]
    with pytest.raises(EngineError, match="the_bad_one is a Det") as error:
        BACKEND.build(_model(nodes, (2, 2), ()), recipe("fp32"), {})
    assert error.value.hint.startswith("onnxruntime runs this model")


def _quantize(zero: Any, scale: Any = 0.1, **attributes: Any) -> list[Any]:
    zeros = numpy_helper.from_array(np.array(zero), "zero")
    scales = numpy_helper.from_array(np.array(scale, np.float32), "scale")
    return [
        helper.make_node("Constant", [], ["zero"], value=zeros),
        helper.make_node("Constant", [], ["scale"], value=scales),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="Q", **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="DQ", **attributes),
    ]


BAD: list[tuple[str, list[Any], str]] = [
    ("unsigned", _quantize(np.uint8(0)), "Q .* signed"),
    ("zero point", _quantize(np.int8(3)), "Q .* zero point 3"),
    ("scale", _quantize(np.int8(0), -1.0), "Q .* not positive"),
    ("per channel", _quantize(np.zeros(4, np.int8), np.ones(4), axis=1), "Q .* activation .* per channel"),
    ("domain", [helper.make_node("Gelu", ["x"], ["y"], name="n", domain="com.x")], r"n .*com\.x"),
    ("pool", [helper.make_node("MaxPool", ["x"], ["y"], name="n", kernel_shape=[2])], "n .*1 dimension"),
    ("resize", [helper.make_node("Resize", ["x", "", "s"], ["y"], name="n", mode="cubic")], "n .*cubic"),
    ("top k", [helper.make_node("TopK", ["x", "k"], ["y", "i"], name="n", sorted=0)], "n .*sorted"),
    ("indices", [helper.make_node("MaxPool", ["x"], ["y", "i"], name="n", kernel_shape=[1, 1])], "indices"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "words"), [(nodes, words) for _, nodes, words in BAD], ids=[n for n, *_ in BAD]
)
def test_rules(nodes: list[Any], words: str) -> None:
    model = onnx.load_model_from_string(_model(nodes, (4, 4), (4, 4)).onnx)
    found = [f"{one.node} {one.reason}" for one in _trt_rules.problems(model)]
    assert any(re.search(words, line) for line in found), found


def test_a_weight_scaled_along_the_wrong_axis() -> None:
    weight = np.ones((4, 4, 1, 1), np.float32)
    scales = numpy_helper.from_array(np.ones(4, np.float32), "s")
    zeros = numpy_helper.from_array(np.zeros(4, np.int8), "z")
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], name="Q", axis=1),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="DQ", axis=1),
        helper.make_node("Conv", ["x", "d"], ["y"], name="conv"),
    ]
    tensors = [numpy_helper.from_array(weight, "w"), scales, zeros]
    model = onnx.load_model_from_string(_model(nodes, (4, 3, 3), (4, 3, 3), tensors).onnx)
    (one,) = _trt_rules.problems(model)
    assert (one.node, "conv along axis 1" in one.reason) == ("DQ", True)


def test_an_open_dimension_besides_the_batch() -> None:
    model = source("kws")
    wide = SourceModel(
        model.onnx, (TensorSpec(model.inputs[0].name, "FP32", (-1, -1, 10, 1)),), model.outputs
    )
    with pytest.raises(EngineError, match="open dimension besides the batch"):
        BACKEND.build(wide, recipe("fp32"), {})


def _conv(weight: Any) -> SourceModel:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    shape = (weight.shape[1], 4, 4)
    return _model(nodes, shape, (weight.shape[0], 4, 4), [numpy_helper.from_array(weight, "w")])


def _model(
    nodes: list[Any], shape: tuple[int, ...], out: tuple[int, ...], tensors: list[Any] | None = None
) -> SourceModel:
    def value(name: str, sizes: tuple[int, ...]) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *sizes])

    made = helper.make_graph(nodes, "g", [value("x", shape)], [value("y", out)], tensors or [])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    inputs, outputs = (TensorSpec("x", "FP32", (-1, *shape)),), (TensorSpec("y", "FP32", (-1, *out)),)
    return SourceModel(model.SerializeToString(), inputs, outputs)
