"""Memory goes back once when load is over, never while somebody asks."""

from __future__ import annotations

from edgekit_agent.serve.quiet import NOBODY_S, QUIET_S, Quiet


def test_once_after_each_load() -> None:
    quiet, at = Quiet(0.0), 100.0
    assert quiet.look(at, 0, 1)  # what starting took
    assert not quiet.look(at, 0, 1)
    assert not quiet.look(at, 5, 1)
    assert not quiet.look(at + QUIET_S - 0.1, 5, 1)
    assert quiet.look(at + QUIET_S, 5, 1)
    assert not quiet.look(at + 100, 5, 1)
    at += 200
    for second in range(60):
        assert not quiet.look(at + second, 6 + second, 1)
    assert [quiet.look(at + 60 + second, 65, 1) for second in range(20)].count(True) == 1


def test_sooner_where_everybody_has_gone() -> None:
    quiet = Quiet(0.0)
    assert not quiet.look(1.0, 5, 3)
    assert not quiet.look(1.5, 5, 0)
    assert quiet.look(1.0 + NOBODY_S, 5, 0)
    assert not quiet.look(10.0, 5, 0)
