"""Ranking and giving back, on a network with one layer that int8 ruins."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, profile
from edgekit.backends import Recipe, SourceModel, TensorSpec
from edgekit.build import mixed, sensitivity
from edgekit.build.forecast import macs_of
from edgekit.build.mixed import Mixing
from edgekit.build.sensitivity import LayerError

pytestmark = pytest.mark.filterwarnings("ignore")
WIDTH, DEPTH, CLASSES = 16, 6, 4
RECIPE = Recipe(
    "onnxruntime",
    "int8",
    {"reduce_range": False, "activation": "u8", "method": "minmax"},
    needs_calibration=True,
)


def fragile() -> SourceModel:
    """Layers 0 to 6. Layer 0 reads an input whose last number is a thousand times the others and does not
    matter: it makes 8-bit steps so coarse that the others vanish."""
    random = np.random.default_rng(5)
    sizes = [(WIDTH + 1, WIDTH), *[(WIDTH, WIDTH)] * (DEPTH - 1), (WIDTH, CLASSES)]
    weights, nodes, current = [], [], "x"
    for i, size in enumerate(sizes):
        matrix = random.normal(0, np.sqrt(2 / WIDTH), size).astype(np.float32)
        if i == 0:
            matrix[-1] = 0
        weights += [numpy_helper.from_array(matrix, f"w{i}")]
        weights += [numpy_helper.from_array(np.zeros(size[1], np.float32), f"b{i}")]
        last = i == len(sizes) - 1
        nodes.append(
            helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], ["y" if last else f"h{i}"], f"l{i}")
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"h{i}"], [f"r{i}"], f"relu{i}"))
        current = f"r{i}"
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH + 1]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES]),
    ]
    graph = helper.make_graph(nodes, "fragile", ports[:1], ports[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return SourceModel(
        proto.SerializeToString(),
        (TensorSpec("x", "FP32", (-1, WIDTH + 1)),),
        (TensorSpec("y", "FP32", (-1, CLASSES)),),
    )


def rows(count: int, seed: int) -> dict[str, NDArray[Any]]:
    values = np.random.default_rng(seed).normal(0, 1, (count, WIDTH + 1)).astype(np.float32)
    values[:, -1] *= 1000
    return {"x": values}


@pytest.fixture(scope="module")
def quantized() -> bytes:
    return backends.get("onnxruntime").build(fragile(), RECIPE, rows(64, 1))["model.onnx"]


def test_the_sensitive_layer_ranks_first_by_far(quantized: bytes) -> None:
    found = sensitivity.rank(fragile(), quantized, rows(8, 2)).layers
    assert found[0].name == "l0"
    assert found[0].op == "Gemm"
    assert found[0].sqnr_db + 10 < found[1].sqnr_db
    assert {layer.name for layer in found} >= {f"l{i}" for i in range(DEPTH + 1)}


def test_a_model_of_many_layers_is_ranked_in_groups(
    quantized: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "MAX_TRIALS", 4)
    found = {layer.name: layer.sqnr_db for layer in sensitivity.rank(fragile(), quantized, rows(8, 2)).layers}
    assert found["l0"] == found["l1"] == min(found.values())
    assert found["l4"] == found["l5"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_giving_it_back_brings_the_answers_back(engine: str) -> None:
    from edgekit import runtimes

    model, some = fragile(), rows(100, 3)
    backend = backends.get(engine)
    target = next(t for t in profile.get("intel-nuc").target if t.runtime == engine)
    recipes = list(backend.recipes("int8", target, profile.get("intel-nuc").calibration))
    recipe = next(r for r in recipes if "transformer" not in r.options and "only" not in r.options)

    def answers(made: dict[str, bytes]) -> NDArray[Any]:
        session = runtimes.get(engine).load(made, target.options)
        out = session.run(some)["y"]
        session.close()
        return out

    truth = answers(backend.build(model, next(iter(backend.recipes("fp32", target, _policy()))), {}))
    plain = answers(backend.build(model, recipe, rows(64, 1)))
    saved = answers(backend.build(model, Mixing(recipe, ("l0",)).keeping(1), rows(64, 1)))

    def agreement(one: NDArray[Any]) -> float:
        return float(np.mean(one.argmax(1) == truth.argmax(1)))

    assert agreement(plain) < 0.8 < 0.9 < agreement(saved)


def _policy() -> Any:
    return profile.get("intel-nuc").calibration


def test_cheap_layers_go_before_dear_ones_that_spoil_as_much() -> None:
    found = (
        LayerError("dear", "Conv", 20.0),
        LayerError("cheap", "Conv", 20.0),
        LayerError("fine", "Conv", 60.0),
    )
    assert mixed.order(found, {"dear": 90, "cheap": 5, "fine": 5}) == ("cheap", "dear", "fine")


def test_an_exact_layer_is_given_back_last_however_cheap_it_is() -> None:
    found = (LayerError("dear", "Conv", 10.0), LayerError("exact", "Add", sensitivity.EXACT_DB))
    assert mixed.order(found, {"dear": 1000}) == ("dear", "exact")


@pytest.mark.parametrize(
    ("layers", "counts"), [(1, [1]), (2, [1]), (7, [1, 2]), (16, [1, 2, 4, 8]), (121, [8, 16, 32])]
)
def test_keep_sets_grow_to_half_of_the_layers(layers: int, counts: list[int]) -> None:
    mixing = Mixing(RECIPE, tuple(f"l{i}" for i in range(layers)))
    assert list(mixing.counts()) == counts
    assert mixing.keeping(1).options["keep"] == "l0"
    assert mixing.left(1, [LayerError("l0", "Conv", 1.0), LayerError("l1", "Conv", 2.0)])[0].name == "l1"


def test_arithmetic_by_node_adds_up() -> None:
    counted = macs_of(fragile())
    assert counted["l0"] == (WIDTH + 1) * WIDTH
    assert counted["relu0"] == 0
    assert sum(counted.values()) == (WIDTH + 1) * WIDTH + (DEPTH - 1) * WIDTH * WIDTH + WIDTH * CLASSES
