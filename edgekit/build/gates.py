"""The gates a candidate must pass before it may ship. Pure: figures in, verdicts with figures out."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.bundle.model import GateResult, Interval, Latency
from edgekit.profile import Budget

SPEED_TOLERANCE = 0.05
"""Medians of two interleaved series on one idle machine repeat within a few percent; a candidate is
called slower only beyond this share."""
MIB = 1024 * 1024


@dataclass(frozen=True)
class Figures:
    """What was measured of one candidate and of fp32 on the same engine, side by side."""

    accuracy: Interval
    baseline_accuracy: Interval
    samples: int
    latency: Latency
    baseline_latency: Latency
    peak_rss_mib: float
    size_bytes: int
    coverage: dict[str, int]
    is_baseline: bool
    """The candidate is the fp32 model itself."""
    on_target: bool
    """The host has the profile's architecture and CPU features; only then do timings decide."""


def judge(figures: Figures, budget: Budget, *, size_matters: bool) -> tuple[GateResult, ...]:
    """Every gate's verdict, in a fixed order. `size_matters`: speed against fp32 is not asked for."""
    gates = [_accuracy(figures, budget), _error_growth(figures, budget)]
    gates.append(_speed(figures, budget, size_matters=size_matters))
    if budget.latency_p95_ms:
        gates.append(_timing("latency", figures, figures.latency.p95_ms, budget.latency_p95_ms, "p95 ms"))
    if budget.peak_rss_mib:
        gates.append(_limit("memory", figures.peak_rss_mib, budget.peak_rss_mib, "MiB peak RSS"))
    if budget.bundle_mib:
        gates.append(_limit("size", figures.size_bytes / MIB, budget.bundle_mib, "MiB"))
    if budget.min_coverage:
        gates.append(_coverage(figures, budget))
    return tuple(gates)


def passed(gates: tuple[GateResult, ...]) -> bool:
    return all(gate.passed for gate in gates)


def _accuracy(figures: Figures, budget: Budget) -> GateResult:
    """accuracy >= ratio x fp32: the rule of MLPerf Inference."""
    want = budget.accuracy_ratio * figures.baseline_accuracy.value
    good = figures.accuracy.value >= want
    sign = ">=" if good else "<"
    reason = (
        f"accuracy {figures.accuracy.value:.4f} {sign} {budget.accuracy_ratio:g} x fp32's "
        f"{figures.baseline_accuracy.value:.4f} = {want:.4f}"
    )
    return GateResult("accuracy", good, reason)


def _error_growth(figures: Figures, budget: Budget) -> GateResult:
    """Errors may grow by a share beyond the interval: from 99.5 % to 98.5 % is thrice the errors.

    Judged on the end of the candidate's interval that speaks for it, so that chance does not fail it.
    """
    errors, fewest = 1 - figures.accuracy.value, 1 - figures.accuracy.high
    allowed = (1 + budget.error_growth) * (1 - figures.baseline_accuracy.value)
    good = fewest <= allowed
    reason = (
        f"error rate {errors:.4f} (at least {fewest:.4f} with 95 % confidence) "
        f"{'within' if good else 'above'} {1 + budget.error_growth:g} x fp32's = {allowed:.4f}"
    )
    return GateResult("error growth", good, reason)


def _speed(figures: Figures, budget: Budget, *, size_matters: bool) -> GateResult:
    speedup = figures.baseline_latency.p50_ms / max(figures.latency.p50_ms, 1e-9)
    seen = f"{speedup:.2f} x fp32 on the same engine"
    if figures.is_baseline:
        return GateResult("speed", True, "the fp32 baseline itself")
    if size_matters or not budget.min_speedup:
        return GateResult("speed", True, f"{seen}; not asked for, size is the goal")
    if not figures.on_target:
        return GateResult("speed", True, f"{seen} here; not decided, this host is not the target")
    good = speedup >= budget.min_speedup * (1 - SPEED_TOLERANCE)
    return GateResult(
        "speed", good, f"{seen}, {budget.min_speedup:g} wanted (tolerance {SPEED_TOLERANCE:.0%})"
    )


def _timing(name: str, figures: Figures, value: float, most: float, unit: str) -> GateResult:
    if not figures.on_target:
        return GateResult(name, True, f"{value:.2f} {unit} here; not decided, this host is not the target")
    return _limit(name, value, most, unit)


def _limit(name: str, value: float, most: float, unit: str) -> GateResult:
    good = value <= most
    return GateResult(name, good, f"{value:.2f} {'<=' if good else '>'} {most:g} {unit}")


def _coverage(figures: Figures, budget: Budget) -> GateResult:
    total = sum(figures.coverage.values())
    if not total:
        return GateResult("coverage", False, "the engine cannot tell on which unit its nodes run")
    unit, nodes = max(figures.coverage.items(), key=lambda item: item[1])
    good = nodes / total >= budget.min_coverage
    reason = f"{nodes} of {total} nodes on {unit}, {budget.min_coverage:.0%} wanted"
    return GateResult("coverage", good, reason)
