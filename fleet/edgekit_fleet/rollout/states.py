"""The state machines of a rollout, a group and a device's job, as tables.

Names are hawkBit's (rollout, group) and AWS IoT's (job, in `edgekit.wire`). Whoever changes a state
goes through `advance`, so that a transition which is not in a table raises instead of happening.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from edgekit.errors import EdgekitError
from edgekit.wire import JobState


class TransitionError(EdgekitError):
    """The thing asked for is not possible in the present state."""

    http_status = 409


class RolloutState(StrEnum):
    DRAFT = "DRAFT"
    CREATING = "CREATING"
    WAITING_FOR_APPROVAL = "WAITING_FOR_APPROVAL"
    READY = "READY"
    SCHEDULED = "SCHEDULED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PAUSED = "PAUSED"
    FINISHED = "FINISHED"
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"
    SUPERSEDED = "SUPERSEDED"

    @property
    def terminal(self) -> bool:
        return not ROLLOUT[self]

    @property
    def waiting(self) -> bool:
        """No device has heard of it yet."""
        return self in _WAITING


class GroupState(StrEnum):
    SCHEDULED = "SCHEDULED"
    RUNNING = "RUNNING"
    SOAKING = "SOAKING"
    SUCCEEDED = "SUCCEEDED"
    ERROR = "ERROR"

    @property
    def terminal(self) -> bool:
        return not GROUP[self]

    @property
    def active(self) -> bool:
        return self in (GroupState.RUNNING, GroupState.SOAKING)


_R, _G, _J = RolloutState, GroupState, JobState

_WAITING = frozenset({_R.DRAFT, _R.CREATING, _R.WAITING_FOR_APPROVAL, _R.READY, _R.SCHEDULED})

ROLLOUT: Mapping[RolloutState, frozenset[RolloutState]] = {
    _R.DRAFT: frozenset({_R.CREATING, _R.STOPPED}),
    _R.CREATING: frozenset({_R.WAITING_FOR_APPROVAL, _R.READY, _R.STOPPED, _R.SUPERSEDED}),
    _R.WAITING_FOR_APPROVAL: frozenset({_R.READY, _R.STOPPED, _R.SUPERSEDED}),
    _R.READY: frozenset({_R.SCHEDULED, _R.STARTING, _R.STOPPED, _R.SUPERSEDED}),
    _R.SCHEDULED: frozenset({_R.STARTING, _R.STOPPED, _R.SUPERSEDED}),
    _R.STARTING: frozenset({_R.RUNNING, _R.STOPPING, _R.SUPERSEDED}),
    _R.RUNNING: frozenset({_R.PAUSED, _R.FINISHED, _R.STOPPING, _R.ROLLING_BACK, _R.SUPERSEDED}),
    _R.PAUSED: frozenset({_R.RUNNING, _R.STOPPING, _R.ROLLING_BACK, _R.SUPERSEDED}),
    _R.STOPPING: frozenset({_R.STOPPED, _R.ROLLING_BACK, _R.SUPERSEDED}),
    # A rollback that some device did not confirm in time ends STOPPED, with the devices named.
    _R.ROLLING_BACK: frozenset({_R.ROLLED_BACK, _R.STOPPED, _R.SUPERSEDED}),
    _R.FINISHED: frozenset(),
    _R.STOPPED: frozenset(),
    _R.ROLLED_BACK: frozenset(),
    _R.SUPERSEDED: frozenset(),
}

GROUP: Mapping[GroupState, frozenset[GroupState]] = {
    _G.SCHEDULED: frozenset({_G.RUNNING}),
    _G.RUNNING: frozenset({_G.SOAKING, _G.SUCCEEDED, _G.ERROR}),
    _G.SOAKING: frozenset({_G.SUCCEEDED, _G.ERROR}),
    _G.SUCCEEDED: frozenset(),
    _G.ERROR: frozenset(),
}

_JOB_ENDS = frozenset(state for state in JobState if state.terminal)
JOB: Mapping[JobState, frozenset[JobState]] = {
    _J.QUEUED: _JOB_ENDS | {_J.IN_PROGRESS},
    _J.IN_PROGRESS: _JOB_ENDS | {_J.IN_PROGRESS},  # the next stage
    **{state: frozenset() for state in _JOB_ENDS},
}

FAILURES = frozenset({_J.FAILED, _J.TIMED_OUT, _J.REJECTED, _J.ROLLED_BACK})
"""Ends of a job that count against its group; a CANCELED job counts neither way."""

S = TypeVar("S", RolloutState, GroupState, JobState)


def allowed(old: S, new: S) -> bool:
    """Whether the tables have this transition."""
    table: Mapping[S, frozenset[S]] = _table(old)
    return new in table[old]


def advance(old: S, new: S, what: str) -> S:
    """`new`, or TransitionError naming `what`."""
    if not allowed(old, new):
        raise TransitionError(f"{what} is {old}, it cannot become {new}", "look at its present state first")
    return new


def _table(state: S) -> Mapping[S, frozenset[S]]:
    tables: dict[type, object] = {RolloutState: ROLLOUT, GroupState: GROUP, JobState: JOB}
    return tables[type(state)]  # type: ignore[return-value]
