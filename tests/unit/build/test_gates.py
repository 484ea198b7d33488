from __future__ import annotations

import pytest

from edgekit.build import gates, stats
from edgekit.build.gates import Figures, judge, passed
from edgekit.bundle.model import GateResult, Interval
from edgekit.errors import InputError
from edgekit.profile import Budget
from tests.unit.build.figures import figures, slow

NO_LIMITS = Budget()


def verdicts(
    seen: Figures,
    budget: Budget = NO_LIMITS,
    *,
    size_matters: bool = False,
) -> dict[str, GateResult]:
    return {gate.gate: gate for gate in judge(seen, budget, size_matters=size_matters)}


def test_a_good_candidate_passes_every_gate() -> None:
    gates = verdicts(figures())
    assert list(gates) == ["accuracy", "error growth", "speed"]
    assert passed(tuple(gates.values()))
    assert gates["accuracy"].reason == "accuracy 0.9137 >= 0.99 x fp32's 0.9125 = 0.9034"
    assert "2.00 x fp32" in gates["speed"].reason


@pytest.mark.parametrize(
    ("right", "good"),
    [(730, True), (723, True), (722, False), (72, False), (800, True)],
)
def test_accuracy_must_reach_the_share_of_fp32(right: int, good: bool) -> None:
    # 0.99 * 730 / 800 = 722.7 / 800
    assert verdicts(figures(accuracy=stats.wilson(right, 800)))["accuracy"].passed is good


def test_equal_accuracy_passes_even_when_the_whole_of_it_is_wanted() -> None:
    same = stats.wilson(730, 800)
    seen = figures(accuracy=same, baseline_accuracy=same)
    assert verdicts(seen, Budget(accuracy_ratio=1.0))["accuracy"].passed


def test_almost_threefold_errors_fail_although_the_share_of_accuracy_is_kept() -> None:
    seen = figures(accuracy=stats.wilson(9860, 10000), baseline_accuracy=stats.wilson(9950, 10000))
    gates = verdicts(seen)
    assert gates["accuracy"].passed
    assert not gates["error growth"].passed
    assert "error rate 0.0140" in gates["error growth"].reason


def test_a_few_samples_prove_no_error_growth() -> None:
    seen = figures(accuracy=stats.wilson(197, 200), baseline_accuracy=stats.wilson(199, 200))
    assert verdicts(seen)["error growth"].passed


def test_error_growth_beside_a_perfect_model() -> None:
    perfect = stats.wilson(800, 800)
    assert verdicts(figures(accuracy=perfect, baseline_accuracy=perfect))["error growth"].passed
    worse = figures(accuracy=stats.wilson(795, 800), baseline_accuracy=perfect)
    assert verdicts(worse)["accuracy"].passed
    assert not verdicts(worse)["error growth"].passed


@pytest.mark.parametrize(("p50_ms", "good"), [(0.5, True), (1.0, True), (1.05, True), (1.06, False)])
def test_slower_than_fp32_fails_beyond_the_tolerance(p50_ms: float, good: bool) -> None:
    assert verdicts(figures(latency=slow(p50_ms)))["speed"].passed is good


@pytest.mark.parametrize(
    ("changes", "budget", "size_matters", "words"),
    [
        ({"is_baseline": True}, Budget(), False, "baseline itself"),
        ({}, Budget(), True, "size is the goal"),
        ({}, Budget(min_speedup=0), False, "not asked for"),
        ({"on_target": False}, Budget(), False, "not the target"),
    ],
)
def test_when_speed_does_not_decide(
    changes: dict[str, bool], budget: Budget, size_matters: bool, words: str
) -> None:
    gate = verdicts(figures(latency=slow(9.0), **changes), budget, size_matters=size_matters)["speed"]
    assert gate.passed
    assert words in gate.reason


def test_budgets_are_limits_and_the_limit_itself_is_allowed() -> None:
    budget = Budget(latency_p95_ms=1.0, peak_rss_mib=50.0, bundle_mib=1.0)
    good = verdicts(figures(latency=slow(0.5), size_bytes=1024 * 1024), budget)
    assert list(good) == ["accuracy", "error growth", "speed", "latency", "memory", "size"]
    assert all(gate.passed for gate in good.values())
    bad = verdicts(figures(latency=slow(0.51), size_bytes=1024 * 1024 + 6000, peak_rss_mib=50.1), budget)
    assert [name for name, gate in bad.items() if not gate.passed] == ["latency", "memory", "size"]
    assert bad["memory"].reason == "50.10 > 50 MiB peak RSS"


def test_a_latency_budget_is_not_decided_on_another_machine() -> None:
    gate = verdicts(figures(latency=slow(9), on_target=False), Budget(latency_p95_ms=1))["latency"]
    assert gate.passed
    assert "not decided" in gate.reason


@pytest.mark.parametrize(
    ("coverage", "good"),
    [({"gpu": 9, "cpu": 1}, True), ({"gpu": 8, "cpu": 2}, False), ({}, False)],
)
def test_coverage(coverage: dict[str, int], good: bool) -> None:
    assert verdicts(figures(coverage=coverage), Budget(min_coverage=0.9))["coverage"].passed is good


def test_a_metric_where_lower_is_better() -> None:
    cer = {"metric": "cer", "higher_is_better": False}
    same = figures(**cer, accuracy=Interval(0.02, 0.01, 0.03), baseline_accuracy=Interval(0.02, 0.01, 0.03))
    assert verdicts(same)["accuracy"].reason == "cer 0.0200 <= 0.0298, fp32's 0.0200 with 0.99 allowed"
    worse = figures(**cer, accuracy=Interval(0.04, 0.035, 0.05), baseline_accuracy=Interval(0.02, 0.01, 0.03))
    assert [name for name, gate in verdicts(worse).items() if not gate.passed] == ["accuracy", "error growth"]


def test_agreement_with_fp32_has_no_error_growth_gate() -> None:
    seen = figures(
        metric="f1-agreement", of_reference=True, accuracy=Interval(0.95, 0.9, 0.99),
        baseline_accuracy=Interval(1.0, 1.0, 1.0),
    )  # fmt: skip
    assert list(verdicts(seen)) == ["accuracy", "speed"]
    assert not verdicts(seen)["accuracy"].passed
    assert verdicts(seen, Budget(accuracy_ratio=0.95))["accuracy"].passed


@pytest.mark.parametrize(
    ("text", "is_maximum", "good"),
    [("peak_rss_mib=50", True, True), ("peak_rss_mib=49", True, False), ("speedup=2", False, True),
     ("speedup=2.1", False, False), ("accuracy=0.92", False, False), ("size_mib=1", True, True)],
)  # fmt: skip
def test_constraints(text: str, is_maximum: bool, good: bool) -> None:
    limit = gates.constraint(text, is_maximum=is_maximum)
    *_, gate = judge(figures(), NO_LIMITS, size_matters=False, constraints=[limit])
    assert gate.gate == limit.figure
    assert gate.passed is good


def test_a_timing_constraint_is_not_decided_on_another_machine() -> None:
    limit = gates.constraint("latency_p95_ms=0.001", is_maximum=True)
    *_, gate = judge(figures(on_target=False), NO_LIMITS, size_matters=False, constraints=[limit])
    assert gate.passed
    assert "not decided" in gate.reason


@pytest.mark.parametrize("text", ["watts=3", "size_mib", "size_mib=much", "size_mib=nan"])
def test_a_bad_constraint_says_what_there_is(text: str) -> None:
    with pytest.raises(InputError, match="--max"):
        gates.constraint(text, is_maximum=True)


def test_another_engines_speed_memory_and_units_decide_nothing() -> None:
    seen = figures(stand_in="onnxruntime", on_target=False, latency=slow(99), peak_rss_mib=999.0)
    budget = Budget(latency_p95_ms=1.0, peak_rss_mib=10.0, min_coverage=0.9)
    limits = [gates.constraint("peak_rss_mib=10", is_maximum=True)]
    found = {one.gate: one for one in gates.judge(seen, budget, size_matters=False, constraints=limits)}
    assert all(one.passed for one in found.values())
    for name in ("speed", "latency", "memory", "coverage", "peak_rss_mib"):
        assert "not decided, onnxruntime stood in" in found[name].reason
    lost = figures(stand_in="onnxruntime", on_target=False, accuracy=stats.wilson(400, 800))
    assert not gates.judge(lost, budget, size_matters=False)[0].passed, "answers do decide"


def test_coverage_of_the_wanted_unit_names_where_the_rest_fell_back() -> None:
    seen = figures(coverage={"cpu": 9, "gpu": 1}, unit="gpu")
    gate = verdicts(seen, Budget(min_coverage=0.9))["coverage"]
    assert not gate.passed
    assert gate.reason == "1 of 10 nodes on gpu, 90% wanted; the others fell back to cpu (9)"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "accuracy 0.9137 >="),
        ({"emulated": "a72", "emulated_rows": 9}, "accuracy 0.9137 (9 of 800 rows on an emulated a72) >="),
        (
            {"emulated": "a72", "is_emulated_only": True, "host_gap": 0.5},
            "accuracy 0.9137 on an emulated a72 (this host answers otherwise, by up to 0.5) >=",
        ),
    ],
)
def test_the_accuracy_gate_says_whose_answers_it_judged(changes: dict[str, object], words: str) -> None:
    assert verdicts(figures(**changes))["accuracy"].reason.startswith(words)
