"""The activation's state machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.wire import Assignment, JobState, Stage
from edgekit_agent.stages import MAX_RESTARTS, Event, step
from edgekit_agent.store import Activation

ASSIGNMENT = Assignment("default", "d", 1, "job", "m:1", "sha256:" + "0" * 64, 1, "/v1/x", "", 60.0, 1.0, 0.1)
GOOD_WAY = [
    Stage.DOWNLOAD, Stage.VERIFY, Stage.DECRYPT, Stage.PROBE, Stage.SWAP, Stage.WATCH, Stage.COMMIT,
]  # fmt: skip


def at(stage: Stage, **changes: object) -> Activation:
    return Activation("job", ASSIGNMENT, JobState.IN_PROGRESS, stage, **changes)  # type: ignore[arg-type]


def test_the_good_way() -> None:
    entry, seen = at(Stage.DOWNLOAD), []
    while not entry.state.terminal:
        seen.append(entry.stage)
        entry = step(entry, Event.DONE)
    assert seen == GOOD_WAY
    assert (entry.state, entry.code) == (JobState.SUCCEEDED, "")


@pytest.mark.parametrize("stage", GOOD_WAY[:4])
@pytest.mark.parametrize(
    ("event", "end"),
    [
        (Event.FAILED, JobState.FAILED),
        (Event.REFUSED, JobState.REJECTED),
        (Event.TIMEOUT, JobState.TIMED_OUT),
        (Event.CANCEL, JobState.CANCELED),
    ],
)
def test_before_the_swap_nothing_is_undone(stage: Stage, event: Event, end: JobState) -> None:
    entry = step(at(stage), event, code="X", message="why")
    assert (entry.state, entry.stage, entry.code, entry.message) == (end, stage, "X", "why")


@pytest.mark.parametrize("stage", [Stage.SWAP, Stage.WATCH])
@pytest.mark.parametrize(
    ("event", "end"),
    [
        (Event.FAILED, JobState.ROLLED_BACK),
        (Event.UNHEALTHY, JobState.ROLLED_BACK),
        (Event.TIMEOUT, JobState.TIMED_OUT),
        (Event.CANCEL, JobState.CANCELED),
    ],
)
def test_after_the_swap_it_is_rolled_back(stage: Stage, event: Event, end: JobState) -> None:
    entry = step(at(stage), event, code="X")
    assert (entry.state, entry.stage) == (JobState.IN_PROGRESS, Stage.ROLLBACK)
    for last in (Event.DONE, Event.FAILED):
        assert (step(entry, last).state, step(entry, last).code) == (end, "X")


def test_damaged_download_is_fetched_once_more() -> None:
    again = step(at(Stage.VERIFY), Event.DAMAGED, code="DigestError")
    assert (again.state, again.stage, again.refetched) == (JobState.IN_PROGRESS, Stage.DOWNLOAD, 1)
    second = step(step(again, Event.DONE), Event.DAMAGED, code="DigestError")
    assert (second.state, second.code) == (JobState.FAILED, "DigestError")


def test_restarts_are_limited_except_in_commit() -> None:
    entry = at(Stage.WATCH)
    for _ in range(MAX_RESTARTS):
        entry = step(entry, Event.RESTART)
        assert entry.stage is Stage.VERIFY
        entry = at(Stage.WATCH, restarts=entry.restarts)
    assert step(entry, Event.RESTART).state is JobState.ROLLED_BACK
    commit = at(Stage.COMMIT, restarts=MAX_RESTARTS + 3)
    assert step(commit, Event.RESTART).stage is Stage.COMMIT


@given(st.lists(st.sampled_from(list(Event)), max_size=60))
def test_any_history(events: list[Event]) -> None:
    """SUCCEEDED only through COMMIT; after a rollback began never; what has ended stays as it is."""
    entry, rolled = at(Stage.DOWNLOAD), False
    for event in events:
        before, entry = entry, step(entry, event)
        rolled = rolled or entry.stage is Stage.ROLLBACK
        if before.state.terminal:
            assert entry == before
        if entry.state is JobState.SUCCEEDED and not before.state.terminal:
            assert before.stage is Stage.COMMIT and not rolled
        if before.stage is Stage.COMMIT and not before.state.terminal and event is not Event.DONE:
            assert entry.stage is Stage.COMMIT and not entry.state.terminal
    for _ in GOOD_WAY:
        entry = step(entry, Event.DONE)
    assert entry.state.terminal
