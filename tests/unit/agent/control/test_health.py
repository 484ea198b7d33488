"""When a new release must go."""

from __future__ import annotations

import pytest

from edgekit.wire import LATENCY_BOUNDS_MS
from edgekit_agent.health import Limits, Seen, quantile, violation

LIMITS = Limits(max_error_rate=0.05, max_latency_p95_ms=5.0, max_restarts=3)


def buckets(**counts: int) -> tuple[int, ...]:
    made = [0] * (len(LATENCY_BOUNDS_MS) + 1)
    for index, count in counts.items():
        made[int(index[1:])] = count
    return tuple(made)


@pytest.mark.parametrize(
    ("seen", "final", "word"),
    [
        (Seen(), True, ""),
        (Seen(requests=100, errors=5), True, ""),
        (Seen(requests=100, errors=6), False, "6 of 100 requests failed"),
        (Seen(requests=2, errors=1), False, ""),
        (Seen(requests=2, errors=1), True, "1 of 2"),
        (Seen(restarts=2), True, ""),
        (Seen(restarts=3), False, "crashed 3 times"),
        (Seen(requests=50, latency_buckets=buckets(_5=50)), True, ""),
        (Seen(requests=50, latency_buckets=buckets(_5=45, _9=5)), False, "latency p95"),
        (Seen(requests=9, latency_buckets=buckets(_9=9)), True, ""),
    ],
)
def test_violation(seen: Seen, final: bool, word: str) -> None:
    found = violation(seen, LIMITS, final=final)
    assert word in found and bool(word) == bool(found)


def test_quantile_is_linear_in_its_bucket() -> None:
    assert quantile(buckets(_4=100), 0.5) == pytest.approx(1.75)  # between 1.0 and 2.5 ms
    assert quantile(buckets(_13=1), 0.95) > LATENCY_BOUNDS_MS[-1]
