"""The gates a candidate must pass before it may ship. Pure: figures in, verdicts with figures out."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.bundle.model import GateResult, Interval, Latency
from edgekit.errors import InputError
from edgekit.profile import Budget

SPEED_TOLERANCE = 0.05
"""Medians of two interleaved series on one idle machine repeat within a few percent; a candidate is
called slower only beyond this share."""
ACCURACY_GATES = ("accuracy", "error growth")
MIB = 1024 * 1024


@dataclass(frozen=True)
class Figures:
    """What was measured of one candidate and of fp32 on the same engine, side by side."""

    accuracy: Interval
    """Of the metric, whichever it is."""
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
    metric: str = "accuracy"
    higher_is_better: bool = True
    is_share: bool = True
    """The metric lies in 0..1, so that there is an error rate."""
    of_reference: bool = False
    """The metric compares with fp32: its own errors are 0 by definition."""
    cpu_ms: float = 0.0
    baseline_cpu_ms: float = 0.0
    emulated: str = ""
    """The CPU that was emulated for the answers; empty: this host's own."""
    stand_in: str = ""
    """The engine that answered in place of the candidate's own; empty: its own."""
    emulated_rows: int = 0
    """How many rows went through the emulated CPU."""
    is_emulated_only: bool = False
    """Only those rows are judged, for there this host answers differently."""
    host_gap: float = 0.0
    """Largest difference between the emulated CPU's answers and this host's; 0 without emulation."""
    unit: str = ""
    """Compute unit that the target wants; empty: whichever is busiest."""

    @property
    def size_mib(self) -> float:
        return self.size_bytes / MIB

    @property
    def speedup(self) -> float:
        return self.baseline_latency.p50_ms / max(self.latency.p50_ms, 1e-9)


@dataclass(frozen=True)
class Figure:
    """A figure that objectives and constraints may name, with its unit and direction."""

    name: str
    unit: str
    higher_is_better: bool
    read: Callable[[Figures], float]
    is_timing: bool = False
    """Means something only where it was measured on the target."""


FIGURES = {
    figure.name: figure
    for figure in (
        Figure("accuracy", "metric", True, lambda f: f.accuracy.value),
        Figure("latency_p50_ms", "ms", False, lambda f: f.latency.p50_ms, is_timing=True),
        Figure("latency_p95_ms", "ms", False, lambda f: f.latency.p95_ms, is_timing=True),
        Figure("latency_p99_ms", "ms", False, lambda f: f.latency.p99_ms, is_timing=True),
        Figure("cpu_ms", "CPU ms, a proxy of energy", False, lambda f: f.cpu_ms, is_timing=True),
        Figure("speedup", "x fp32", True, lambda f: f.speedup, is_timing=True),
        Figure("peak_rss_mib", "MiB", False, lambda f: f.peak_rss_mib),
        Figure("size_mib", "MiB", False, lambda f: f.size_mib),
    )
}


@dataclass(frozen=True)
class Constraint:
    """A figure's limit: at most (`is_maximum`) or at least."""

    figure: str
    is_maximum: bool
    limit: float


def constraint(text: str, *, is_maximum: bool) -> Constraint:
    """`NAME=VALUE`. Raises InputError naming the known figures."""
    name, _, value = text.partition("=")
    flag = "--max" if is_maximum else "--min"
    if name not in FIGURES:
        raise InputError(f"{flag} {text!r}: no such figure", f"one of {', '.join(sorted(FIGURES))}")
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise InputError(f"{flag} {text!r}: not a number", f"as {flag} {name}=1.5, in {FIGURES[name].unit}")
    return Constraint(name, is_maximum, limit)


def judge(
    figures: Figures, budget: Budget, *, size_matters: bool, constraints: Sequence[Constraint] = ()
) -> tuple[GateResult, ...]:
    """Every gate's verdict, in a fixed order. `size_matters`: speed against fp32 is not asked for."""
    gates = [_accuracy(figures, budget)]
    if figures.is_share and not figures.of_reference:
        gates.append(_error_growth(figures, budget))
    gates.append(_speed(figures, budget, size_matters=size_matters))
    if budget.latency_p95_ms:
        gates.append(_timing("latency", figures, figures.latency.p95_ms, budget.latency_p95_ms, "p95 ms"))
    if budget.peak_rss_mib:
        gates.append(_memory(figures, budget))
    if budget.bundle_mib:
        gates.append(_limit("size", figures.size_mib, budget.bundle_mib, "MiB"))
    if budget.min_coverage:
        gates.append(_coverage(figures, budget))
    gates += [_constraint(figures, one) for one in constraints]
    return tuple(gates)


def passed(gates: tuple[GateResult, ...]) -> bool:
    return all(gate.passed for gate in gates)


def _accuracy(figures: Figures, budget: Budget) -> GateResult:
    """metric >= ratio x fp32: the rule of MLPerf Inference. Where lower is better, the same share of room:
    1 - metric for a share, at most fp32 / ratio for any other."""
    value, base, ratio = figures.accuracy.value, figures.baseline_accuracy.value, budget.accuracy_ratio
    if figures.higher_is_better:
        want = ratio * base if base >= 0 else base / ratio
        good = value >= want
        rule = f"{ratio:g} x fp32's {base:.4f} = {want:.4f}"
        sign = ">=" if good else "<"
    else:
        want = 1 - ratio * (1 - base) if figures.is_share else base / max(ratio, 1e-9)
        good = value <= want
        rule = f"{want:.4f}, fp32's {base:.4f} with {ratio:g} allowed"
        sign = "<=" if good else ">"
    return GateResult("accuracy", good, f"{figures.metric} {value:.4f}{_where(figures)} {sign} {rule}")


def _where(figures: Figures) -> str:
    """On which CPU the answers were made, where it was not this host's alone."""
    if not figures.emulated:
        return ""
    if not figures.is_emulated_only:
        return f" ({figures.emulated_rows} of {figures.samples} rows on an emulated {figures.emulated})"
    gap = figures.host_gap
    otherwise = f" (this host answers otherwise, by up to {gap:.2g})" if gap < sys.float_info.max else ""
    return f" on an emulated {figures.emulated}{otherwise}"


def _error_growth(figures: Figures, budget: Budget) -> GateResult:
    """Errors may grow by a share beyond the interval: from 99.5 % to 98.5 % is thrice the errors.

    Judged on the end of the candidate's interval that speaks for it, so that chance does not fail it.
    """
    if figures.higher_is_better:
        errors, fewest = 1 - figures.accuracy.value, 1 - figures.accuracy.high
        base = 1 - figures.baseline_accuracy.value
    else:
        errors, fewest, base = figures.accuracy.value, figures.accuracy.low, figures.baseline_accuracy.value
    allowed = (1 + budget.error_growth) * base
    good = fewest <= allowed
    reason = (
        f"error rate {errors:.4f} (at least {fewest:.4f} with 95 % confidence) "
        f"{'within' if good else 'above'} {1 + budget.error_growth:g} x fp32's = {allowed:.4f}"
    )
    return GateResult("error growth", good, reason)


def _speed(figures: Figures, budget: Budget, *, size_matters: bool) -> GateResult:
    speedup = figures.speedup
    seen = f"{speedup:.2f} x fp32 on the same engine"
    if figures.is_baseline:
        return GateResult("speed", True, "the fp32 baseline itself")
    if size_matters or not budget.min_speedup:
        return GateResult("speed", True, f"{seen}; not asked for, size is the goal")
    if not figures.on_target:
        return GateResult("speed", True, f"{seen} here; not decided, {_elsewhere(figures)}")
    good = speedup >= budget.min_speedup * (1 - SPEED_TOLERANCE)
    return GateResult(
        "speed", good, f"{seen}, {budget.min_speedup:g} wanted (tolerance {SPEED_TOLERANCE:.0%})"
    )


def _timing(name: str, figures: Figures, value: float, most: float, unit: str) -> GateResult:
    if not figures.on_target:
        return GateResult(name, True, f"{value:.2f} {unit} here; not decided, {_elsewhere(figures)}")
    return _limit(name, value, most, unit)


def _memory(figures: Figures, budget: Budget) -> GateResult:
    """Memory is the engine's more than the model's: another engine's says nothing."""
    if figures.stand_in:
        seen = f"{figures.peak_rss_mib:.2f} MiB peak RSS"
        return GateResult("memory", True, f"{seen} here; not decided, {_elsewhere(figures)}")
    return _limit("memory", figures.peak_rss_mib, budget.peak_rss_mib, "MiB peak RSS")


def _elsewhere(figures: Figures) -> str:
    """Why a figure of this host decides nothing."""
    return (
        f"{figures.stand_in} stood in for the engine" if figures.stand_in else "this host is not the target"
    )


def _constraint(figures: Figures, wanted: Constraint) -> GateResult:
    figure = FIGURES[wanted.figure]
    value = figure.read(figures)
    undecided = figure.is_timing and not figures.on_target
    if undecided or (figures.stand_in and figure.name == "peak_rss_mib"):
        return GateResult(
            figure.name, True, f"{value:.3f} {figure.unit} here; not decided, {_elsewhere(figures)}"
        )
    good = value <= wanted.limit if wanted.is_maximum else value >= wanted.limit
    sign = "<=" if value <= wanted.limit else ">"
    return GateResult(figure.name, good, f"{value:.4g} {sign} {wanted.limit:g} {figure.unit}")


def _limit(name: str, value: float, most: float, unit: str) -> GateResult:
    good = value <= most
    return GateResult(name, good, f"{value:.2f} {'<=' if good else '>'} {most:g} {unit}")


def _coverage(figures: Figures, budget: Budget) -> GateResult:
    if figures.stand_in:
        return GateResult("coverage", True, f"not decided, {_elsewhere(figures)}")
    total = sum(figures.coverage.values())
    if not total:
        return GateResult("coverage", False, "the engine cannot tell on which unit its nodes run")
    busiest = max(figures.coverage, key=lambda unit: figures.coverage[unit])
    unit = figures.unit or busiest
    nodes = figures.coverage.get(unit, 0)
    good = nodes / total >= budget.min_coverage
    fallback = "" if good else f"; the others fell back to {_others(figures.coverage, unit)}"
    reason = f"{nodes} of {total} nodes on {unit}, {budget.min_coverage:.0%} wanted{fallback}"
    return GateResult("coverage", good, reason)


def _others(coverage: dict[str, int], unit: str) -> str:
    return ", ".join(f"{other} ({nodes})" for other, nodes in sorted(coverage.items()) if other != unit)
