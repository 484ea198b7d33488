from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.wire import LATENCY_BOUNDS_MS
from edgekit_fleet.rollout.gates import (
    Evidence,
    Sample,
    first_slower,
    fisher_greater,
    judge,
    look_time,
    quantile,
    worse,
    z_greater,
)
from edgekit_fleet.rollout.strategies import Gates


def choose_tail(a: int, n1: int, c: int, n2: int) -> float:
    """The definition, in whole numbers."""
    bad, total = a + c, math.comb(n1 + n2, a + c)
    return sum(math.comb(n1, x) * math.comb(n2, bad - x) for x in range(a, min(bad, n1) + 1)) / total


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_fisher_equals_its_definition(n1: int, n2: int, data: st.DataObject) -> None:
    a, c = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    assert fisher_greater(a, n1, c, n2) == pytest.approx(choose_tail(a, n1, c, n2), rel=1e-9, abs=1e-12)


def test_fishers_tea_tasting() -> None:
    """The Design of Experiments, 1935, chapter 2: 3 of 4 cups right, one-sided p = 17/70."""
    assert fisher_greater(3, 4, 1, 4) == pytest.approx(17 / 70)


def test_z_agrees_with_fisher_on_large_counts() -> None:
    assert z_greater(60, 5000, 40, 5000) == pytest.approx(fisher_greater(60, 5000, 40, 5000), abs=0.01)
    assert z_greater(0, 9, 0, 9) == 1.0


def test_impossible_counters_prove_nothing() -> None:
    assert worse(5, 3, 0, 10) == 1.0
    assert worse(0, 0, 0, 10) == 1.0


@given(st.lists(st.integers(0, 50), min_size=14, max_size=14), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantile_lies_in_the_bucket_of_its_rank(buckets: list[int], q: float) -> None:
    value = quantile(buckets, q)
    total = sum(buckets)
    if total == 0:
        assert value == 0.0
        return
    below = sum(n for n, bound in zip(buckets, LATENCY_BOUNDS_MS, strict=False) if bound <= value)
    upto = sum(
        n for n, low in zip(buckets, (0.0, *LATENCY_BOUNDS_MS), strict=True) if low < value or low == 0.0
    ) + (buckets[-1] if value == LATENCY_BOUNDS_MS[-1] else 0)
    assert below <= q * total + 1e-6 or value in LATENCY_BOUNDS_MS
    assert upto >= q * total - 1e-6


def test_first_slower() -> None:
    assert LATENCY_BOUNDS_MS[first_slower(3.0) - 1] == 5.0
    assert first_slower(1e9) == len(LATENCY_BOUNDS_MS)


def buckets(**counts: int) -> tuple[int, ...]:
    values = [0] * 14
    for name, count in counts.items():
        values[int(name[1:])] = count
    return tuple(values)


def failed(gates: Gates, canary: Sample, control: Sample) -> list[str]:
    return [f.gate for f in judge(gates, Evidence({"p": canary}, {"p": control})) if not f.passed]


def test_each_gate_can_fail_and_can_pass() -> None:
    gates = Gates(max_restarts=1)
    good = Sample(1000, 5, buckets(b4=980, b6=20), 0, 1)
    control = Sample(4000, 20, buckets(b4=3900, b6=100), 0, 4)
    assert failed(gates, good, control) == []
    assert failed(gates, Sample(1000, 50, good.buckets, 0, 1), control) == ["error-rate"]
    assert failed(gates, Sample(1000, 300, good.buckets, 0, 1), Sample()) == ["max-error-rate"]
    assert failed(gates, Sample(1000, 5, buckets(b4=500, b8=500), 0, 1), control) == ["latency-p95"]
    assert failed(gates, Sample(1000, 5, good.buckets, 2, 1), control) == ["restarts"]


def test_little_data_is_not_judged() -> None:
    assert failed(Gates(), Sample(20, 20, buckets(b9=20)), Sample(1000, 0, buckets(b1=1000))) == []


def test_small_but_significant_difference_is_tolerated() -> None:
    assert failed(Gates(), Sample(9000, 80), Sample(9000, 9)) == []
    assert failed(Gates(error_rate_increase=0.001), Sample(9000, 80), Sample(9000, 9)) == ["error-rate"]


def test_other_profiles_are_no_control() -> None:
    slow = Sample(1000, 0, buckets(b8=1000))
    fast = Sample(1000, 0, buckets(b2=1000))
    assert all(f.passed for f in judge(Gates(), Evidence({"pi": slow}, {"jetson": fast})))


def test_looks() -> None:
    assert look_time(100, 40, 4, 105) is None
    assert look_time(100, 40, 4, 110) == 110
    assert look_time(100, 40, 4, 129) == 120
    assert look_time(100, 40, 4, 500) == 140
    assert look_time(100, 0, 4, 100) == 100


def test_false_stops_stay_below_alpha_and_real_ones_are_found() -> None:
    """1000 simulated rollouts each, 5 % errors on both sides, then 12 % on the new release."""
    random.seed(7)
    gates = Gates(alpha=0.01, error_rate_increase=0.0)

    def stopped(rate: float) -> bool:
        canary = control = 0
        for look in range(1, 5):
            canary += sum(random.random() < rate for _ in range(100))
            control += sum(random.random() < 0.05 for _ in range(300))
            if failed(gates, Sample(100 * look, canary), Sample(300 * look, control)):
                return True
        return False

    assert sum(stopped(0.05) for _ in range(1000)) <= 10
    assert sum(stopped(0.12) for _ in range(200)) >= 150
