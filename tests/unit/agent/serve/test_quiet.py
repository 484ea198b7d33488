"""Memory goes back once when load is over, never while somebody asks."""

from __future__ import annotations

from edgekit_agent.serve.quiet import QUIET_S, Quiet


def test_once_after_each_load() -> None:
    quiet, at = Quiet(0.0), 100.0
    assert not quiet.look(at, 0)  # nobody has asked yet
    assert not quiet.look(at, 5)
    assert not quiet.look(at + QUIET_S - 0.1, 5)
    assert quiet.look(at + QUIET_S, 5)
    assert not quiet.look(at + 100, 5)
    at += 200
    for second in range(60):
        assert not quiet.look(at + second, 6 + second)
    assert [quiet.look(at + 60 + second, 65) for second in range(20)].count(True) == 1
