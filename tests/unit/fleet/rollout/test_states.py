from __future__ import annotations

import itertools

import pytest

from edgekit.wire import JobState
from edgekit_fleet.rollout import states
from edgekit_fleet.rollout.states import GroupState, RolloutState, TransitionError, advance, allowed


def test_every_state_has_a_row_and_every_row_leads_somewhere_known() -> None:
    assert set(states.ROLLOUT) == set(RolloutState)
    assert set(states.GROUP) == set(GroupState)
    assert set(states.JOB) == set(JobState)


def test_terminal_states() -> None:
    ends = {state for state in RolloutState if state.terminal}
    assert ends == {
        RolloutState.FINISHED,
        RolloutState.STOPPED,
        RolloutState.ROLLED_BACK,
        RolloutState.SUPERSEDED,
    }
    for end, other in itertools.product(ends, RolloutState):
        with pytest.raises(TransitionError):
            advance(end, other, "rollout x")


def test_every_state_can_be_reached_and_left() -> None:
    reached, edge = set(), {RolloutState.DRAFT}
    while edge:
        reached |= edge
        edge = {new for old in edge for new in states.ROLLOUT[old]} - reached
    assert reached == set(RolloutState)


def test_jobs() -> None:
    assert allowed(JobState.QUEUED, JobState.SUCCEEDED)
    assert allowed(JobState.IN_PROGRESS, JobState.IN_PROGRESS)
    assert not allowed(JobState.IN_PROGRESS, JobState.QUEUED)
    assert not allowed(JobState.TIMED_OUT, JobState.SUCCEEDED)


def test_illegal_transition_names_both_states() -> None:
    with pytest.raises(TransitionError, match="group 'a' is SCHEDULED, it cannot become SUCCEEDED"):
        advance(GroupState.SCHEDULED, GroupState.SUCCEEDED, "group 'a'")
