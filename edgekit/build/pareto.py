"""The Pareto front: candidates that nothing else beats in everything."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.build.gates import FIGURES, Figures

AXES = ("accuracy", "latency_p50_ms", "peak_rss_mib", "size_mib", "cpu_ms")


def front(candidates: Sequence[Figures]) -> list[bool]:
    """For each candidate, whether no other is at least as good on every axis and better on one."""
    points = [_point(figures) for figures in candidates]
    return [not any(_dominates(other, point) for other in points) for point in points]


def _point(figures: Figures) -> tuple[float, ...]:
    """Lower is better on every axis."""
    accuracy = figures.accuracy.value * (-1 if figures.higher_is_better else 1)
    return (accuracy, *(FIGURES[name].read(figures) for name in AXES[1:]))


def _dominates(left: tuple[float, ...], right: tuple[float, ...]) -> bool:
    return left != right and all(a <= b for a, b in zip(left, right, strict=True))
