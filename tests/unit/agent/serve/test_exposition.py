"""What /metrics shows, read back with the reader of `edgekit-agent top`."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgekit.bundle.model import Bins, Reference
from edgekit.wire import METRICS
from edgekit_agent import exposition, metrics, scrape
from edgekit_agent.board import Board
from edgekit_agent.scrape import Reading
from edgekit_agent.serve.sketch import Sketch
from edgekit_agent.top import plain
from tests.support.serving import linear

MODEL = {"model": "kws", "version": "1"}
SERVING = exposition.Serving("kws", "1", "generic-cpu.onnxruntime.int8", "onnxruntime", waiting=3)
RESTS = exposition.Serving("eyes", "7", "generic-cpu.openvino.fp32", "openvino", loaded=False)
BOARD = Board(
    cores=4, cpu_busy_s=100.0, cpu_share=0.5, memory_bytes=1 << 30, memory_available_bytes=1 << 28,
    disk_bytes=1 << 34, disk_free_bytes=1 << 33, temperatures={"cpu-thermal": 48.3},
)  # fmt: skip


def ledger() -> metrics.Ledger:
    """Two successes (one of 4 samples that shared its run) and a failure of every kind."""
    made = metrics.Ledger()
    one = made.open("kws", "1")
    one.answered(200, 2_000_000, "oip-http")
    one.answered(200, 40_000_000, "oip-grpc")
    for status in (400, 404, 413, 429, 500, 503, 504):
        one.answered(status, 1000, "oip-http")
    one.inferred(5, [50_000, 1_500_000], 1000, 900_000, 1000)
    one.executed(5, 900_000, 1000, 1000)
    return made


def text(made: metrics.Ledger, board: Board = BOARD) -> str:
    process = exposition.Process(2, 61.25, connections=7, memory_budget_mib=256.0)
    return exposition.text(made, [SERVING, RESTS], process, board).decode()


def reading(made: metrics.Ledger, at: float = 0.0, board: Board = BOARD) -> Reading:
    return Reading(at, scrape.parse(text(made, board)))


def test_every_line_is_prometheus_text() -> None:
    seen: dict[str, str] = {}
    for line in text(ledger()).splitlines():
        if line.startswith("#"):
            word, name, *rest = line[2:].split(" ", 2)
            assert word in ("HELP", "TYPE") and rest
            if word == "TYPE":
                assert name not in seen, f"{name} is declared twice"
                seen[name] = rest[0]
            continue
        match = re.fullmatch(r'([a-z_][a-z0-9_]*)(\{(\w+="[^"]*",?)*\})? -?[0-9.e+-]+', line)
        assert match, line
        base = re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert match[1] in seen or seen.get(base) == "histogram", line
    assert {info.name for info in METRICS} <= set(seen)


def test_the_names_that_dashboards_for_triton_ask_for() -> None:
    found = reading(ledger())
    wanted = {
        "nv_inference_request_success": 2,
        "nv_inference_count": 5,
        "nv_inference_exec_count": 1,
        "nv_inference_request_duration_us": 42_000,
        "nv_inference_queue_duration_us": 1550,
        "nv_inference_compute_infer_duration_us": 900,
        "nv_inference_compute_input_duration_us": 1,
        "nv_inference_compute_output_duration_us": 1,
        "nv_inference_pending_request_count": 3,
    }
    assert {name: found.total(name, **MODEL) for name in wanted} == wanted
    reasons = {
        dict(labels)["reason"]: value for labels, value in found.of("nv_inference_request_failure").items()
    }
    assert reasons == {"REJECTED": 3, "CANCELED": 0, "BACKEND": 1, "OTHER": 3}
    assert found.total("nv_cpu_utilization") == 0.5
    assert found.total("nv_cpu_memory_used_bytes") == 3 << 28


def test_a_model_that_stands_beside_the_release_has_figures_of_its_own() -> None:
    made = ledger()
    made.open("eyes", "7").answered(200, 1_000_000, "oip-http")
    found = reading(made)
    loaded = {dict(labels)["model"]: value for labels, value in found.of("edgekit_model_loaded").items()}
    assert loaded == {"kws": 1, "eyes": 0}
    assert found.total("nv_inference_pending_request_count", model="eyes") == 0
    assert found.total("edgekit_release_info", model="eyes", engine="openvino") == 1
    shown = scrape.figures(reading(ledger()), found)
    assert shown.release == "kws:1" and [one.serving for one in shown.models] == [True, True]
    old = made.open("kws", "0")
    old.answered(200, 1_000_000, "oip-http")
    assert [one.serving for one in scrape.figures(found, reading(made)).models] == [True, True, False]


def test_histograms_by_protocol_queue_and_batch() -> None:
    found = reading(ledger())
    assert found.total("edgekit_protocol_latency_ms_count", protocol="oip-http") == 1
    assert found.total("edgekit_protocol_latency_ms_bucket", protocol="oip-grpc", le="25.0") == 0
    assert found.total("edgekit_protocol_latency_ms_bucket", protocol="oip-grpc", le="50.0") == 1
    assert found.total("edgekit_queue_ms_sum") == 1.55
    assert found.total("edgekit_batch_samples_bucket", le="4") == 0
    assert found.total("edgekit_batch_samples_bucket", le="8") == 1
    kinds = {dict(labels)["kind"]: value for labels, value in found.of("edgekit_failures_total").items()}
    assert kinds == {
        "client": 1, "unknown_model": 1, "too_large": 1, "overload": 2, "engine": 1, "timeout": 1,
    }  # fmt: skip


def test_odd_names_and_a_board_that_tells_nothing() -> None:
    made = metrics.Ledger()
    made.open('a"b\\c\nd', "1").answered(200, 1, "p")
    found = reading(made, board=Board())
    assert found.total("edgekit_requests_total", model='a"b\\c\nd') == 1
    assert not any(name.startswith("edgekit_board") for name, _ in found.samples)


def test_figures_between_two_readings() -> None:
    made = ledger()
    before = reading(made, at=10.0)
    one = made.open("kws", "1")
    for _ in range(100):
        one.answered(200, 3_000_000, "oip-http")
        one.inferred(2, [200_000], 1, 1000, 1)
        one.executed(2, 1000, 1, 1)
    one.answered(503, 1000, "oip-http")
    busier = Board(cores=4, cpu_busy_s=104.0, memory_bytes=1 << 30, memory_available_bytes=1 << 29)
    found = scrape.figures(before, reading(made, at=12.0, board=busier))
    (model,) = found.models
    assert (found.release, found.engine, model.serving) == ("kws:1", "onnxruntime", True)
    assert (model.latency.per_s, model.samples_per_s, model.batch) == (50.0, 100.0, 2.0)
    assert 2.5 < model.latency.p50_ms < model.latency.p99_ms <= 5.0
    assert model.queue_ms == pytest.approx(0.2) and model.failures_per_s == 0.5
    assert model.failures["overload"] == 3 and model.requests == 110
    assert model.protocols["oip-http"].per_s == 50.0 and model.protocols["oip-grpc"].per_s == 0.0
    assert found.cpu_percent == 50.0 and found.memory_percent == 50.0
    assert (found.restarts, found.connections, found.budget_mib) == (2, 7, 256.0)


def test_a_process_that_was_started_again_counts_from_zero() -> None:
    fresh = metrics.Ledger()
    fresh.open("kws", "1").answered(200, 3_000_000, "oip-http")
    found = scrape.figures(reading(ledger(), at=0.0), reading(fresh, at=1.0))
    assert found.models[0].latency.per_s == 1.0


def test_the_plain_screen() -> None:
    made = ledger()
    before = reading(made)
    made.open("kws", "1").answered(200, 3_000_000, "oip-http")
    lines = plain(scrape.figures(before, reading(made, at=1.0))).splitlines()
    assert lines[0] == "release  kws:1  generic-cpu.onnxruntime.int8"
    assert "61 of 256 MiB" in lines[1] and "2 restarts" in lines[1]
    assert "cpu-thermal 48 °C" in lines[2]
    (row,) = [line.split() for line in lines if line.startswith("kws:1")]
    assert row[:3] == ["kws:1", "*", "1"]


def test_drift_of_the_release_that_answers() -> None:
    bins = (Bins("x", (0.0,), (0.5, 0.5), 2), Bins("x", (0.0,), (0.5, 0.5), 3))
    reference = Reference(1000, bins, (), Bins("y", (0.5,), (0.5, 0.5)))
    made = metrics.Ledger()
    for version in ("0", "1"):
        made.open("kws", version).sketch = sketch = Sketch(reference, linear().load.config)
        rows = np.tile(np.array([[1, 1, 1, 1], [-1, -1, -1, 1]], np.float32), (250, 1))
        sketch.look([{"x": rows[:10]}], [{"y": rows[:10]}])
    before = reading(made)
    assert before.most("edgekit_input_drift_psi") is None
    for _ in range(50):
        sketch.look([{"x": rows[:10]}], [{"y": rows[:10]}])
    found = reading(made, at=1.0)
    labels = frozenset({**MODEL, "input": "x"}.items())
    assert list(found.of("edgekit_input_drift_psi")) == [labels]
    assert found.of("edgekit_input_drift_column") == {labels: 3}
    assert list(found.of("edgekit_output_drift_psi")) == [frozenset({**MODEL, "output": "y"}.items())]
    assert found.total("edgekit_drift_samples_total", version="1") == 510
    model, _ = scrape.figures(before, found).models  # what answers now comes first
    assert model.input_psi is not None and model.input_psi > 0.25
    lines = plain(scrape.figures(before, found)).splitlines()
    (row,) = [line for line in lines if line.startswith("kws:1")]
    assert f"{model.input_psi:.2f} / {model.output_psi:.2f}" in row
    counters = made.open("kws", "1").stats()
    assert (counters.input_psi, counters.sketched) == (model.input_psi, 510)


@pytest.mark.parametrize("line", ["x", "x{", "x 1 2", "x{a=1} 1", "x nope", "{} 1", ""])
def test_lines_that_are_none(line: str) -> None:
    assert all(not labels for _, labels in scrape.parse(line + "\nok 1\n"))
    assert scrape.parse(line + "\nok 1\n")["ok", frozenset()] == 1.0
