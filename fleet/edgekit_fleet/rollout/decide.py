"""The rules of a rollout: a snapshot and the time in, the next actions out. No IO, no clock.

`decide` answers one step; `settle` repeats it until nothing is left to do at this moment. Both give
the same answer for the same snapshot, whoever asks and however often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from edgekit.wire import JobState
from edgekit_fleet.rollout import gates
from edgekit_fleet.rollout.snapshot import (
    Action,
    EndBack,
    EndJob,
    Group,
    Member,
    MoveGroup,
    MoveRollout,
    Notify,
    RolloutSnapshot,
    SendBack,
    reduce,
)
from edgekit_fleet.rollout.states import FAILURES, GroupState, RolloutState
from edgekit_fleet.rollout.strategies import OnError, OnSuccess, Phase

_MAX_STEPS = 1000


def settle(snapshot: RolloutSnapshot, now: float) -> tuple[list[Action], RolloutSnapshot]:
    """All actions that are due now, and the snapshot after them."""
    done: list[Action] = []
    for _ in range(_MAX_STEPS):
        actions = decide(snapshot, now)
        if not actions:
            return done, snapshot
        snapshot = reduce(snapshot, actions, now)
        done += actions
    raise AssertionError(f"the rules do not come to rest for rollout {snapshot.id} in {snapshot.state}")


def part(actions: Sequence[Action], most: int) -> Sequence[Action]:
    """The first `most` of one step's actions, or a few more: a step may be written in parts.

    The rules give the rest again, so long as moves of groups and rollouts stay with what precedes them,
    and what concerns one device stays together.
    """
    at = most
    while 0 < at < len(actions):
        device = getattr(actions[at], "device", None)
        if device is not None and device != getattr(actions[at - 1], "device", None):
            break
        at += 1
    return actions[:at]


def next_due(snapshot: RolloutSnapshot, now: float) -> float:
    """When, at the earliest, time alone makes `decide` answer something; infinity for never.

    For a snapshot that is settled at `now`.
    """
    times = [snapshot.start_at] if snapshot.state is RolloutState.SCHEDULED else []
    for member in snapshot.members:
        jobs = (job for job in (member.deploy, member.back) if job is not None and job.open)
        times += [job.deadline_at for job in jobs if job.deadline_at is not None]
    for group in snapshot.groups:
        if group.state is GroupState.SOAKING and group.soak_started_at is not None:
            looks = snapshot.strategy.gates.looks
            step = group.phase.soak_s / looks
            times += [group.soak_started_at + step * look for look in range(1, looks + 1)]
    return min((time for time in times if time > now), default=math.inf)


def decide(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    """The next step, [] when there is nothing to do at `now`."""
    rule = _RULES.get(snapshot.state)
    return rule(snapshot, now) if rule else []


def _creating(snapshot: RolloutSnapshot, _: float) -> list[Action]:
    wait = snapshot.strategy.approval
    return [MoveRollout(RolloutState.WAITING_FOR_APPROVAL if wait else RolloutState.READY)]


def _ready(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    due = snapshot.start_at <= now
    if due:
        return [MoveRollout(RolloutState.STARTING)]
    return [] if snapshot.state is RolloutState.SCHEDULED else [MoveRollout(RolloutState.SCHEDULED)]


def _starting(_: RolloutSnapshot, __: float) -> list[Action]:
    return [MoveRollout(RolloutState.RUNNING)]


def _running(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    overdue = _overdue(snapshot, now)
    if overdue:
        return overdue
    for group in snapshot.groups:
        trouble = group.state is GroupState.SUCCEEDED and tripped(group)
        if trouble and group.phase.on_error is OnError.ROLLBACK:
            reason = f"late failures in group {group.phase.name!r}: {trouble}"
            return [MoveRollout(RolloutState.ROLLING_BACK, reason)]
    for index, group in enumerate(snapshot.groups):
        if group.state.active:
            # The rest of a large group, when its start was written in parts.
            return _start(group) or _evaluate(snapshot, index, group, now)
        if group.state is GroupState.SCHEDULED:
            return [MoveGroup(index, GroupState.RUNNING), *_start(group)]
    if any(member.deploy.open for member in snapshot.members):
        return []  # devices beyond the success threshold: their deadlines end this
    return [MoveRollout(RolloutState.FINISHED, _finish_reason(snapshot))]


def _start(group: Group) -> list[Action]:
    actions: list[Action] = []
    for member in group.members if group.state is not GroupState.SOAKING else ():
        if member.deploy.state.terminal or member.deploy.notified_at is not None:
            continue
        if member.revoked:
            actions.append(EndJob(member.device, JobState.CANCELED, "the device was revoked"))
        elif member.on_new:
            actions.append(EndJob(member.device, JobState.SUCCEEDED, "it already ran this release"))
        else:
            actions.append(Notify(member.device))
    return actions


def _finish_reason(snapshot: RolloutSnapshot) -> str:
    accepted = [group.phase.name for group in snapshot.groups if group.state is GroupState.ERROR]
    return f"went on after errors in: {', '.join(accepted)}" if accepted else "all groups succeeded"


def _evaluate(snapshot: RolloutSnapshot, index: int, group: Group, now: float) -> list[Action]:
    trouble = tripped(group) or unreachable(group)
    if not trouble and group.state is GroupState.SOAKING:
        failed = [f for f in gates.judge(snapshot.strategy.gates, snapshot.evidence) if not f.passed]
        trouble = "; ".join(f"gate {f.gate} ({f.profile}): {f.reason}" for f in failed)
    if trouble:
        back = group.phase.on_error is OnError.ROLLBACK
        to = RolloutState.ROLLING_BACK if back else RolloutState.PAUSED
        reason = f"group {group.phase.name!r}: {trouble}"
        return [MoveGroup(index, GroupState.ERROR, trouble), MoveRollout(to, reason)]
    if group.state is GroupState.RUNNING:
        if successes(group) < needed(group):
            return []
        if group.phase.soak_s > 0 and _counted(group):
            return [MoveGroup(index, GroupState.SOAKING, progress(group))]
        return _succeed(snapshot, index, group)
    if group.soak_started_at is None or now >= group.soak_started_at + group.phase.soak_s:
        return _succeed(snapshot, index, group)
    return []


def _succeed(snapshot: RolloutSnapshot, index: int, group: Group) -> list[Action]:
    actions: list[Action] = [MoveGroup(index, GroupState.SUCCEEDED, progress(group))]
    more = index + 1 < len(snapshot.groups)
    if more and group.phase.on_success is OnSuccess.PAUSE:
        actions.append(MoveRollout(RolloutState.PAUSED, f"pauses after group {group.phase.name!r}"))
    elif more and group.members and not _counted(group):
        # A canary whose only device was revoked or canceled proves nothing about the release.
        reason = f"group {group.phase.name!r} ended without a device that tried the release"
        actions.append(MoveRollout(RolloutState.PAUSED, reason))
    return actions


def _paused(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    return _overdue(snapshot, now)


def _stopping(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    overdue = _overdue(snapshot, now)
    if overdue or any(member.deploy.open for member in snapshot.members):
        return overdue
    return [MoveRollout(RolloutState.STOPPED, "aborted")]


def _overdue(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    """Jobs that end without their device: deadline passed, or device revoked."""
    actions: list[Action] = []
    for member in snapshot.members:
        job = member.deploy
        if not job.open:
            continue
        if member.revoked:
            actions.append(EndJob(member.device, JobState.CANCELED, "the device was revoked"))
        elif job.deadline_at is not None and now >= job.deadline_at:
            reason = "no end reported before the deadline" if job.acknowledged else "it was away"
            actions.append(EndJob(member.device, JobState.TIMED_OUT, reason, tell=True))
    return actions


def _rolling_back(snapshot: RolloutSnapshot, now: float) -> list[Action]:
    actions: list[Action] = []
    for member in snapshot.members:
        actions += _take_back(snapshot, member)
        back = member.back
        if back is None or back.state.terminal:
            continue
        if member.confirmed_back:
            actions.append(EndBack(member.device, JobState.SUCCEEDED, "it reports the previous release"))
        elif member.revoked:
            actions.append(EndBack(member.device, JobState.CANCELED, "the device was revoked"))
        elif back.deadline_at is not None and now >= back.deadline_at:
            actions.append(EndBack(member.device, JobState.TIMED_OUT, "rollback not confirmed in time"))
    backs = [(member.device, member.back) for member in snapshot.members if member.back is not None]
    if actions or any(not back.state.terminal for _, back in backs):
        return actions
    fine = (JobState.SUCCEEDED, JobState.CANCELED)
    missing = [f"{device} ({back.state})" for device, back in backs if back.state not in fine]
    if missing:
        reason = f"rollback incomplete, not confirmed by {_some(missing)}"
        return [MoveRollout(RolloutState.STOPPED, f"{snapshot.reason}; {reason}")]
    stuck = [m.device for m in snapshot.members if _on_it(m) and not can_go_back(snapshot, m)]
    reason = f"{len(backs)} device(s) went back" if backs else "no device had to go back"
    if stuck:
        reason += f"; no earlier release is known for {_some(stuck)}"
    return [MoveRollout(RolloutState.ROLLED_BACK, f"{snapshot.reason}; {reason}")]


def _take_back(snapshot: RolloutSnapshot, member: Member) -> list[Action]:
    job = member.deploy
    if not job.state.terminal:
        # A device that is there may be at work on it already: it gets its previous release as a newer
        # order. One that was away is only told to forget this one; were it too late, `on_new` tells.
        away = not (member.online or job.acknowledged or member.on_new)
        told = job.notified_at is not None
        cancel = EndJob(member.device, JobState.CANCELED, "the rollout was rolled back", tell=told)
        if not told or away or not can_go_back(snapshot, member):
            return [cancel]
        return [cancel, SendBack(member.device)]
    if member.back is None and _on_it(member) and can_go_back(snapshot, member):
        return [SendBack(member.device)]
    return []


def _on_it(member: Member) -> bool:
    """It runs the new release, or may."""
    job = member.deploy
    if job.notified_at is None or member.revoked:
        return False
    unsure = job.state in (JobState.TIMED_OUT, JobState.CANCELED) and job.acknowledged
    return member.on_new or job.state is JobState.SUCCEEDED or unsure


def can_go_back(snapshot: RolloutSnapshot, member: Member) -> bool:
    return member.previous not in ("", snapshot.digest) and not member.revoked


def _rolled_back(snapshot: RolloutSnapshot, _: float) -> list[Action]:
    """A device that took the release after all (it was away, its cancellation came late)."""
    return [
        SendBack(member.device)
        for member in snapshot.members
        if member.back is None and member.on_new and _on_it(member) and can_go_back(snapshot, member)
    ]


_RULES: dict[RolloutState, Callable[[RolloutSnapshot, float], list[Action]]] = {
    RolloutState.CREATING: _creating,
    RolloutState.READY: _ready,
    RolloutState.SCHEDULED: _ready,
    RolloutState.STARTING: _starting,
    RolloutState.RUNNING: _running,
    RolloutState.PAUSED: _paused,
    RolloutState.STOPPING: _stopping,
    RolloutState.ROLLING_BACK: _rolling_back,
    RolloutState.ROLLED_BACK: _rolled_back,
}


def _counted(group: Group) -> list[Member]:
    """Members that count: a canceled job says nothing about the release."""
    return [member for member in group.members if member.deploy.state is not JobState.CANCELED]


def successes(group: Group) -> int:
    return sum(member.deploy.state is JobState.SUCCEEDED for member in group.members)


def failures(group: Group) -> int:
    return sum(member.deploy.state in FAILURES for member in group.members)


def needed(group: Group) -> int:
    """Successes that the group's success threshold asks for."""
    return _share(group.phase.success, len(_counted(group)))


def _share(percent: float, total: int) -> int:
    return math.ceil(total * percent / 100 - 1e-9)


def tripped(group: Group) -> str:
    """Why the group's error threshold is passed, "" when it is not."""
    phase, failed, total = group.phase, failures(group), len(_counted(group))
    if failed == 0:
        return ""
    limit = phase.errors
    if limit is None and phase.errors_percent is None:
        limit = 0
    if limit is not None and failed > limit:
        return f"{failed} of {total} device(s) failed, {limit} allowed{_why(group)}"
    if phase.errors_percent is not None:
        return _tripped_percent(group, phase, failed, total)
    return ""


def _tripped_percent(group: Group, phase: Phase, failed: int, total: int) -> str:
    allowed = phase.errors_percent or 0.0
    executed = failed + successes(group)
    early = 0 < phase.min_executed <= executed and failed * 100 > allowed * executed
    if early:
        total = executed
    elif failed * 100 <= allowed * total:
        return ""
    return f"{failed} of {total} device(s) failed, {allowed:g} % allowed{_why(group)}"


def unreachable(group: Group) -> str:
    """Why the success threshold can no longer be met, "" when it can."""
    counted = _counted(group)
    possible = sum(
        member.deploy.state is JobState.SUCCEEDED or not member.deploy.state.terminal for member in counted
    )
    if possible >= needed(group):
        return ""
    return f"{failures(group)} of {len(counted)} failed, {needed(group)} must succeed{_why(group)}"


def _why(group: Group) -> str:
    return f" ({_some(m.device for m in group.members if m.deploy.state in FAILURES)})"


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def progress(group: Group) -> str:
    return f"{successes(group)} of {len(_counted(group))} device(s) succeeded"
