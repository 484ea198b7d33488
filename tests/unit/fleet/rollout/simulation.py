"""A fleet in memory that obeys the decision core: what devices do is given by the test."""

from __future__ import annotations

from dataclasses import replace

from edgekit.wire import JobState
from edgekit_fleet.rollout.decide import settle
from edgekit_fleet.rollout.snapshot import (
    Action,
    Group,
    Job,
    Member,
    RolloutSnapshot,
    reduce,
)
from edgekit_fleet.rollout.states import RolloutState, allowed
from edgekit_fleet.rollout.strategies import Phase, Strategy

NEW, OLD = "sha256:new", "sha256:old"


def snapshot(*phases: tuple[Phase, int], state: RolloutState = RolloutState.CREATING) -> RolloutSnapshot:
    """A rollout with the given phases and how many online devices each has."""
    groups, at = [], 0
    for phase, size in phases:
        members = tuple(Member(f"d{at + i}", previous=OLD, online=True) for i in range(size))
        groups.append(Group(phase, members))
        at += size
    strategy = Strategy(phases=tuple(phase for phase, _ in phases))
    return RolloutSnapshot("r1", NEW, strategy, tuple(groups), state)


class Simulation:
    """Runs `settle` after every event and keeps all actions."""

    def __init__(self, start: RolloutSnapshot, now: float = 0.0) -> None:
        self.now = now
        self.state = start
        self.actions: list[Action] = []
        self.tick()

    def tick(self, seconds: float = 0.0) -> list[Action]:
        self.now += seconds
        actions, self.state = settle(self.state, self.now)
        self.actions += actions
        return actions

    def do(self, actions: list[Action]) -> list[Action]:
        self.state = reduce(self.state, actions, self.now)
        self.actions += actions
        return self.tick()

    def at(self) -> RolloutState:
        return self.state.state

    def member(self, device: str) -> Member:
        return next(m for m in self.state.members if m.device == device)

    def change(self, device: str, **changes: object) -> None:
        self.state = replace(
            self.state,
            groups=tuple(
                replace(
                    group,
                    members=tuple(
                        replace(m, **changes) if m.device == device else m  # type: ignore[arg-type]
                        for m in group.members
                    ),
                )
                for group in self.state.groups
            ),
        )

    def report(self, device: str, state: JobState) -> list[Action]:
        """The device answers its open job; like the engine, an answer to an ended job is dropped."""
        member = self.member(device)
        back = member.back
        job = back or member.deploy
        if job.notified_at is None or not allowed(job.state, state):
            return []
        after = Job(state, job.notified_at, job.deadline_at, acknowledged=True)
        if back is None:
            self.change(device, deploy=after, on_new=state is JobState.SUCCEEDED or member.on_new)
        else:
            self.change(device, back=after, on_new=member.on_new and state is not JobState.SUCCEEDED)
        return self.tick()

    def succeed(self, *devices: str) -> None:
        for device in devices:
            self.report(device, JobState.IN_PROGRESS)
            self.report(device, JobState.SUCCEEDED)
