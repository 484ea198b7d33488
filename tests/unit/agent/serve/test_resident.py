"""Models that share a budget of memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest

from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit_agent.serve import resident
from edgekit_agent.serve.resident import Memory, Resident

ONE = {"x": np.ones((1, 1), np.float32)}


class Board:
    """Memory that sessions of a fixed size take and give back."""

    def __init__(self, base_mib: float = 30.0) -> None:
        self.used_mib = base_mib
        self.loads: list[str] = []
        self.names: dict[Resident, str] = {}
        self.memory = Memory(lambda: self.used_mib)

    def model(self, name: str, mib: float, *, loaded: bool = True, thread_safe: bool = True) -> Resident:
        def load() -> Sized:
            self.loads.append(name)
            return Sized(self, mib, thread_safe=thread_safe)

        made = Resident(self.memory, load, mib, load() if loaded else None)
        self.names[made] = name
        return made


class Sized:
    """y = x, in so much memory."""

    def __init__(self, board: Board, mib: float, *, thread_safe: bool) -> None:
        self.thread_safe = thread_safe
        self.board, self.mib, self.closed = board, mib, False
        self.hold = threading.Event()
        self.hold.set()
        self.running = self.most = 0
        board.used_mib += mib

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed, "a session ran after it was closed"
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.hold.wait(10)
        self.running -= 1
        return {"y": inputs["x"]}

    def coverage(self) -> dict[str, int]:
        return {"CPU": 1}

    def close(self) -> None:
        assert not self.running, "a session was closed while it ran"
        self.closed = True
        self.board.used_mib -= self.mib


def names(board: Board, *models: Resident) -> list[str]:
    """Of those that are loaded."""
    return [board.names[one] for one in models if one.loaded]


def test_who_was_not_asked_for_longest_rests_first() -> None:
    board = Board()
    a, b, c = board.model("a", 20), board.model("b", 20), board.model("c", 20, loaded=False)
    board.memory.budget_mib = 75.0
    a.run(ONE)
    assert names(board, a, b, c) == ["a", "b"] and board.loads == ["a", "b"]
    c.run(ONE)
    assert names(board, a, b, c) == ["a", "c"] and board.used_mib == 70
    b.run(ONE)
    assert names(board, a, b, c) == ["b", "c"]
    assert a.run(ONE)["y"] == 1 and names(board, a, b, c) == ["a", "b"]
    assert board.loads == ["a", "b", "c", "b", "a"]


def test_a_large_one_takes_the_place_of_several() -> None:
    board = Board()
    a, b, big = board.model("a", 20), board.model("b", 20), board.model("big", 45, loaded=False)
    board.memory.budget_mib = 80.0
    big.run(ONE)
    assert names(board, a, b, big) == ["big"]


def test_without_a_budget_all_stay() -> None:
    board = Board()
    found = [board.model(name, 1000) for name in "abc"]
    board.memory.make_room(1e6)
    assert names(board, *found) == ["a", "b", "c"]


def test_a_model_ends_its_run_before_it_rests() -> None:
    board = Board()
    a, b = board.model("a", 20), board.model("b", 20, loaded=False)
    board.memory.budget_mib = 55.0
    session = a.session
    assert isinstance(session, Sized)
    session.hold.clear()
    running = threading.Thread(target=a.run, args=(ONE,))
    running.start()
    while not session.running:
        time.sleep(0.001)
    asker = threading.Thread(target=b.run, args=(ONE,))
    asker.start()
    while a.loaded:
        time.sleep(0.001)
    again = threading.Thread(target=a.run, args=(ONE,))  # has to wait its turn now
    again.start()
    assert session.running == 1 and not session.closed and not b.loaded
    session.hold.set()
    for thread in (running, asker, again):
        thread.join()
    assert board.loads == ["a", "b", "a"] and names(board, a, b) == ["a"]


def test_looking_after_the_budget_disturbs_nobody() -> None:
    board = Board()
    a, b = board.model("a", 20), board.model("b", 20)
    assert a.pin()
    board.memory.budget_mib = 10.0
    board.memory.make_room()
    assert names(board, a, b) == ["a"]
    a.unpin()
    board.memory.make_room()
    assert names(board, a, b) == []


def test_a_pinned_one_stays_and_a_resting_one_cannot_be_pinned() -> None:
    board = Board()
    a, b = board.model("a", 20), board.model("b", 20, loaded=False)
    board.memory.budget_mib = 55.0
    assert a.pin() and not b.pin()
    board.memory.make_room(100.0)
    assert names(board, a, b) == ["a"]
    a.unpin()
    board.memory.make_room(100.0)
    assert names(board, a, b) == [] and not a.runs and not b.runs


def test_one_that_cannot_be_loaded_says_why_each_time() -> None:
    board = Board()

    def load() -> Sized:
        raise EngineError("no memory for the model")

    broken = Resident(board.memory, load, 1.0)
    for _ in range(2):
        with pytest.raises(EngineError, match="no memory for the model"):
            broken.run(ONE)
    assert not broken.runs and not broken.loading and not broken.loaded


def test_many_askers_load_it_once_and_an_engine_that_is_not_thread_safe_runs_alone() -> None:
    board = Board()
    one = board.model("one", 5, loaded=False, thread_safe=False)
    askers = [threading.Thread(target=one.run, args=(ONE,)) for _ in range(8)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert board.loads == ["one"] and not one.runs
    assert isinstance(one.session, Sized) and one.session.most == 1


def test_loading_is_no_inference_until_it_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    board, began, go_on = Board(), threading.Event(), threading.Event()

    def load() -> Sized:
        began.set()
        assert go_on.wait(10)
        return Sized(board, 1, thread_safe=True)

    slow = Resident(board.memory, load, 1.0)
    asker = threading.Thread(target=slow.run, args=(ONE,))
    asker.start()
    assert began.wait(10)
    states = [slow.loading]
    monkeypatch.setattr(resident, "LOAD_S", 0.0)
    states.append(slow.loading)
    go_on.set()
    asker.join()
    assert slow.loaded and [*states, slow.loading] == [True, False, False]


def test_closing_gives_everything_back() -> None:
    board, forgotten = Board(), []
    a = Resident(
        board.memory, lambda: Sized(board, 20, thread_safe=True), 20, None, lambda: forgotten.append("a")
    )
    a.run(ONE)
    assert a.coverage() == {"CPU": 1} and board.used_mib == 50
    a.close()
    assert board.used_mib == 30 and forgotten == ["a"] and a.coverage() == {}
    board.memory.budget_mib = 1.0
    board.memory.make_room()  # nobody is left that could make any
