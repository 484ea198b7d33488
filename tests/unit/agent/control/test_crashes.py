"""How long the next try waits."""

from __future__ import annotations

import pytest

from edgekit_agent.crashes import AT_ONCE, CALM_S, Crashes, how


@pytest.mark.parametrize(("served", "longest_s"), [(True, 0.5), (False, 5.0)])
def test_the_first_ones_at_once_then_longer_and_longer(served: bool, longest_s: float) -> None:
    crashes = Crashes()
    waits = [crashes.add(1000.0 + i, served=served) for i in range(AT_ONCE + 8)]
    assert waits[:AT_ONCE] == [0.0] * AT_ONCE
    assert waits[AT_ONCE] == 0.2 and waits == sorted(waits) and waits[-1] == longest_s


def test_what_is_long_ago_does_not_count() -> None:
    crashes = Crashes()
    for i in range(20):
        assert crashes.add(1000.0 + i * CALM_S) == 0.0
    assert crashes.count(1000.0 + 20 * CALM_S) == 0
    crashes.add(5000.0)
    crashes.clear()
    assert crashes.count(5000.0) == 0


@pytest.mark.parametrize(
    ("status", "text"), [(-11, "SIGSEGV"), (3, "exit status 3"), (None, "ended"), (-99, "signal 99")]
)
def test_words(status: int | None, text: str) -> None:
    assert text in how(status)
