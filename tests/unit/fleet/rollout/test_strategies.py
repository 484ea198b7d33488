from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import codec
from edgekit.errors import ConfigError
from edgekit_fleet.rollout.query import Target
from edgekit_fleet.rollout.strategies import OnError, Phase, Strategy, order, plan, validate

FLEET = [Target(f"d{i}", "jetson" if i % 2 else "pi") for i in range(10)]
sizes = st.integers(0, 5).map(str) | st.integers(0, 100).map("{}%".format) | st.just("rest")


def test_default_is_valid_and_takes_everyone() -> None:
    groups = plan(validate(Strategy()), FLEET)
    assert [len(group) for group in groups] == [1, 9]


def test_canary_is_the_same_whatever_the_order_of_devices() -> None:
    assert order(FLEET) == order(FLEET[::-1])
    assert plan(Strategy(), FLEET) == plan(Strategy(), FLEET[::-1])


def test_shares_are_of_all_targets_rounded_up() -> None:
    strategy = Strategy((Phase("a", "7%"), Phase("b", "30%"), Phase("c")))
    assert [len(group) for group in plan(strategy, FLEET)] == [1, 3, 6]
    hundred = [Target(str(i)) for i in range(100)]
    assert len(plan(strategy, hundred)[0]) == 7


def test_where_narrows_a_phase() -> None:
    strategy = Strategy((Phase("a", "2", where="profile == pi"), Phase("b")))
    groups = plan(strategy, FLEET)
    assert len(groups[0]) == 2
    assert set(groups[0]) <= {f"d{i}" for i in range(0, 10, 2)}


@given(st.lists(sizes, min_size=1, max_size=5), st.integers(0, 30))
def test_every_device_at_most_once(chosen: list[str], count: int) -> None:
    strategy = Strategy(tuple(Phase(f"p{i}", size) for i, size in enumerate(chosen)))
    groups = plan(strategy, [Target(f"d{i}") for i in range(count)])
    placed = [device for group in groups for device in group]
    assert len(placed) == len(set(placed))
    if "rest" in chosen:
        assert len(placed) == count


@pytest.mark.parametrize(
    ("phase", "what"),
    [
        (Phase("a", size="many"), "size 'many'"),
        (Phase("a", size="-1"), "size '-1'"),
        (Phase("a", size="101%"), "size is 101"),
        (Phase(""), "not a name"),
        (Phase("a", success=101), "success is 101"),
        (Phase("a", errors=-1), "errors is -1"),
        (Phase("a", errors_percent=-0.5), "errors_percent"),
        (Phase("a", soak_s=float("nan")), "soak is nan"),
        (Phase("a", deadline_s=0), "deadline is 0"),
        (Phase("a", where="nope == 1"), "column 1"),
    ],
)
def test_bad_phases_are_refused(phase: Phase, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        validate(Strategy((phase,)))


def test_bad_strategies_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 phases"):
        validate(Strategy(()))
    with pytest.raises(ConfigError, match="two phases are named 'a'"):
        validate(Strategy((Phase("a"), Phase("a"))))
    with pytest.raises(ConfigError, match="alpha"):
        validate(replace(Strategy(), gates=replace(Strategy().gates, alpha=0.0)))


def test_round_trip_and_toml(tmp_path: Path) -> None:
    strategy = Strategy((Phase("a", "1", errors=2, on_error=OnError.PAUSE), Phase("b")), approval=True)
    assert codec.from_json(Strategy, codec.to_json(strategy), what="strategy") == strategy
    file = tmp_path / "s.toml"
    file.write_text('watch_s = 2\n[[phases]]\nname = "a"\nsize = "1"\non_error = "PAUSE"\nsoak_s = 5\n')
    assert codec.from_toml(Strategy, file).phases == (Phase("a", "1", on_error=OnError.PAUSE, soak_s=5),)
    file.write_text('[[phases]]\nname = "a"\non_error = "EXPLODE"\n')
    with pytest.raises(ConfigError, match="EXPLODE"):
        codec.from_toml(Strategy, file)
