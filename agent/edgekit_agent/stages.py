"""The activation as a pure state machine: which stage follows which event.

    DOWNLOAD -> VERIFY -> DECRYPT -> PROBE -> SWAP -> WATCH -> COMMIT        the good way
    before SWAP  failure, timeout or cancellation ends the job; nothing has to be undone
    SWAP, WATCH  they lead to ROLLBACK, which puts the previous release back and then ends the job
    COMMIT       one database transaction; from there the new release is the device's own

After a restart the process has no model in memory, so a job goes on from DECRYPT at the latest while
the old release serves; COMMIT and ROLLBACK are finished first. A job that was restarted too often is
taken to be the reason and rolled back.
"""

from __future__ import annotations

import dataclasses
from enum import StrEnum

from edgekit.wire import JobState, Stage
from edgekit_agent.store import Activation

MAX_RESTARTS = 5

STAGE_LIMIT_S = {
    Stage.VERIFY: 120.0,
    Stage.DECRYPT: 120.0,
    Stage.PROBE: 600.0,  # an engine may be compiled here, which takes minutes
    Stage.SWAP: 60.0,
    Stage.ROLLBACK: 60.0,
}
"""Longest time per stage. DOWNLOAD has the job's deadline; WATCH has its own length."""


class Event(StrEnum):
    DONE = "DONE"
    FAILED = "FAILED"
    """The act raised an error."""
    REFUSED = "REFUSED"
    """The release cannot run here: bad signature, incompatible, no space."""
    UNHEALTHY = "UNHEALTHY"
    """The watch saw errors, latency or crashes beyond the limits."""
    DAMAGED = "DAMAGED"
    """What was downloaded is not what was assigned; worth one more download."""
    TIMEOUT = "TIMEOUT"
    CANCEL = "CANCEL"
    RESTART = "RESTART"
    """The agent was started again while the job was in this stage."""


_FORWARD = {
    Stage.DOWNLOAD: Stage.VERIFY,
    Stage.VERIFY: Stage.DECRYPT,
    Stage.DECRYPT: Stage.PROBE,
    Stage.PROBE: Stage.SWAP,
    Stage.SWAP: Stage.WATCH,
    Stage.WATCH: Stage.COMMIT,
}
_BEFORE_SWAP = (Stage.DOWNLOAD, Stage.VERIFY, Stage.DECRYPT, Stage.PROBE)
_SWAPPED = (Stage.SWAP, Stage.WATCH)
_ENDS = {
    Event.FAILED: JobState.FAILED,
    Event.REFUSED: JobState.REJECTED,
    Event.UNHEALTHY: JobState.ROLLED_BACK,
    Event.TIMEOUT: JobState.TIMED_OUT,
    Event.CANCEL: JobState.CANCELED,
    Event.DAMAGED: JobState.FAILED,
}

TRANSITIONS: dict[tuple[Stage, Event], tuple[JobState, Stage, JobState | None]] = {
    # (stage, event): (state of the job, next stage, how it ends after a rollback)
    **{(a, Event.DONE): (JobState.IN_PROGRESS, b, None) for a, b in _FORWARD.items()},
    **{(s, e): (end, s, None) for s in _BEFORE_SWAP for e, end in _ENDS.items()},
    **{(s, e): (JobState.IN_PROGRESS, Stage.ROLLBACK, end) for s in _SWAPPED for e, end in _ENDS.items()},
    # A failure after the swap is a rollback for the fleet too.
    **{(s, Event.FAILED): (JobState.IN_PROGRESS, Stage.ROLLBACK, JobState.ROLLED_BACK) for s in _SWAPPED},
    (Stage.COMMIT, Event.DONE): (JobState.SUCCEEDED, Stage.COMMIT, None),
    # What was loaded is lost with the process.
    (Stage.DOWNLOAD, Event.RESTART): (JobState.IN_PROGRESS, Stage.DOWNLOAD, None),
    (Stage.VERIFY, Event.RESTART): (JobState.IN_PROGRESS, Stage.VERIFY, None),
    **{(s, Event.RESTART): (JobState.IN_PROGRESS, Stage.VERIFY, None)
       for s in (Stage.DECRYPT, Stage.PROBE, Stage.SWAP, Stage.WATCH)},
    (Stage.COMMIT, Event.RESTART): (JobState.IN_PROGRESS, Stage.COMMIT, None),
}  # fmt: skip


def step(entry: Activation, event: Event, *, code: str = "", message: str = "") -> Activation:
    """The journal entry after `event`. An event that means nothing in this stage changes nothing."""
    if entry.state.terminal:
        return entry
    if entry.stage is Stage.ROLLBACK:
        # Whatever happens in a rollback, it ends as it began to.
        done = event in (Event.DONE, Event.FAILED, Event.TIMEOUT)
        return dataclasses.replace(entry, state=entry.outcome or JobState.ROLLED_BACK) if done else entry
    if event is Event.DAMAGED and entry.stage is Stage.VERIFY and not entry.refetched:
        return dataclasses.replace(entry, stage=Stage.DOWNLOAD, refetched=1)
    if event is Event.RESTART:
        if entry.restarts >= MAX_RESTARTS and entry.stage is not Stage.COMMIT:
            return _give_up(entry)
        entry = dataclasses.replace(entry, restarts=entry.restarts + 1)
    found = TRANSITIONS.get((entry.stage, event))
    if found is None:
        return entry
    state, stage, outcome = found
    failed = event not in (Event.DONE, Event.RESTART)
    return dataclasses.replace(
        entry,
        state=state,
        stage=stage,
        outcome=outcome,
        code=code if failed else entry.code,
        message=message if failed else entry.message,
    )


def _give_up(entry: Activation) -> Activation:
    end = JobState.ROLLED_BACK if entry.stage in _SWAPPED else JobState.FAILED
    message = f"the agent was restarted {entry.restarts} times during this job, last in {entry.stage}"
    return dataclasses.replace(entry, state=end, code="SystemFault", message=message)
