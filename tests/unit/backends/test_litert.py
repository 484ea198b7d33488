"""What LiteRT's backend makes and what it refuses, on small graphs made here."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, runtimes
from edgekit.backends import Layered, Recipe, SourceModel
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.profile import PRECISIONS, CalibrationPolicy, Target, get

pytestmark = pytest.mark.xdist_group("litert")

BACKEND = backends.get("litert")
RNG = np.random.default_rng(11)
ROWS = RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)


def model(nodes: list[onnx.NodeProto], weights: dict[str, NDArray[Any]], *shape: int) -> SourceModel:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    port = TensorSpec("x", "FP32", (-1, *shape))
    return SourceModel(proto.SerializeToString(), (port,), (TensorSpec("y", "FP32", (-1, 1)),))


def network(scale: float = 0.2, group: int = 1) -> SourceModel:
    """Two convolutions and a product, with names as exporters give them."""
    weights = {
        "w1": RNG.normal(size=(8, 3, 3, 3)) * scale,
        "w2": RNG.normal(size=(8, 8 // group, 3, 3)) * scale,
        "w3": RNG.normal(size=(8, 4)) * scale,
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="/stem/Conv:0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="/stem/Relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="/body/Conv", pads=[1, 1, 1, 1], group=group),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="/head/MatMul"),
    ]
    return model(nodes, weights, 3, 8, 8)


def recipe(precision: str, **options: str) -> Recipe:
    return Recipe("litert", precision, dict(options), {}, needs_calibration=precision in ("int8", "int16x8"))


def build(source: SourceModel, wanted: Recipe) -> dict[str, bytes]:
    return BACKEND.build(source, wanted, {"x": ROWS} if wanted.needs_calibration else {})


def weights_of(files: dict[str, bytes]) -> dict[str, str]:
    """Name of each weight inside the file to its type."""
    interpreter = Interpreter(model_content=files["model.tflite"])
    names = ("conv_filter", "depthwise_filter", "_weight")
    return {
        detail["name"]: np.dtype(detail["dtype"]).name
        for detail in interpreter.get_tensor_details()
        if detail["name"].endswith(names)
    }


def answer(files: dict[str, bytes]) -> NDArray[Any]:
    return runtimes.get("litert").load(files, {}).run({"x": ROWS})["y"]


def test_kept_layers_stay_in_floating_point() -> None:
    source = network()
    assert isinstance(BACKEND, Layered)
    assert BACKEND.layers(source) == ["/stem/Conv:0", "/body/Conv", "/head/MatMul"]
    plain = build(source, recipe("int8"))
    mixed = build(source, recipe("int8", keep="/stem/Conv:0\n/head/MatMul"))
    assert sorted(weights_of(plain).values()) == ["int8"] * 3
    assert sorted(weights_of(mixed).values()) == ["float32", "float32", "int8"]
    (only,) = [name for name, dtype in weights_of(mixed).items() if dtype == "int8"]
    assert "n2" in only, "the third node, /body/Conv, is the one that was not kept"
    fp32 = answer(build(source, recipe("fp32")))
    assert np.abs(answer(mixed) - fp32).max() < np.abs(answer(plain) - fp32).max()
    with pytest.raises(EngineError, match="none of the layers to keep is left"):
        build(source, recipe("int8", keep="/stem/Relu"))


def test_an_older_engine_gets_what_it_computes_rightly() -> None:
    def names(target: Target) -> set[str]:
        made = [r for p in PRECISIONS for r in BACKEND.recipes(p, target, CalibrationPolicy())]
        assert all("implementation" not in one.runtime_options for one in made)
        return {one.precision for one in made}

    assert names(Target("litert", PRECISIONS)) == set(PRECISIONS)
    (old,) = [target for target in get("raspberry-pi-3").target if target.runtime == "litert"]
    assert names(old) == {"fp32", "int8", "int8-weights"} == set(old.precisions)


def test_dynamic_int8_is_not_worth_trying_for_depthwise_convolutions() -> None:
    assert isinstance(BACKEND, backends.Selective)
    assert BACKEND.worth(network(), recipe("int8-dynamic")) == ""
    assert "no fast dynamic int8" in BACKEND.worth(network(group=8), recipe("int8-dynamic"))
    assert BACKEND.worth(network(group=8), recipe("int8")) == ""


def attention() -> SourceModel:
    nodes = [
        helper.make_node("MatMul", ["x", "wq"], ["q"], name="q"),
        helper.make_node("Transpose", ["x"], ["k"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "k"], ["s"], name="scores"),
        helper.make_node("Softmax", ["s"], ["a"], axis=-1),
        helper.make_node("MatMul", ["a", "x"], ["y"], name="mix"),
    ]
    return model(nodes, {"wq": RNG.normal(size=(8, 8))}, 4, 8)


def test_transformers_get_their_products_quantized_and_nothing_else() -> None:
    assert isinstance(BACKEND, backends.Selective)
    plain, products = BACKEND.recipes("int8", Target("litert", ("int8",)), CalibrationPolicy())
    assert products.name == "litert.int8-only.products"
    assert "attention" in BACKEND.worth(attention(), plain)
    assert BACKEND.worth(attention(), products) == ""
    assert BACKEND.worth(network(), plain) == ""
    assert "convolutions" in BACKEND.worth(network(), products)
    types = weights_of(build(network(), products))
    assert sorted(types.values()) == ["float32", "float32", "int8"]
    assert types["edgekit_n5_weight"] == "int8"


def test_weights_beyond_half_precision_are_refused() -> None:
    with pytest.raises(EngineError, match=r"litert\.fp16: the fp16 model answers NaN or infinity") as caught:
        build(network(scale=1e5), recipe("fp16"))
    assert "int8-weights" in caught.value.hint


def test_a_size_that_is_open_besides_the_batch_is_refused() -> None:
    source = network()
    loose = SourceModel(source.onnx, (TensorSpec("x", "FP32", (-1, 3, -1, 8)),), source.outputs)
    with pytest.raises(EngineError, match=r"litert\.fp32: input 'x' has an open dimension besides the batch"):
        build(loose, recipe("fp32"))


def test_an_operator_that_litert_lacks_is_named_with_its_node() -> None:
    odd = helper.make_node("Scaler", ["x"], ["y"], name="/odd/Scaler", domain="ai.onnx.ml")
    odd.attribute.extend([helper.make_attribute("offset", [0.5]), helper.make_attribute("scale", [2.0])])
    with pytest.raises(EngineError, match=r"litert\.fp32: .*no operator Scaler.*'/odd/Scaler'") as caught:
        build(model([odd], {}, 3), recipe("fp32"))
    assert "onnxruntime" in caught.value.hint
