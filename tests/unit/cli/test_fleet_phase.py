from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import codec
from edgekit.cli._fleet_phase import parse, seconds
from edgekit.errors import EdgekitError, InputError
from edgekit_fleet.rollout.strategies import OnError, OnSuccess, Phase


def phase(text: str) -> Phase:
    """What the fleet makes of it."""
    return codec.from_plain(Phase, parse(text), what="phase")


def test_what_the_fleet_reads() -> None:
    assert phase("canary:1,success=100,errors=0,soak=5") == Phase(
        "canary", "1", success=100, errors=0, soak_s=5
    )
    assert phase("rest") == Phase("rest", "rest")
    assert phase("half:50%,errors=2.5%,min=4,deadline=1h,on_success=pause,on_error=pause") == Phase(
        "half",
        "50%",
        errors_percent=2.5,
        min_executed=4,
        deadline_s=3600,
        on_success=OnSuccess.PAUSE,
        on_error=OnError.PAUSE,
    )
    assert phase("a:2,on_success=next,where=id in (x, y)").where == "id in (x, y)"


@pytest.mark.parametrize("text", ["a,soak", "a,soap=5", "a,errors=many", "a,success=x", "a,soak=5y"])
def test_mistakes(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.hint


def test_seconds() -> None:
    assert [seconds(text) for text in ("90", "90s", "1.5m", "2h", "1d")] == [90, 90, 90, 7200, 86400]


@given(st.text(max_size=60))
def test_any_text_is_a_phase_or_an_error(text: str) -> None:
    try:
        phase(text)
    except EdgekitError as error:
        assert "\n" not in error.message
