"""Fair shares among clients, without sockets."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edgekit_agent.serve.shares import ACTIVE_S, Share, Shares, Turns


class Line:
    """Shares over an engine that runs nothing: what is begun waits."""

    def __init__(self, max_queue: int, max_connections: int = 100, max_buffered: int = 1000) -> None:
        self.waiting = 0
        self.shares = Shares(max_connections, max_queue, max_buffered, lambda: self.waiting)

    def begin(self, share: Share, now: float, most: int = 1000) -> int:
        """How many requests it may begin now, one after the other."""
        count = 0
        while count < most and self.shares.begin(share, now):
            count += 1
            self.waiting += 1
        return count

    def end(self, share: Share, count: int) -> None:
        for _ in range(count):
            self.shares.end(share)
            self.waiting -= 1


def test_alone_all_but_a_quarter_and_the_next_one_finds_room() -> None:
    line = Line(64)
    greedy, modest = line.shares.join("a"), line.shares.join("b")
    assert line.begin(greedy, 0.0) == 48
    assert line.begin(modest, 1.0, 16) == 16 and line.waiting == 64


def test_together_each_keeps_an_equal_part() -> None:
    line = Line(64)
    one, other = line.shares.join("a"), line.shares.join("b")
    line.begin(one, 0.0)
    line.begin(other, 0.1, 16)
    line.end(one, 10)
    assert line.begin(one, 0.2) == 0  # it has 38, more than a half, and others wait
    assert line.begin(other, 0.2) == 16  # up to its half
    line.end(one, 30)
    assert line.begin(one, 0.3) == 24


def test_who_has_been_quiet_takes_no_part() -> None:
    line = Line(60)
    shares = [line.shares.join(key) for key in "abc"]
    for share in shares:
        assert line.shares.begin(share, 0.0)
        line.shares.end(share)
    assert line.begin(shares[0], 0.1) == 45
    line.end(shares[0], 30)
    line.waiting = 45  # of somebody else
    assert line.begin(shares[0], 0.2) == 5  # three are active: a third, 20
    line.waiting = 45
    assert line.begin(shares[0], 0.3 + ACTIVE_S) == 10  # one is: a half


def test_small_queues_are_left_to_the_core() -> None:
    line = Line(2)
    share = line.shares.join("a")
    assert line.begin(share, 0.0, 3) == 3


def test_connections() -> None:
    shares = Line(1, max_connections=8).shares
    mine = [shares.join("a") for _ in range(6)]
    assert not shares.crowded(mine[0]) and shares.crowded(shares.join("a"))
    assert not shares.crowded(shares.join("b"))


def test_buffered_bytes() -> None:
    shares = Line(1).shares
    one, other = shares.join("a"), shares.join("b")
    assert shares.hold(one, 750) and not shares.hold(one, 1)
    assert shares.hold(other, 250) and not shares.hold(other, 1)
    shares.release(one, 750)
    assert shares.hold(other, 500) and not shares.hold(other, 1)


STEPS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["join", "leave", "begin", "end"])), max_size=60
)


@given(STEPS)
def test_nobody_is_forgotten_too_early_or_kept_for_ever(steps: list[tuple[str, str]]) -> None:
    shares = Line(100).shares
    held: list[tuple[str, Any, Share]] = []
    for key, what in steps:
        mine = [item for item in held if item[0] == key]
        if what == "join":
            held.append((key, shares.leave, shares.join(key)))
        elif what == "begin" and mine:
            assert shares.begin(mine[0][2], 0.0)
            held.append((key, shares.end, mine[0][2]))
        elif what in ("leave", "end"):
            undo = shares.leave if what == "leave" else shares.end
            found = next((item for item in mine if item[1] == undo), None)
            if found is not None:
                held.remove(found)
                undo(found[2])
    for key, _, share in held:
        assert shares.join(key) is share
        shares.leave(share)
    for _, undo, share in held:
        undo(share)
    fresh = [shares.join(key) for key in "abc"]
    assert all(share.connections == 1 and not share.requests for share in fresh)


def test_a_large_request_takes_its_turns() -> None:
    turns = Turns()
    one, other = Share("a"), Share("b")
    stamps = {
        name: turns.stamp(share, samples)
        for name, share, samples in (("a1", one, 10), ("a2", one, 1), ("b1", other, 1), ("b2", other, 1))
    }
    assert sorted(stamps, key=lambda name: stamps[name]) == ["a1", "b1", "b2", "a2"]
    turns.served(stamps["a2"])
    late = Share("c")  # who comes late is not served before all that was there, only before what comes next
    assert stamps["a2"] <= turns.stamp(late, 1) < turns.stamp(one, 1)
