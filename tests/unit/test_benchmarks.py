"""What the builder's benchmarks conclude from figures; the figures themselves come from running them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import olive, quantization
from benchmarks.zoo.tasks import Task

TASK = Task("t", Path("m.onnx"), "c", "e", least_speedup=2.0, weights_dominate=True)
ROW: dict[str, Any] = {
    "task": "t",
    "engine": "onnxruntime",
    "candidate": "onnxruntime.int8-u8",
    "precision": "int8",
    "metric": "accuracy",
    "accuracy": {"value": 0.900, "low": 0.88, "high": 0.92},
    "baseline_accuracy": {"value": 0.905, "low": 0.885, "high": 0.925},
    "p50_ms": 1.0,
    "speedup": 2.5,
    "size_bytes": 1000,
    "times_smaller": 3.9,
    "peak_rss_mib": 60.0,
    "build_ratio": 1.1,
    "passes": True,
    "problem": "",
    "ships": True,
}


def broken(*, vnni: bool = True, **changes: Any) -> list[str]:
    """Names of the promises that a row with these changes does not keep."""
    found = quantization.checks(TASK, [{**ROW, **changes}], vnni=vnni)
    return [one["check"] for one in found if one["kept"] is False]


def test_every_promise_is_kept() -> None:
    assert broken() == []
    assert len(list(quantization.checks(TASK, [ROW], vnni=True))) == 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accuracy": {"value": 0.88, "low": 0.86, "high": 0.90}}, "accuracy"),
        ({"speedup": 0.9}, "or a tie"),
        ({"speedup": 1.9}, "with VNNI"),
        ({"times_smaller": 3.4}, "times smaller"),
        ({"build_ratio": 1.21}, "dearest build"),
    ],
)
def test_each_can_be_broken(change: dict[str, Any], words: str) -> None:
    assert any(words in name for name in broken(**change))


def test_what_needs_vnni_is_not_held_against_a_machine_without() -> None:
    (found,) = (
        one
        for one in quantization.checks(TASK, [{**ROW, "speedup": 1.5}], vnni=False)
        if "with VNNI" in one["check"]
    )
    assert found["kept"] is None
    assert "no VNNI here" in quantization.checks_table([found])["rows"][0][3]
    assert broken(vnni=False, speedup=1.5) == []


def test_what_is_refused_stays_in_the_table() -> None:
    refused = {**ROW, "passes": False, "ships": False, "build_ratio": None}
    rows = quantization.table([ROW, refused], "")["rows"]
    assert [row[1] for row in rows] == ["**onnxruntime.int8-u8**", "onnxruntime.int8-u8 (refused)"]
    assert [row[-1] for row in rows] == ["1.10", ""]
    assert broken(passes=False, ships=False, accuracy={"value": 0.1, "low": 0.0, "high": 0.2}) == []


def test_the_verdict_beside_olive_is_shown() -> None:
    line = {"task": "t", "recipe": "r", "figure": "bytes", "edgekit": 2000.0, "Olive": 0.5}
    rows = olive.table([{**line, "no_worse": True}, {**line, "no_worse": False}], "")["rows"]
    assert [row[3:] for row in rows] == [["2,000", "0.5", ""], ["2,000", "0.5", "**worse**"]]
