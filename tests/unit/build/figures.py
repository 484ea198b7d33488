"""Figures and candidates for the tests of gates and choice."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgekit import profile
from edgekit.backends import Recipe
from edgekit.build import stats
from edgekit.build.choose import Outcome
from edgekit.build.gates import Figures
from edgekit.build.plan import Candidate
from edgekit.bundle.model import GateResult, Latency

FINE = Figures(
    accuracy=stats.wilson(731, 800),
    baseline_accuracy=stats.wilson(730, 800),
    samples=800,
    latency=Latency(0.5, 0.7, 0.9, 200),
    baseline_latency=Latency(1.0, 1.4, 1.8, 200),
    peak_rss_mib=50.0,
    size_bytes=80_000,
    coverage={"CPUExecutionProvider": 17},
    is_baseline=False,
    on_target=True,
)


def figures(**changes: Any) -> Figures:
    """Good ones, but for `changes`."""
    return dataclasses.replace(FINE, **changes)


def slow(p50_ms: float) -> Latency:
    return Latency(p50_ms, p50_ms * 2, p50_ms * 3, 200)


def outcome(
    precision: str,
    rank: int,
    *,
    profile_name: str = "generic-cpu",
    failed: str = "",
    error: str = "",
    engine: str = "onnxruntime",
    **changes: Any,
) -> Outcome:
    """The fate of one candidate; `failed` names a gate that it did not pass."""
    chosen = profile.get(profile_name)
    candidate = Candidate(chosen, chosen.target[0], Recipe(engine, precision), rank)
    if error:
        return Outcome(candidate, error=error)
    gates = (GateResult(failed or "accuracy", not failed, f"{failed} is too bad" if failed else "fine"),)
    return Outcome(candidate, figures=figures(**changes), gates=gates)
