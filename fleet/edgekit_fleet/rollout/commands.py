"""What a person can ask of a rollout: pure, like `decide`. Raises TransitionError when not now."""

from __future__ import annotations

from collections.abc import Callable

from edgekit.errors import InputError
from edgekit.wire import JobState
from edgekit_fleet.rollout.snapshot import Action, EndJob, MoveRollout, RolloutSnapshot, TellCancel
from edgekit_fleet.rollout.states import RolloutState, TransitionError, allowed


def command(snapshot: RolloutSnapshot, verb: str) -> list[Action]:
    """Actions for `verb`: start, approve, pause, resume, abort, rollback."""
    if verb not in VERBS:
        raise InputError(f"unknown command {verb!r}", f"one of {', '.join(sorted(VERBS))}")
    return VERBS[verb](snapshot)


def supersede(snapshot: RolloutSnapshot, by: str) -> list[Action]:
    """A newer rollout takes these devices over. A rollback must have ended first."""
    if snapshot.state is RolloutState.ROLLING_BACK:
        raise TransitionError(f"rollout {snapshot.id} is rolling back", "wait until it is ROLLED_BACK")
    return [
        *_cancel_all(snapshot, f"superseded by {by}"),
        _move(snapshot, RolloutState.SUPERSEDED, f"by {by}"),
    ]


def _start(snapshot: RolloutSnapshot) -> list[Action]:
    return [_only(snapshot, RolloutState.DRAFT, RolloutState.CREATING, "started")]


def _approve(snapshot: RolloutSnapshot) -> list[Action]:
    return [_only(snapshot, RolloutState.WAITING_FOR_APPROVAL, RolloutState.READY, "approved")]


def _pause(snapshot: RolloutSnapshot) -> list[Action]:
    return [_only(snapshot, RolloutState.RUNNING, RolloutState.PAUSED, "paused by a person")]


def _resume(snapshot: RolloutSnapshot) -> list[Action]:
    return [_only(snapshot, RolloutState.PAUSED, RolloutState.RUNNING, "resumed by a person")]


def _abort(snapshot: RolloutSnapshot) -> list[Action]:
    """No further device is told; those at work are asked to stop and may still end as they like."""
    if snapshot.state.waiting:
        move = _move(snapshot, RolloutState.STOPPED, "aborted before it started")
        return [*_cancel_all(snapshot, "aborted"), move]
    if snapshot.state not in (RolloutState.STARTING, RolloutState.RUNNING, RolloutState.PAUSED):
        raise _not_now(snapshot, "be aborted")
    actions: list[Action] = [_move(snapshot, RolloutState.STOPPING, "aborted by a person")]
    for member in snapshot.members:
        if member.deploy.state is JobState.QUEUED:
            told = member.deploy.notified_at is not None
            actions.append(EndJob(member.device, JobState.CANCELED, "aborted", tell=told))
        elif not member.deploy.state.terminal:
            actions.append(TellCancel(member.device))
    return actions


def _rollback(snapshot: RolloutSnapshot) -> list[Action]:
    if not allowed(snapshot.state, RolloutState.ROLLING_BACK):
        raise _not_now(snapshot, "be rolled back")
    return [MoveRollout(RolloutState.ROLLING_BACK, "rolled back by a person")]


VERBS: dict[str, Callable[[RolloutSnapshot], list[Action]]] = {
    "start": _start,
    "approve": _approve,
    "pause": _pause,
    "resume": _resume,
    "abort": _abort,
    "rollback": _rollback,
}


def _cancel_all(snapshot: RolloutSnapshot, reason: str) -> list[Action]:
    return [
        EndJob(member.device, JobState.CANCELED, reason, tell=member.deploy.notified_at is not None)
        for member in snapshot.members
        if not member.deploy.state.terminal
    ]


def _only(snapshot: RolloutSnapshot, old: RolloutState, new: RolloutState, reason: str) -> MoveRollout:
    if snapshot.state is not old:
        raise _not_now(snapshot, f"become {new}")
    return MoveRollout(new, reason)


def _move(snapshot: RolloutSnapshot, to: RolloutState, reason: str) -> MoveRollout:
    if not allowed(snapshot.state, to):
        raise _not_now(snapshot, f"become {to}")
    return MoveRollout(to, reason)


def _not_now(snapshot: RolloutSnapshot, what: str) -> TransitionError:
    hint = "a rollout that has ended stays as it is; create a new one" if snapshot.state.terminal else ""
    return TransitionError(f"rollout {snapshot.id} is {snapshot.state}, it cannot {what}", hint)
