"""When requests may share a run: only where it pays and where nobody's answer depends on his neighbours."""

from __future__ import annotations

import math
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
from edgekit.runtimes._pace import Pace, Ran, joinable, measure, trials
from edgekit_agent.messages import Pacing
from edgekit_agent.serve import engine
from tests.support.serving import Candidate, candidate, config, linear

WIDTH = 32


def measured(
    made: Candidate, session: runtimes.Session, *, most: int = 16, longest_ms: float = math.inf
) -> Pace:
    return measure(session, trials(made.load.golden, made.golden, most, longest_ms))


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
        if self.flaw == "broken":
            raise EngineError("broken")
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
    pace = measured(linear(), Engine(base_s=0.002))
    assert pace.batch == 16 and 1.9 < pace.batch_ms < 200 and 1.9 < pace.run_ms < 200


def paced(run_ms: Mapping[int, float], disturbed: range) -> Pace:
    """What a clock would say of rows that are answered as they came; ten times as long in these runs."""
    made = linear()
    runs = trials(made.load.golden, made.golden, 16)
    inputs, number = next(runs), 0
    try:
        while True:
            x = inputs["x"]
            ms = run_ms[len(x)] * (10 if number in disturbed else 1)
            inputs, number = runs.send(Ran({"y": x}, ms)), number + 1
    except StopIteration as end:
        assert isinstance(end.value, Pace)
        return end.value


def test_a_disturbance_does_not_forbid_it_for_good() -> None:
    """Whatever runs are slow for a while because something else has the processor."""
    shared = {1: 0.1, 2: 0.11, 4: 0.12, 8: 0.13, 16: 0.15}
    for begin in range(40):
        assert paced(shared, range(begin, begin + 12)).batch == 16
    assert paced({1: 0.1, 2: 0.2}, range(0)).batch == 1


def test_a_disturbance_does_not_allow_it_either() -> None:
    """Single runs that were slow for a while make joined ones look cheap."""
    alike = {size: 0.1 * size for size in (1, 2, 4, 8, 16)}
    for end in range(40):
        assert paced(alike, range(end)).batch == 1


def test_runs_that_would_keep_others_waiting_are_not_tried() -> None:
    slow = Engine(base_s=0.02)
    assert measured(linear(), slow, longest_ms=30).batch == 1
    assert max(slow.sizes) == 1


def test_an_engine_that_runs_nothing_is_an_error() -> None:
    with pytest.raises(EngineError, match="broken"):
        measured(linear(), Engine(flaw="broken"))


def test_rows_that_cost_the_same_each_are_not_joined_and_large_batches_not_even_tried() -> None:
    slow = Engine(row_s=0.02)
    assert measured(linear(), slow).batch == 1
    assert max(slow.sizes) == 2


@pytest.mark.parametrize("flaw", ["refuses", "one row", "neighbours", "nan"])
def test_answers_that_change_in_company_forbid_it(flaw: str) -> None:
    pace = measured(linear(), Engine(base_s=0.001, flaw=flaw))
    assert pace == Pace(pace.run_ms)


def test_fixed_dimensions_forbid_it() -> None:
    specs = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (4,))
    assert not joinable(specs[:1], specs[1:]) and joinable(specs[:1], specs[:1]) and not joinable((), ())


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
    assert proven.pace.batch == 1 and proven.trials is not None and alone.trials is None
    assert measure(proven.session, proven.trials).batch > 1
    proven.session.close()
    alone.session.close()


def test_the_builders_figures_are_believed_where_the_golden_samples_take_as_long() -> None:
    told = Pacing(2.0, 8, 6.0, engine_version="1.0")
    load = linear().changed(advice=told).load
    for run_ms in (1.1, 2.0, 3.9):
        assert engine._pace(load, run_ms, "1.0") == (Pace(2.0, 8, 6.0), True)
    for run_ms, version in ((0.9, "1.0"), (4.1, "1.0"), (2.0, "1.1")):
        assert engine._pace(load, run_ms, version) == (Pace(run_ms), False)
    assert engine._pace(linear().load, 2.0, "1.0") == (Pace(2.0), False)


def test_what_a_serving_process_found_is_passed_on_to_the_next() -> None:
    before = linear().changed(proven=Pacing(2.0, 1, 0.0, settled=False), advice=Pacing(2.0, 8, 6.0)).load
    assert engine._pace(before, 9.0, "1.0") == (Pace(2.0), False)
    made = linear()
    with made.memory() as fds:
        found = engine.load(made.load, fds, most=8)
    told = engine.success(made.load, found).pacing
    assert told == Pacing(found.report.run_ms, 1, 0.0, settled=False)


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
