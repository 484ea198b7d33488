"""Large bodies: memory is used again, and no more of them are read than the engine has use for."""

from __future__ import annotations

import numpy as np

from edgekit_agent.serve.room import ALIGNED, Ahead, Buffers, fresh


def test_a_buffer_is_used_again_when_nobody_else_has_it() -> None:
    buffers = Buffers(1000)
    first = bytearray(100)
    buffers.keep(first)
    assert buffers.take(100) is None  # `first` is in use
    view = np.frombuffer(first, np.uint8)
    name = id(first)
    del first
    assert buffers.take(100) is None  # so is what it holds
    del view
    again = buffers.take(100)
    assert again is not None and id(again) == name
    assert buffers.take(100) is None and buffers.take(99) is None


def test_no_more_is_kept_than_allowed_and_what_is_idle_goes_first() -> None:
    buffers = Buffers(250)
    used = bytearray(100)
    buffers.keep(used)
    buffers.keep(bytearray(100))
    buffers.keep(bytearray(120))  # in the place of the free one
    assert buffers.take(120) is not None and buffers._bytes == 220
    buffers.keep(bytearray(200))  # no room at all: `used` stays
    assert buffers.take(200) is None
    buffers.keep(bytearray(251))
    assert buffers.take(251) is None and buffers._bytes <= 250


def test_what_nobody_uses_is_given_back() -> None:
    buffers = Buffers(1000)
    used = bytearray(100)
    buffers.keep(used)
    buffers.keep(bytearray(200))
    buffers.take(1)
    buffers.tend()
    assert buffers._bytes == 300
    buffers.tend()
    assert buffers._bytes == 100
    del used
    buffers.tend()
    assert buffers._bytes == 0 and not buffers._kept


class Waiters:
    def __init__(self, ahead: Ahead) -> None:
        self.ahead, self.went_on = ahead, list[str]()

    def wait(self, name: str) -> None:
        self.ahead.wait(lambda: self.went_on.append(name))


def test_bodies_wait_while_enough_is_at_hand_and_go_on_one_by_one() -> None:
    ahead = Ahead(100, lambda: 2)
    waiters = Waiters(ahead)
    found = []
    for _ in range(3):
        ahead.add(90)
        found.append(ahead.full)
    assert found == [False, False, True]  # two are much, but the engine needs them at hand
    for name in "abc":
        waiters.wait(name)
    ahead.remove(90)
    assert waiters.went_on == ["a"] and ahead.full  # others have waited longer
    ahead.add(90)
    ahead.remove(90)
    assert waiters.went_on == ["a", "b"]


def test_a_client_that_stalls_holds_up_nobody() -> None:
    ahead = Ahead(100, lambda: 1)
    waiters = Waiters(ahead)
    ahead.add(90)
    ahead.add(90)
    for name in "abcd":
        waiters.wait(name)
    ahead.remove(90)  # "a" goes on, and sends nothing
    ahead.remove(90)
    assert waiters.went_on == ["a", "b", "c", "d"] and not ahead.full


def test_who_has_gone_does_not_wait() -> None:
    ahead = Ahead(1, lambda: 0)
    went: list[str] = []

    def go_on() -> None:
        went.append("on")

    ahead.add(5)
    ahead.wait(go_on)
    ahead.forget(go_on)
    ahead.forget(go_on)
    ahead.remove(5)
    assert went == []


def test_a_buffer_begins_where_what_follows_a_head_in_it_is_aligned() -> None:
    buffers = Buffers(1 << 20)
    for skew in range(ALIGNED):
        buffer = fresh(100_000, skew)
        begin = np.frombuffer(buffer, np.uint8).ctypes.data
        assert len(buffer) == 100_000 and begin % ALIGNED == skew
        buffers.keep(buffer, skew)
        del buffer
        again = buffers.take(100_000, skew)
        assert again is not None and np.frombuffer(again, np.uint8).ctypes.data == begin
        del again
    assert buffers.take(100_000, ALIGNED) is None
