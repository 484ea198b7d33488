"""What the decision core sees of a rollout, what it may ask for, and what each wish changes.

Times are seconds since the epoch (UTC). Everything is frozen; `reduce` returns the next snapshot, so
that rules can be run to their end, and tested, without a database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgekit.wire import JobState
from edgekit_fleet.rollout.gates import Evidence
from edgekit_fleet.rollout.states import GroupState, RolloutState, advance
from edgekit_fleet.rollout.strategies import Phase, Strategy


@dataclass(frozen=True)
class Job:
    """One order to one device."""

    state: JobState = JobState.QUEUED
    notified_at: float | None = None
    """None: the device has not been told."""
    deadline_at: float | None = None
    acknowledged: bool = False
    """The device has answered something about it."""

    @property
    def open(self) -> bool:
        """The device was told and has not ended it."""
        return self.notified_at is not None and not self.state.terminal


@dataclass(frozen=True)
class Member:
    """A device's part in a rollout."""

    device: str
    deploy: Job = field(default_factory=Job)
    back: Job | None = None
    """The job that brings the previous release back, once there is one."""
    previous: str = ""
    """Bundle digest that the device ran when it was told (before: that it runs now); "" for none
    or one that the fleet no longer has."""
    on_new: bool = False
    """Its last report says that it runs this rollout's release."""
    confirmed_back: bool = False
    """Its last report says that it runs `previous` because of the back job."""
    online: bool = False
    revoked: bool = False


@dataclass(frozen=True)
class Group:
    phase: Phase
    members: tuple[Member, ...]
    state: GroupState = GroupState.SCHEDULED
    soak_started_at: float | None = None


@dataclass(frozen=True)
class RolloutSnapshot:
    id: str
    digest: str
    """Bundle digest of the release that is rolled out."""
    strategy: Strategy
    groups: tuple[Group, ...]
    state: RolloutState = RolloutState.CREATING
    reason: str = ""
    """Of the latest move that had one."""
    start_at: float = 0.0
    evidence: Evidence = field(default_factory=Evidence)
    """Telemetry up to the soaking group's latest look."""

    @property
    def members(self) -> tuple[Member, ...]:
        return tuple(member for group in self.groups for member in group.members)


@dataclass(frozen=True)
class MoveRollout:
    to: RolloutState
    reason: str = ""


@dataclass(frozen=True)
class MoveGroup:
    group: int
    to: GroupState
    reason: str = ""


@dataclass(frozen=True)
class Notify:
    """Tell the device about its deploy job."""

    device: str


@dataclass(frozen=True)
class EndJob:
    """The fleet ends a deploy job; with `tell`, the device gets a cancellation."""

    device: str
    to: JobState
    reason: str
    tell: bool = False


@dataclass(frozen=True)
class TellCancel:
    """Ask the device to stop; its job stays open until it answers or the deadline passes."""

    device: str


@dataclass(frozen=True)
class SendBack:
    """A new job with the previous release."""

    device: str


@dataclass(frozen=True)
class EndBack:
    device: str
    to: JobState
    reason: str


MemberAction = Notify | EndJob | TellCancel | SendBack | EndBack
Action = MoveRollout | MoveGroup | MemberAction


def reduce(snapshot: RolloutSnapshot, actions: Sequence[Action], now: float) -> RolloutSnapshot:
    """The snapshot after `actions`. Raises TransitionError for what the tables forbid."""
    per_device: dict[str, list[MemberAction]] = defaultdict(list)
    groups = list(snapshot.groups)
    state, reason = snapshot.state, snapshot.reason
    for action in actions:
        if isinstance(action, MoveRollout):
            state = advance(state, action.to, f"rollout {snapshot.id}")
            reason = action.reason or reason
        elif isinstance(action, MoveGroup):
            groups[action.group] = _move_group(groups[action.group], action, now)
        else:
            per_device[action.device].append(action)
    if per_device:
        groups = [_reduce_group(group, per_device, now) for group in groups]
    return replace(snapshot, state=state, reason=reason, groups=tuple(groups))


def _move_group(group: Group, action: MoveGroup, now: float) -> Group:
    soak = now if action.to is GroupState.SOAKING else group.soak_started_at
    state = advance(group.state, action.to, f"group {group.phase.name!r}")
    return replace(group, state=state, soak_started_at=soak)


def _reduce_group(group: Group, per_device: Mapping[str, list[MemberAction]], now: float) -> Group:
    members = list(group.members)
    for index, member in enumerate(members):
        for action in per_device.get(member.device, ()):
            members[index] = _reduce_member(members[index], action, group.phase, now)
    return replace(group, members=tuple(members))


def _reduce_member(member: Member, action: MemberAction, phase: Phase, now: float) -> Member:
    what = f"job of {member.device}"
    if isinstance(action, Notify):
        return replace(
            member, deploy=replace(member.deploy, notified_at=now, deadline_at=now + phase.deadline_s)
        )
    if isinstance(action, EndJob):
        state = advance(member.deploy.state, action.to, what)
        return replace(member, deploy=replace(member.deploy, state=state))
    if isinstance(action, SendBack):
        return replace(member, back=Job(notified_at=now, deadline_at=now + phase.deadline_s))
    if isinstance(action, EndBack) and member.back is not None:
        return replace(member, back=replace(member.back, state=advance(member.back.state, action.to, what)))
    return member
