"""The rules, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.wire import JobState
from edgekit_fleet.rollout.commands import command, supersede
from edgekit_fleet.rollout.gates import Evidence, Sample
from edgekit_fleet.rollout.snapshot import EndJob, MoveGroup, Notify, SendBack, TellCancel
from edgekit_fleet.rollout.states import GroupState, RolloutState, TransitionError
from edgekit_fleet.rollout.strategies import OnError, OnSuccess, Phase
from tests.unit.fleet.rollout.simulation import NEW, OLD, Simulation, snapshot

CANARY = Phase("canary", size="1", soak_s=10)
REST = Phase("rest", soak_s=0)


def states(run: Simulation) -> list[GroupState]:
    return [group.state for group in run.state.groups]


def test_canary_then_rest_then_finished() -> None:
    run = Simulation(snapshot((CANARY, 1), (REST, 3)))
    assert run.at() is RolloutState.RUNNING
    assert [a for a in run.actions if isinstance(a, Notify)] == [Notify("d0")]
    run.succeed("d0")
    assert states(run) == [GroupState.SOAKING, GroupState.SCHEDULED]
    assert run.tick(9.9) == []
    run.tick(0.2)
    assert states(run) == [GroupState.SUCCEEDED, GroupState.RUNNING]
    run.succeed("d1", "d2")
    assert run.at() is RolloutState.RUNNING
    run.succeed("d3")
    assert run.at() is RolloutState.FINISHED
    assert run.tick(1e6) == []


def test_canary_failure_rolls_back_without_telling_the_rest() -> None:
    run = Simulation(snapshot((CANARY, 1), (REST, 3)))
    run.report("d0", JobState.FAILED)
    assert run.at() is RolloutState.ROLLED_BACK  # the device put itself back
    assert states(run) == [GroupState.ERROR, GroupState.SCHEDULED]
    assert {m.deploy.state for m in run.state.groups[1].members} == {JobState.CANCELED}
    assert not any(isinstance(a, SendBack) for a in run.actions)
    told = [a.device for a in run.actions if isinstance(a, EndJob) and a.tell]
    assert told == []
    assert (
        run.state.reason
        == "group 'canary': 1 of 1 device(s) failed, 0 allowed (d0); no device had to go back"
    )


def test_rollback_sends_back_who_has_it_and_who_may_get_it() -> None:
    phase = Phase("all", errors=0)
    run = Simulation(snapshot((phase, 5)))
    run.change("d3", online=False)
    run.change("d4", online=False)
    run.succeed("d0")
    run.report("d1", JobState.IN_PROGRESS)
    run.report("d4", JobState.IN_PROGRESS)  # went away in the middle
    run.report("d2", JobState.FAILED)
    assert run.at() is RolloutState.ROLLING_BACK
    assert {a.device for a in run.actions if isinstance(a, SendBack)} == {"d0", "d1", "d4"}
    assert EndJob("d3", JobState.CANCELED, "the rollout was rolled back", tell=True) in run.actions
    run.report("d0", JobState.SUCCEEDED)
    run.report("d1", JobState.SUCCEEDED)
    assert run.at() is RolloutState.ROLLING_BACK
    run.change("d4", confirmed_back=True)
    run.tick()
    assert run.at() is RolloutState.ROLLED_BACK
    run.change("d3", on_new=True)  # it had it all the same
    assert run.tick() == [SendBack("d3")]
    assert run.at() is RolloutState.ROLLED_BACK


def test_rollback_that_nobody_confirms_ends_stopped_and_names_the_device() -> None:
    run = Simulation(snapshot((Phase("all", errors=0, deadline_s=60), 2)))
    run.succeed("d0")
    run.report("d1", JobState.FAILED)
    run.tick(61)
    assert run.at() is RolloutState.STOPPED
    assert "d0 (TIMED_OUT)" in str(run.actions[-1])


def test_device_without_previous_release_is_named() -> None:
    run = Simulation(snapshot((Phase("all"), 2)))
    run.change("d0", previous="")
    run.succeed("d0")
    run.report("d1", JobState.FAILED)
    assert run.at() is RolloutState.ROLLED_BACK
    assert "no earlier release is known for d0" in str(run.actions[-1])


def test_offline_device_times_out_and_does_not_block() -> None:
    phase = Phase("all", success=50, errors_percent=50, deadline_s=100)
    run = Simulation(snapshot((phase, 2), (REST, 1)))
    run.change("d1", online=False)
    run.succeed("d0")
    assert states(run) == [GroupState.SUCCEEDED, GroupState.RUNNING]  # d1 may come later
    actions = run.tick(101)
    assert EndJob("d1", JobState.TIMED_OUT, "it was away", tell=True) in actions


def test_a_canary_that_nobody_tried_pauses_instead_of_letting_the_rest_begin() -> None:
    run = Simulation(snapshot((CANARY, 1), (REST, 2)))
    run.change("d0", revoked=True)
    run.tick()
    assert run.at() is RolloutState.PAUSED
    assert "without a device that tried the release" in str(run.actions[-1])
    assert not [a for a in run.actions if isinstance(a, Notify) and a.device != "d0"]


def test_deadline_of_a_silent_canary_ends_in_error() -> None:
    run = Simulation(snapshot((replace(CANARY, deadline_s=30), 1), (REST, 1)))
    run.tick(31)
    assert states(run)[0] is GroupState.ERROR


def test_unreachable_success_is_an_error_even_below_the_error_threshold() -> None:
    run = Simulation(snapshot((Phase("all", success=90, errors_percent=50), 4)))
    run.report("d0", JobState.REJECTED)
    assert states(run) == [GroupState.ERROR]


def test_min_executed_trips_early_on_the_executed_share() -> None:
    phase = Phase("all", success=50, errors_percent=30, min_executed=3)
    run = Simulation(snapshot((phase, 10)))
    run.report("d0", JobState.FAILED)
    run.report("d1", JobState.FAILED)
    assert states(run) == [GroupState.RUNNING]  # 2 of 10, and only 2 executed
    run.succeed("d2")
    assert states(run) == [GroupState.ERROR]  # 2 of 3 executed


def test_pause_actions() -> None:
    first = replace(CANARY, soak_s=0, on_success=OnSuccess.PAUSE)
    second = Phase("second", on_error=OnError.PAUSE)
    run = Simulation(snapshot((first, 1), (second, 2), (REST, 1)))
    run.succeed("d0")
    assert run.at() is RolloutState.PAUSED
    assert states(run)[1] is GroupState.SCHEDULED
    run.do(command(run.state, "resume"))
    run.report("d1", JobState.FAILED)
    assert run.at() is RolloutState.PAUSED
    assert states(run)[1] is GroupState.ERROR
    run.do(command(run.state, "resume"))  # a person accepts the error
    run.succeed("d2", "d3")
    assert run.at() is RolloutState.FINISHED
    assert "went on after errors in: second" in str(run.actions[-1])


def test_late_failure_of_a_group_that_succeeded_rolls_back() -> None:
    run = Simulation(snapshot((Phase("half", success=50, errors=0), 2), (REST, 2)))
    run.succeed("d0")
    assert states(run)[0] is GroupState.SUCCEEDED
    run.report("d1", JobState.FAILED)
    assert run.at() is RolloutState.ROLLING_BACK


def test_gate_failure_while_soaking_rolls_back() -> None:
    run = Simulation(snapshot((CANARY, 1), (REST, 3)))
    run.succeed("d0")
    bad = Evidence({"jetson": Sample(200, 20)}, {"jetson": Sample(600, 0)})
    run.state = replace(run.state, evidence=bad)
    run.tick(3)
    assert states(run)[0] is GroupState.ERROR
    assert run.at() is RolloutState.ROLLING_BACK
    reason = next(a.reason for a in run.actions if isinstance(a, MoveGroup) and a.to is GroupState.ERROR)
    assert "gate error-rate (jetson): error rate 0.1000 against 0.0000" in reason


def test_approval_and_schedule() -> None:
    start = snapshot((REST, 1))
    start = replace(start, strategy=replace(start.strategy, approval=True), start_at=50)
    run = Simulation(start)
    assert run.at() is RolloutState.WAITING_FOR_APPROVAL
    run.do(command(run.state, "approve"))
    assert run.at() is RolloutState.SCHEDULED
    run.tick(50)
    assert run.at() is RolloutState.RUNNING


def test_abort_cancels_the_queued_and_waits_for_those_at_work() -> None:
    run = Simulation(snapshot((Phase("a", deadline_s=60), 2), (REST, 1)))
    run.report("d0", JobState.IN_PROGRESS)
    run.do(command(run.state, "abort"))
    assert run.at() is RolloutState.STOPPING
    assert TellCancel("d0") in run.actions
    assert EndJob("d1", JobState.CANCELED, "aborted", tell=True) in run.actions
    assert EndJob("d2", JobState.CANCELED, "aborted", tell=False) in run.actions
    run.report("d0", JobState.CANCELED)
    assert run.at() is RolloutState.STOPPED


def test_abort_before_the_start_needs_no_device() -> None:
    run = Simulation(replace(snapshot((REST, 1)), start_at=100))
    run.do(command(run.state, "abort"))
    assert run.at() is RolloutState.STOPPED


def test_supersede() -> None:
    run = Simulation(snapshot((REST, 2)))
    run.report("d0", JobState.IN_PROGRESS)
    run.do(supersede(run.state, "r2"))
    assert run.at() is RolloutState.SUPERSEDED
    assert {m.deploy.state for m in run.state.members} == {JobState.CANCELED}
    assert run.tick(1e9) == []


@pytest.mark.parametrize("verb", ["pause", "resume", "abort", "rollback", "approve", "start"])
def test_commands_on_an_ended_rollout_are_refused(verb: str) -> None:
    run = Simulation(snapshot((REST, 1), state=RolloutState.FINISHED))
    with pytest.raises(TransitionError, match="FINISHED"):
        command(run.state, verb)


def test_paused_goes_nowhere_but_keeps_deadlines() -> None:
    run = Simulation(snapshot((Phase("a", deadline_s=30), 1), (REST, 1)))
    run.do(command(run.state, "pause"))
    run.tick(31)
    assert run.member("d0").deploy.state is JobState.TIMED_OUT
    assert run.at() is RolloutState.PAUSED
    run.do(command(run.state, "resume"))
    assert states(run)[0] is GroupState.ERROR


def test_device_that_already_runs_it_is_not_told() -> None:
    start = snapshot((REST, 2))
    first = replace(start.groups[0].members[0], on_new=True, previous=NEW)
    start = replace(start, groups=(replace(start.groups[0], members=(first, start.groups[0].members[1])),))
    run = Simulation(start)
    assert [a for a in run.actions if isinstance(a, Notify)] == [Notify("d1")]
    run.report("d1", JobState.FAILED)
    assert not any(isinstance(a, SendBack) for a in run.actions)


def test_revoked_device_counts_neither_way() -> None:
    run = Simulation(snapshot((REST, 2)))
    run.change("d1", revoked=True)
    run.succeed("d0")
    assert run.at() is RolloutState.FINISHED
    assert run.member("d1").deploy.state is JobState.CANCELED
    assert run.member("d1").previous == OLD


def test_empty_group_is_passed() -> None:
    run = Simulation(snapshot((CANARY, 0), (REST, 1)))
    assert states(run) == [GroupState.SUCCEEDED, GroupState.RUNNING]
