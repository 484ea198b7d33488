"""What holds for every rollout, whatever the devices do and in whatever order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.wire import JobState
from edgekit_fleet.rollout import decide
from edgekit_fleet.rollout.commands import VERBS, command
from edgekit_fleet.rollout.snapshot import MoveGroup, MoveRollout, Notify, RolloutSnapshot, reduce
from edgekit_fleet.rollout.states import GroupState, TransitionError
from edgekit_fleet.rollout.strategies import OnError, OnSuccess, Phase
from tests.unit.fleet.rollout.simulation import Simulation, snapshot

phases = st.builds(
    Phase,
    name=st.just("p"),
    success=st.sampled_from([0.0, 50.0, 80.0, 100.0]),
    errors=st.none() | st.integers(0, 2),
    errors_percent=st.none() | st.sampled_from([0.0, 20.0, 50.0, 100.0]),
    min_executed=st.integers(0, 3),
    soak_s=st.sampled_from([0.0, 5.0]),
    deadline_s=st.sampled_from([20.0, 100.0]),
    on_success=st.sampled_from(OnSuccess),
    on_error=st.sampled_from(OnError),
)
rollouts = st.lists(st.tuples(phases, st.integers(0, 4)), min_size=1, max_size=4).map(lambda g: snapshot(*g))
device = st.integers(0, 15).map("d{}".format)
events = st.lists(
    st.one_of(
        st.tuples(st.just("report"), device, st.sampled_from(list(JobState))),
        st.tuples(st.just("succeed"), device, st.none()),
        st.tuples(st.just("online"), device, st.booleans()),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 6.0, 30.0]), st.none()),
        st.tuples(st.just("verb"), st.sampled_from(sorted(VERBS)), st.none()),
    ),
    max_size=40,
)


def play(run: Simulation, event: tuple[str, object, object]) -> None:
    kind, what, value = event
    known = {member.device for member in run.state.members}
    if kind == "wait":
        run.tick(float(str(what)))
    elif kind == "verb":
        try:
            run.do(command(run.state, str(what)))
        except TransitionError:
            assert str(what) in VERBS
    elif what in known and kind == "report":
        run.report(str(what), JobState(str(value)))
    elif what in known and kind == "succeed":
        run.succeed(str(what))
    elif what in known and kind == "online":
        run.change(str(what), online=value)
        run.tick()


def check(before: RolloutSnapshot, run: Simulation, new: list[object]) -> None:
    after = run.state
    assert sum(group.state.active for group in after.groups) <= 1, "two groups run at once"
    assert decide.decide(after, run.now) == [], "evaluation does not come to rest"
    if before.state.terminal:
        assert after.state is before.state
    for old, group in zip(before.groups, after.groups, strict=True):
        if old.state.terminal:
            assert group.state is old.state
        for member_before, member in zip(old.members, group.members, strict=True):
            if member_before.deploy.state.terminal:
                assert member.deploy.state is member_before.deploy.state
        if group.state is GroupState.SCHEDULED:
            assert all(member.deploy.notified_at is None for member in group.members)
    for index, group in enumerate(after.groups[1:], 1):
        # The next group has started: the one before has ended, and ended well unless a person went on.
        if group.state is not GroupState.SCHEDULED:
            assert after.groups[index - 1].state.terminal
        started = any(isinstance(a, MoveGroup) and a.group == index for a in new)
        previous = after.groups[index - 1]
        if started and previous.state is GroupState.SUCCEEDED:
            assert decide.successes(previous) >= decide.needed(previous)
    moves = [a for a in new if isinstance(a, MoveRollout)]
    if any(isinstance(a, Notify) for a in new):
        assert not before.state.terminal
        assert not (moves and moves[0].to.terminal)
    for group in after.groups:
        if group.state.active and after.state.value == "RUNNING":
            assert decide.tripped(group) == "", "an error threshold was passed without ERROR"


@given(rollouts, events)
@settings(max_examples=250, deadline=None)
def test_invariants(start: RolloutSnapshot, history: list[tuple[str, object, object]]) -> None:
    run = Simulation(start)
    check(start, run, list(run.actions))
    for event in history:
        before, done = run.state, len(run.actions)
        play(run, event)
        check(before, run, list(run.actions[done:]))


@given(rollouts, events)
@settings(max_examples=100, deadline=None)
def test_every_rollout_ends_when_time_passes_and_people_resume(
    start: RolloutSnapshot, history: list[tuple[str, object, object]]
) -> None:
    run = Simulation(start)
    for event in history:
        play(run, event)
    for _ in range(60):
        run.tick(200)
        if run.state.state.terminal:
            break
        try:
            run.do(command(run.state, "resume"))
        except TransitionError:
            continue
    assert run.state.state.terminal
    assert not any(member.deploy.open for member in run.state.members)


@given(rollouts, events, st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_decisions_depend_on_nothing_else(
    start: RolloutSnapshot, history: list[tuple[str, object, object]], later: float
) -> None:
    run = Simulation(start)
    for event in history:
        play(run, event)
    once = decide.settle(run.state, run.now + later)
    assert once == decide.settle(run.state, run.now + later)
    assert decide.settle(once[1], run.now + later)[0] == []


@given(rollouts, events, st.floats(0, 1, exclude_max=True), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_nothing_happens_before_the_next_due_moment_and_parts_add_up(
    start: RolloutSnapshot, history: list[tuple[str, object, object]], share: float, most: int
) -> None:
    run = Simulation(start)
    for event in history:
        play(run, event)
    due = decide.next_due(run.state, run.now)
    before = run.now + share * (min(due, run.now + 1e6) - run.now)
    assert before >= due or decide.decide(run.state, before) == []
    # Written in parts, the same end is reached as in one go.
    later = min(due, run.now + 1e6)
    whole = decide.settle(run.state, later)[1]
    parts = run.state
    for _ in range(500):
        actions = decide.part(decide.decide(parts, later), most)
        if not actions:
            break
        parts = reduce(parts, actions, later)
    assert parts == whole
