"""When the search goes on, gives up, and looks for fewer layers: decisions from figures alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest

from edgekit import profile
from edgekit.backends import Recipe
from edgekit.build.choose import Outcome
from edgekit.build.forecast import Graph
from edgekit.build.mixed import Mixing
from edgekit.build.plan import Candidate
from edgekit.build.request import Effort, Request
from edgekit.build.search import Search
from edgekit.build.sensitivity import LayerError
from edgekit.build.workshop import Made
from tests.unit.build.figures import outcome, slow

GENERIC = profile.get("generic-cpu")
LAYERS = tuple(LayerError(f"l{i}", "Conv", float(i)) for i in range(32))


class Bench(Search):
    """A search whose candidates are accurate with `enough` layers in floating point, and fast with `most`."""

    enough, most = 0, 32

    def _try(self, candidate: Candidate) -> Outcome:
        count = len(str(candidate.recipe.options.get("keep", "")).split())
        kind = "accuracy" if count < self.enough else "speed" if count > self.most else ""
        found = dataclasses.replace(outcome("int8", 0, failed=kind), candidate=candidate)
        self.outcomes.append(found)
        return found

    @property
    def counts(self) -> list[int]:
        return [len(str(o.candidate.recipe.options["keep"]).split()) for o in self.outcomes]


def bench(*passing: Outcome, objective: str = "latency", effort: Effort = "normal") -> Bench:
    request = Request(Path("m.onnx"), (GENERIC,), "c", "e", objective=objective, effort=effort)

    def mixed(candidate: Candidate, made: Made) -> tuple[Mixing, tuple[LayerError, ...]]:
        return Mixing(candidate.recipe, tuple(layer.name for layer in LAYERS)), LAYERS

    search = Bench(request, cast(Any, None), Graph(1, 1, 1, 1), cast(Any, None), mixed)
    search._deadline = float("inf")
    search.outcomes += passing
    return search


def mix(search: Bench) -> list[int]:
    start = outcome("int8", 0, failed="accuracy")
    search._made = cast(Any, AlwaysMade())
    search._mix(start)
    return search.counts


class AlwaysMade(dict[Any, Made]):
    def get(self, key: Any, default: Any = None) -> Made:
        return Made("key", {"model.onnx": b"x"})


@pytest.mark.parametrize(
    ("enough", "most", "effort", "counts"),
    [
        (1, 32, "normal", [2]),
        (5, 32, "normal", [2, 4, 8]),
        (5, 32, "thorough", [2, 4, 8, 6, 5]),
        (5, 6, "normal", [2, 4, 8, 6]),
        (20, 32, "normal", [2, 4, 8, 16]),
    ],
)
def test_layers_are_given_back_until_it_suffices(
    enough: int, most: int, effort: Effort, counts: list[int]
) -> None:
    search = bench(effort=effort)
    search.enough, search.most = enough, most
    assert mix(search) == counts
    left = [len(search.layers[o.candidate.name]) for o in search.outcomes]
    assert left == [32 - count for count in counts]


def test_a_spent_time_budget_stops_and_says_so() -> None:
    search = bench()
    search._deadline = 0.0
    assert mix(search) == []
    assert "mixed precision stopped, the time budget is spent" in search.notes[0]


@pytest.mark.parametrize(
    ("objective", "rival", "outdone"),
    [
        ("latency", {"latency": slow(0.4)}, True),
        ("latency", {"latency": slow(0.6)}, False),
        ("latency", {"latency": slow(0.4), "failed": "size"}, False),
        ("size", {"size_bytes": 70_000, "latency": slow(9)}, True),
        ("size", {"size_bytes": 90_000, "latency": slow(0.1)}, False),
        ("accuracy", {"latency": slow(0.1), "size_bytes": 1}, False),
    ],
)
def test_mixing_that_cannot_win_is_not_begun(objective: str, rival: dict[str, Any], outdone: bool) -> None:
    search = bench(outcome("fp16", 1, **rival), objective=objective)
    assert search._outdone(outcome("int8", 0, failed="accuracy")) is outdone


@pytest.mark.parametrize(
    ("objective", "rival", "give_up_ms"),
    [
        ("latency", {"latency": slow(0.4), "size_bytes": 10}, 0.8),
        ("latency", {"latency": slow(0.4), "size_bytes": 1000}, 0.0),
        ("latency", {"latency": slow(0.4), "size_bytes": 10, "failed": "accuracy"}, 0.0),
        ("latency", {"latency": slow(0.4), "size_bytes": 10, "on_target": False}, 0.0),
        ("accuracy", {"latency": slow(0.4), "size_bytes": 10}, 0.0),
        ("memory", {"latency": slow(0.4), "size_bytes": 10}, 0.0),
    ],
)
def test_slow_candidates_are_given_up_only_where_they_are_sure_to_lose(
    objective: str, rival: dict[str, Any], give_up_ms: float
) -> None:
    search = bench(outcome("int8", 0, **rival), objective=objective)
    candidate = Candidate(GENERIC, GENERIC.target[0], Recipe("onnxruntime", "fp32"), 1)
    assert search._give_up_ms(candidate, Made("key", {"model.onnx": bytes(100)})) == give_up_ms
