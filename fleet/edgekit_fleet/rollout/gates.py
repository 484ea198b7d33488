"""Does the new release do worse than the old one? Statistics over telemetry windows.

Error rate and slow requests are counts of yes or no, compared between devices on the new release
(canary) and on another one (control) of the same profile, by Fisher's exact test, one-sided
(R. A. Fisher, Statistical Methods for Research Workers, 1934, section 21.02), or for large counts by
the pooled two-proportion z-test (A. Agresti, Categorical Data Analysis, 3rd ed., section 3.2.3).

A tail of a latency distribution becomes a proportion: which share of requests is slower than
`latency_ratio` times the control's p95, at the resolution of the histogram's buckets.

The tests look at fixed moments of the soak time only and share `alpha` among all of them
(Bonferroni), so looking repeatedly does not raise the chance of a false stop. Requests of one
device are not independent of each other; `error_rate_increase` and `latency_ratio` keep a difference
that is significant but small from stopping a rollout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgekit.wire import LATENCY_BOUNDS_MS
from edgekit_fleet.rollout.strategies import Gates

_EXACT_LIMIT = 20_000
_BUCKETS = len(LATENCY_BOUNDS_MS) + 1


@dataclass(frozen=True)
class Sample:
    """Sums over telemetry windows: requests, those that failed, latency histogram, restarts."""

    requests: int = 0
    errors: int = 0
    buckets: tuple[int, ...] = (0,) * _BUCKETS
    restarts: int = 0
    devices: int = 0

    def __add__(self, other: Sample) -> Sample:
        return Sample(
            self.requests + other.requests,
            self.errors + other.errors,
            tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True)),
            self.restarts + other.restarts,
            self.devices + other.devices,
        )


@dataclass(frozen=True)
class Evidence:
    """Samples by profile."""

    canary: Mapping[str, Sample] = field(default_factory=dict)
    control: Mapping[str, Sample] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One comparison: passed or not, and one line with the figures."""

    gate: str
    profile: str
    passed: bool
    reason: str


def look_time(started: float, soak_s: float, looks: int, now: float) -> float | None:
    """The latest moment at which data may be judged, or None before the first.

    Ticks come at any time; judging only data received up to these moments bounds how often is looked.
    """
    if soak_s <= 0 or now >= started + soak_s:
        return started + soak_s
    done = math.floor((now - started) / soak_s * looks)
    return started + soak_s * done / looks if done >= 1 else None


def judge(gates: Gates, evidence: Evidence) -> list[Finding]:
    """Every comparison that the data allows; a rollout goes on when all have passed."""
    findings = []
    profiles = sorted(evidence.canary)
    level = gates.alpha / (gates.looks * max(len(profiles), 1) * 2)
    for profile in profiles:
        canary = evidence.canary[profile]
        control = evidence.control.get(profile, Sample())
        findings += [
            finding
            for finding in (
                _ceiling(gates, profile, canary),
                _restarts(gates, profile, canary),
                _errors(gates, profile, canary, control, level),
                _latency(gates, profile, canary, control, level),
            )
            if finding is not None
        ]
    return findings


def _ceiling(gates: Gates, profile: str, canary: Sample) -> Finding | None:
    if canary.requests < gates.min_requests:
        return None
    rate = canary.errors / canary.requests
    passed = rate <= gates.max_error_rate
    sign = "<=" if passed else ">"
    reason = f"error rate {rate:.4f} {sign} {gates.max_error_rate:g} allowed ({canary.requests} requests)"
    return Finding("max-error-rate", profile, passed, reason)


def _restarts(gates: Gates, profile: str, canary: Sample) -> Finding | None:
    if gates.max_restarts is None or canary.devices == 0:
        return None
    passed = canary.restarts <= gates.max_restarts * canary.devices
    reason = f"{canary.restarts} restarts on {canary.devices} device(s), {gates.max_restarts} each allowed"
    return Finding("restarts", profile, passed, reason)


def _errors(gates: Gates, profile: str, canary: Sample, control: Sample, level: float) -> Finding | None:
    if min(canary.requests, control.requests) < gates.min_requests:
        return None
    p = worse(canary.errors, canary.requests, control.errors, control.requests)
    new, old = canary.errors / canary.requests, control.errors / control.requests
    passed = p >= level or new - old <= gates.error_rate_increase
    reason = f"error rate {new:.4f} against {old:.4f} on the old release, p={p:.2g} (level {level:.2g})"
    return Finding("error-rate", profile, passed, reason)


def _latency(gates: Gates, profile: str, canary: Sample, control: Sample, level: float) -> Finding | None:
    new_total, old_total = sum(canary.buckets), sum(control.buckets)
    if min(new_total, old_total) < gates.min_requests:
        return None
    new_p95, old_p95 = quantile(canary.buckets, 0.95), quantile(control.buckets, 0.95)
    slow = first_slower(old_p95 * gates.latency_ratio)
    p = worse(sum(canary.buckets[slow:]), new_total, sum(control.buckets[slow:]), old_total)
    passed = p >= level or new_p95 <= old_p95 * gates.latency_ratio
    reason = f"latency p95 {new_p95:.3g} ms against {old_p95:.3g} ms on the old release, p={p:.2g}"
    return Finding("latency-p95", profile, passed, reason)


def quantile(buckets: Sequence[int], q: float) -> float:
    """The q-quantile in ms, linear within a bucket (as Prometheus' histogram_quantile does).

    The last bucket has no upper end: its lower end is the answer. 0.0 without data.
    """
    total = sum(buckets)
    rank = q * total
    seen = 0
    for index, count in enumerate(buckets):
        if count and seen + count >= rank:
            low = LATENCY_BOUNDS_MS[index - 1] if index else 0.0
            if index >= len(LATENCY_BOUNDS_MS):
                return low
            return low + (LATENCY_BOUNDS_MS[index] - low) * (rank - seen) / count
        seen += count
    return 0.0


def first_slower(limit_ms: float) -> int:
    """Index of the first bucket that lies entirely above `limit_ms` (the last one at most)."""
    for index in range(1, len(LATENCY_BOUNDS_MS) + 1):
        if LATENCY_BOUNDS_MS[index - 1] >= limit_ms:
            return index
    return len(LATENCY_BOUNDS_MS)


def worse(bad: int, total: int, control_bad: int, control_total: int) -> float:
    """One-sided p-value of `bad/total` being no higher than `control_bad/control_total`."""
    if not (0 <= bad <= total and 0 <= control_bad <= control_total):
        return 1.0  # counters that contradict themselves prove nothing
    if total == 0 or control_total == 0:
        return 1.0
    if total + control_total <= _EXACT_LIMIT:
        return fisher_greater(bad, total, control_bad, control_total)
    return z_greater(bad, total, control_bad, control_total)


def fisher_greater(a: int, n1: int, c: int, n2: int) -> float:
    """P(X >= a) for X hypergeometric with the margins of the table [[a, n1-a], [c, n2-c]]."""
    bad, everything = a + c, n1 + n2
    base = _log_choose(everything, bad)
    top = min(bad, n1)
    terms = (
        math.exp(_log_choose(n1, x) + _log_choose(n2, bad - x) - base)
        for x in range(a, top + 1)
        if bad - x <= n2
    )
    return min(1.0, math.fsum(terms))


def z_greater(a: int, n1: int, c: int, n2: int) -> float:
    """Upper tail of the pooled two-proportion z statistic."""
    pooled = (a + c) / (n1 + n2)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / n1 + 1 / n2))
    if spread == 0:
        return 1.0
    return 0.5 * math.erfc((a / n1 - c / n2) / spread / math.sqrt(2))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
