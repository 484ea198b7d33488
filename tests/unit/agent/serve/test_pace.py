"""When requests may share a run: only where it pays and where nobody's answer depends on his neighbours."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import runtimes
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit_agent.serve import engine
from edgekit_agent.serve.pace import Pace, joinable, measure
from tests.support.serving import Candidate, candidate, config, linear

WIDTH = 32


def measured(made: Candidate, session: runtimes.Session, *, run_ms: float = 0.02, most: int = 16) -> Pace:
    return measure(session, made.load.config, made.load.golden, made.golden, run_ms, most)


class Engine:
    """y = x, at a price, and perhaps with a flaw."""

    thread_safe = True

    def __init__(self, *, base_s: float = 0.0, row_s: float = 0.0, flaw: str = "") -> None:
        self.base_s, self.row_s, self.flaw = base_s, row_s, flaw
        self.sizes: list[int] = []

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.sizes.append(len(x))
        time.sleep(self.base_s + self.row_s * len(x))
        if self.flaw == "refuses" and len(x) > 1:
            raise EngineError("a batch of 1, please")
        if self.flaw == "one row":
            x = x[:1]
        if self.flaw == "neighbours":
            x = x * (1 + 1e-3 * len(x))
        if self.flaw == "nan" and len(x) > 1:
            x = x * np.float32("nan")
        return {"y": x}

    def coverage(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def test_a_run_that_costs_the_same_for_many_rows_is_shared() -> None:
    pace = measured(linear(), Engine(base_s=0.002), run_ms=2.0)
    assert pace.batch == 16 and 1.9 < pace.batch_ms < 20


def test_rows_that_cost_the_same_each_are_not_joined_and_large_batches_not_even_tried() -> None:
    slow = Engine(row_s=0.005)
    assert measured(linear(), slow, run_ms=5.0).batch == 1
    assert max(slow.sizes) == 2


@pytest.mark.parametrize("flaw", ["refuses", "one row", "neighbours", "nan"])
def test_answers_that_change_in_company_forbid_it(flaw: str) -> None:
    assert measured(linear(), Engine(base_s=0.001, flaw=flaw), run_ms=1.0) == Pace(1.0)


def test_fixed_dimensions_forbid_it() -> None:
    specs = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (4,))
    assert not joinable(config("reference", (specs[0],), (specs[1],), ("m",)))
    assert joinable(config("reference", (specs[0],), (specs[0],), ("m",)))


def test_scales_taken_over_the_whole_batch_are_found_out() -> None:
    """Dynamic quantization on a real engine: the row with the largest number decides how all are rounded."""
    random = np.random.default_rng(0)
    weight = random.integers(-100, 100, (WIDTH, 8)).astype(np.int8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["y"]),
    ]
    made = onnx_candidate(nodes, {"w": weight}, random)
    session = runtimes.get("onnxruntime").load(made.files, {"intra_threads": 1})
    try:
        assert measured(made, session).batch == 1
    finally:
        session.close()


def test_a_perceptron_is_joined_on_a_real_engine() -> None:
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((WIDTH, 4096)).astype(np.float32)}
    weights["v"] = random.standard_normal((4096, 8)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    made = onnx_candidate(nodes, weights, random)
    with made.memory() as fds:
        proven = engine.load(made.load, fds, most=8)
        alone = engine.load(made.load, fds)
    proven.session.close()
    alone.session.close()
    assert proven.pace.batch > 1 and alone.pace.batch == 1


def onnx_candidate(
    nodes: list[onnx.NodeProto], weights: dict[str, Array], random: np.random.Generator
) -> Candidate:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = (TensorSpec("x", "FP32", (-1, WIDTH)),), (TensorSpec("y", "FP32", (-1, 8)),)
    made = config("onnxruntime", *specs, ("model.onnx",), options={"intra_threads": 1})
    rows = (random.standard_normal((4, WIDTH)) * [[1], [2], [5], [3]]).astype(np.float32)
    return candidate(made, {"model.onnx": model.SerializeToString()}, {"x": rows})


def test_estimates_pass_through_what_was_measured() -> None:
    assert Pace(2.0).estimate_ms(3) == 6.0
    pace = Pace(1.0, 8, 4.5)
    assert [pace.estimate_ms(samples) for samples in (1, 8, 16)] == [1.0, 4.5, 9.0]
    assert pace.estimate_ms(2) == 1.5
