from __future__ import annotations

from typing import Any

from edgekit import profile
from edgekit.build import choose, gates
from tests.unit.build.figures import outcome, slow

LATENCY, SIZE = gates.FIGURES["latency_p50_ms"], gates.FIGURES["size_mib"]
GENERIC = profile.get("generic-cpu")


def test_the_fastest_wins_on_the_target() -> None:
    outcomes = [outcome("fp32", 0, latency=slow(2.0)), outcome("int8", 1, latency=slow(1.0))]
    assert choose.best(GENERIC, outcomes, LATENCY) is outcomes[1]


def test_a_tie_goes_to_the_profiles_order() -> None:
    outcomes = [outcome("int8", 1, latency=slow(1.0)), outcome("fp32", 0, latency=slow(1.09))]
    assert choose.best(GENERIC, outcomes, LATENCY) is outcomes[1]


def test_elsewhere_the_profiles_order_decides_whatever_the_clock_says() -> None:
    outcomes = [
        outcome("int8", 1, latency=slow(0.1), on_target=False),
        outcome("fp32", 0, latency=slow(9), on_target=False),
    ]
    assert choose.best(GENERIC, outcomes, LATENCY) is outcomes[1]


def test_the_smallest_wins_when_size_is_the_goal() -> None:
    outcomes = [
        outcome("fp32", 0, size_bytes=900),
        outcome("int8", 1, size_bytes=300, latency=slow(9)),
        outcome("int8-dynamic", 2, size_bytes=300, latency=slow(1)),
    ]
    assert choose.best(GENERIC, outcomes, SIZE) is outcomes[1]


def test_failed_gates_and_errors_never_win() -> None:
    outcomes = [
        outcome("fp32", 0, failed="accuracy", size_bytes=1),
        outcome("int8", 1, error="the engine crashed"),
        outcome("int8-dynamic", 2),
    ]
    assert choose.best(GENERIC, outcomes, SIZE) is outcomes[2]
    assert choose.best(GENERIC, outcomes[:2], SIZE) is None
    assert choose.least_bad(GENERIC, outcomes, SIZE) is outcomes[0]
    assert choose.least_bad(GENERIC, outcomes[1:2], SIZE) is None


def test_profiles_do_not_see_each_others_candidates() -> None:
    stranger = outcome("int8", 0, profile_name="jetson")
    assert choose.best(GENERIC, [stranger], LATENCY) is None


def test_every_outcome_is_explained() -> None:
    winner = outcome("fp32", 0)
    outcomes = [
        winner,
        outcome("int8", 1, latency=slow(5)),
        outcome("int8-dynamic", 2, failed="memory"),
        outcome("fp16", 3, error="cannot build"),
    ]
    told = choose.explained(outcomes, [winner], LATENCY)
    assert [one.kept for one in told] == [True, False, False, False]
    assert told[0].reason == "kept: passes every gate, fastest"
    assert told[1].reason.startswith("passes; onnxruntime.fp32 is preferred")
    assert told[2].reason == "memory is too bad"
    assert told[3].reason == "cannot build"


def test_a_forced_winner_says_what_stands_against_it() -> None:
    forced = outcome("int8", 0, failed="accuracy")
    (told,) = choose.explained([forced], [forced], SIZE)
    assert told.kept
    assert told.reason == "kept by --no-gate although: accuracy is too bad"


def test_figures_of_equal_worth_are_a_tie_for_any_objective() -> None:
    outcomes = [outcome("int8", 1, size_bytes=1000), outcome("fp32", 0, size_bytes=1090)]
    assert choose.best(GENERIC, outcomes, SIZE) is outcomes[1]
    outcomes = [outcome("int8", 1, size_bytes=1000), outcome("fp32", 0, size_bytes=1110)]
    assert choose.best(GENERIC, outcomes, SIZE) is outcomes[0]


def test_the_most_wins_where_higher_is_better() -> None:
    speedup = gates.FIGURES["speedup"]
    outcomes = [outcome("fp32", 0, latency=slow(1.0)), outcome("int8", 1, latency=slow(0.5))]
    assert choose.best(GENERIC, outcomes, speedup) is outcomes[1]


def test_the_front_holds_what_nothing_beats() -> None:
    small = outcome("int8", 0, size_bytes=300, latency=slow(2))
    fast = outcome("fp32", 1, size_bytes=900, latency=slow(1))
    beaten = outcome("fp16", 2, size_bytes=950, latency=slow(3))
    broken = outcome("int8-dynamic", 3, error="cannot build")
    told = choose.explained([small, fast, beaten, broken], [fast], LATENCY)
    assert [one.on_front for one in told] == [True, True, False, False]


def test_an_engine_that_was_not_measured_ships_beside_the_best_that_was() -> None:
    """Whatever its stand-in's clock says; in the profile's order."""
    kind: dict[str, Any] = {"engine": "tensorrt", "stand_in": "onnxruntime", "on_target": False}
    elsewhere = outcome("int8", 0, latency=slow(9), **kind)
    half = outcome("fp16", 1, latency=slow(1), **kind)
    slower, faster = outcome("fp32", 2, latency=slow(2)), outcome("int8", 3, latency=slow(1))
    outcomes = [elsewhere, half, slower, faster]
    kept = choose.shipped(GENERIC, outcomes, LATENCY)
    assert kept == [elsewhere, faster]
    told = choose.explained(outcomes, kept, LATENCY)
    assert [one.kept for one in told] == [True, False, False, True]
    assert told[1].reason.startswith("passes; tensorrt.int8 is preferred")
    assert told[2].reason.startswith("passes; onnxruntime.int8 is preferred")


def test_a_profile_ships_what_passes_of_either_kind() -> None:
    bad = outcome("int8", 0, engine="tensorrt", stand_in="onnxruntime", failed="accuracy")
    good, worse = outcome("int8", 1), outcome("fp32", 2, failed="memory")
    assert choose.shipped(GENERIC, [bad, good], LATENCY) == [good]
    assert choose.shipped(GENERIC, [bad, worse], LATENCY) == []
    assert choose.shipped(GENERIC, [bad, worse], LATENCY, gate=False) == [bad, worse]
    assert choose.shipped(GENERIC, [bad, good], LATENCY, gate=False) == [good]
