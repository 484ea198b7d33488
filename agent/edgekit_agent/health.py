"""Is a new release healthy? Figures of a watch and the limits they must keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.wire import LATENCY_BOUNDS_MS

MIN_ERRORS = 3
"""Fewer errors than this do not end a watch early: one may be anybody's."""
MIN_LATENCIES = 20
"""A p95 of fewer requests is only chance."""


@dataclass(frozen=True)
class Limits:
    max_error_rate: float
    max_latency_p95_ms: float
    """0: no limit."""
    max_restarts: int


@dataclass(frozen=True)
class Seen:
    """Counts of one release since its watch began."""

    requests: int = 0
    errors: int = 0
    latency_buckets: tuple[int, ...] = (0,) * (len(LATENCY_BOUNDS_MS) + 1)
    restarts: int = 0


def violation(seen: Seen, limits: Limits, *, final: bool) -> str:
    """Why the release must go, in a few words; empty while it may stay.

    `final`: the watch is over, so that few errors count too.
    """
    if seen.restarts >= limits.max_restarts:
        return f"serving crashed {seen.restarts} times"
    rate = seen.errors / seen.requests if seen.requests else 0.0
    if rate > limits.max_error_rate and (final or seen.errors >= MIN_ERRORS):
        return f"{seen.errors} of {seen.requests} requests failed, {limits.max_error_rate:.1%} allowed"
    limit = limits.max_latency_p95_ms
    if limit and sum(seen.latency_buckets) >= MIN_LATENCIES:
        p95 = quantile(seen.latency_buckets, 0.95)
        if p95 > limit:
            return f"latency p95 is {p95:.3g} ms, {limit:g} ms allowed"
    return ""


def quantile(buckets: Sequence[int], q: float) -> float:
    """Quantile in ms, linear inside its bucket as Prometheus does; the last bucket has no upper end."""
    wanted = q * sum(buckets)
    below = 0.0
    low = 0.0
    for count, high in zip(buckets, LATENCY_BOUNDS_MS, strict=False):
        if count and below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below, low = below + count, high
    return LATENCY_BOUNDS_MS[-1] if not buckets or not buckets[-1] else 2 * LATENCY_BOUNDS_MS[-1]
