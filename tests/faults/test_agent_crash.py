"""kill -9 of the agent and of its serving process at every moment of an activation.

The moments are found by reading the journal of the running agent, so that each stage is hit; then the
agent is started again and must serve the old release or the new one, with right answers, and end its job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.wire import JobState, Stage
from edgekit_agent.stages import MAX_RESTARTS
from tests.support.agent_process import Device, kill_workers
from tests.support.agent_process import device as make_device
from tests.support.devices import release, variant, wait_for

pytestmark = pytest.mark.faults

OLD, NEW = 1.0, 2.0


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with make_device(tmp_path) as made:
        yield made


def on_old(device: Device) -> Path:
    """Bring the device to the old release; the path of the new one."""
    folder, keys = device.place.folder, device.place.keys
    old = device.assign(release(folder, "1.0.0", variant(OLD), keys=keys))
    device.start()
    assert device.end_of(old.job) is JobState.SUCCEEDED, device.log()
    device.kill()
    return release(folder, "2.0.0", variant(NEW), keys=keys)


def reached(device: Device, job: str, stage: Stage) -> bool:
    """Wait until the journal shows the stage, or a later one."""
    order = list(Stage)
    while True:
        state, now = device.journal(job)
        if state != JobState.QUEUED and order.index(Stage(now)) >= order.index(stage):
            return now == stage
        time.sleep(0.001)


MOMENTS = [(stage, delay_s) for stage in list(Stage)[:6] for delay_s in (0.0, 0.02, 0.08)]


@pytest.mark.parametrize(("stage", "delay_s"), MOMENTS)
def test_agent_is_killed(device: Device, stage: Stage, delay_s: float) -> None:
    job = device.assign(on_old(device)).job
    device.start()
    reached(device, job, stage)
    time.sleep(delay_s)
    device.kill()
    device.start()
    wait_for("the restarted agent", lambda: device.client.request("GET", "/v2/health/live")[0] == 200)
    assert device.client.served_weight() in (OLD, NEW)
    assert device.end_of(job) is JobState.SUCCEEDED, device.log()
    assert device.client.served_weight() == NEW


def test_agent_is_killed_again_and_again(device: Device) -> None:
    """Every start gets a little further; it ends, and never without a release."""
    job = device.assign(on_old(device)).job
    for step in range(1, 13):
        device.start()
        time.sleep(0.2 * step)
        device.kill()
    device.start()
    assert device.end_of(job).terminal
    wait_for("serving", lambda: device.client.request("GET", "/v2/health/live")[0] == 200)
    assert device.client.served_weight() in (OLD, NEW)


@pytest.mark.parametrize("stage", list(Stage)[:6])
def test_serving_is_killed(device: Device, stage: Stage) -> None:
    """Clients wait a moment; the job goes on or the old release comes back."""
    job = device.assign(on_old(device)).job
    device.start()
    reached(device, job, stage)
    kill_workers(device.child)
    assert device.client.served_weight() in (OLD, NEW)
    state = device.end_of(job)
    assert state in (JobState.SUCCEEDED, JobState.ROLLED_BACK), device.log()
    assert device.client.served_weight() == (NEW if state is JobState.SUCCEEDED else OLD)


def test_serving_that_keeps_crashing_in_the_watch_is_rolled_back(device: Device) -> None:
    job = device.assign(on_old(device), watch_s=60.0).job
    device.start()
    assert reached(device, job, Stage.WATCH)
    while not device.ended(job):
        kill_workers(device.child)  # the spare too
        time.sleep(0.7)
    assert device.end_of(job) is JobState.ROLLED_BACK
    assert device.client.served_weight() == OLD


def test_power_fails_while_the_release_is_on_probation_too_often(device: Device) -> None:
    """A job during which the agent dies again and again is given up, and the old release stays."""
    job = device.assign(on_old(device), watch_s=60.0).job
    device.start()
    reached(device, job, Stage.WATCH)
    for restart in range(1, MAX_RESTARTS + 1):
        device.kill()
        device.start()
        wait_for("the journal of the restart", lambda n=restart: device.restarts(job) == n)  # type: ignore[misc]
        reached(device, job, Stage.WATCH)
    device.kill()
    device.start()
    assert device.end_of(job) is JobState.ROLLED_BACK
    wait_for("serving", lambda: device.client.request("GET", "/v2/health/live")[0] == 200)
    assert device.client.served_weight() == OLD
