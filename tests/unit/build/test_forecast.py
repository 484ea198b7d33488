"""The forecasts: formulas over engine, files, graph and hardware."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import profile
from edgekit.backends import SourceModel
from edgekit.build import forecast
from edgekit.build.forecast import COPIES, ENGINE_MIB, MIB, UNKNOWN_ENGINE_MIB, Graph, memory_mib

PI = profile.get("raspberry-pi-4")
SMALL = Graph(weights=1_000_000, arena_bytes=2 * MIB, macs=50_000_000, nodes=20)


@pytest.mark.parametrize("engine", [*ENGINE_MIB, "somebody-elses"])
def test_weights_count_several_times_on_top_of_the_engine(engine: str) -> None:
    small, large = memory_mib(engine, {}), memory_mib(engine, {"a": bytes(4 * MIB), "b": bytes(4 * MIB)})
    assert small == ENGINE_MIB.get(engine, UNKNOWN_ENGINE_MIB)
    assert large - small == pytest.approx(8 * COPIES)
    assert memory_mib(engine, {}, arena_bytes=3 * MIB) == small + 3


def test_a_graph_is_counted_by_hand() -> None:
    """x (1, 4) @ w (4, 3) -> a, Relu -> b; alive at most: x and a, then a and b."""
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n])
        for name, n in (("x", 4), ("b", 3))
    ]
    graph = helper.make_graph(nodes, "tiny", ports[:1], ports[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    found = forecast.graph_of(SourceModel(model.SerializeToString(), (), ()))
    assert found == Graph(weights=12, arena_bytes=4 * 7, macs=12, nodes=2)


def test_int8_is_smaller_and_faster_and_a_faster_clock_is_faster() -> None:
    fp32, int8 = (forecast.forecast(SMALL, "onnxruntime", p, PI.hardware) for p in ("fp32", "int8"))
    assert int8.latency_ms < fp32.latency_ms
    assert fp32.memory_mib - int8.memory_mib == pytest.approx(COPIES * 3_000_000 / MIB, abs=0.2)
    fast = dataclasses.replace(PI.hardware, clock_ghz=2 * PI.hardware.clock_ghz)
    assert forecast.forecast(SMALL, "onnxruntime", "fp32", fast).latency_ms == pytest.approx(
        fp32.latency_ms / 2, rel=1e-2
    )


def test_what_cannot_fit_is_said_before_it_is_built() -> None:
    huge = dataclasses.replace(SMALL, weights=2_000_000_000)
    assert forecast.too_big(PI, SMALL, "onnxruntime", "fp32") == ""
    assert "MiB of memory, raspberry-pi-4 allows" in forecast.too_big(PI, huge, "onnxruntime", "fp32")
    tight = dataclasses.replace(PI, budget=dataclasses.replace(PI.budget, bundle_mib=1.0))
    assert "MiB large, raspberry-pi-4 allows 1" in forecast.too_big(tight, SMALL, "onnxruntime", "fp32")
    assert forecast.too_big(tight, SMALL, "onnxruntime", "int8") == ""
