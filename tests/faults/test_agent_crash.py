"""kill -9 of the agent and of its serving process at every moment of an activation.

The moments are found by reading the journal of the running agent, so that each stage is hit; then the
agent is started again and must serve the old release or the new one, with right answers, and end its job.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgekit.wire import Assignment, JobState, Stage
from edgekit_agent.stages import MAX_RESTARTS
from edgekit_agent.store import Store
from tests.support.devices import Client, release, variant, wait_for
from tests.support.standin import StandIn, standin

pytestmark = pytest.mark.faults

AGENT = str(Path(sys.executable).with_name("edgekit-agent"))
OLD, NEW = 1.0, 2.0


class Device:
    """An agent whose broker is never there: jobs are put into its store, the rest is as always."""

    def __init__(self, place: StandIn) -> None:
        self.place = place
        self.config = place.install(broker_port=9)  # the discard port: nobody listens
        self.state = self.config.parent
        self.client = Client(unix=self.state / "agent.sock")
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.state / "log").open("ab") as log:
            self.child = subprocess.Popen([AGENT, "--config", str(self.config)], stdout=log, stderr=log)

    def assign(self, path: Path, watch_s: float = 0.3) -> Assignment:
        """Queue an assignment while no agent runs."""
        assignment = self.place.assignment(path, watch_s=watch_s)
        store = Store(self.state)
        store.accept(assignment)
        store.close()
        return assignment

    def journal(self, job: str) -> tuple[str, str]:
        """(state, stage) as another process sees them: committed."""
        database = sqlite3.connect(f"file:{self.state}/agent.db?mode=ro", uri=True, timeout=5)
        try:
            row = database.execute("SELECT state, stage FROM job WHERE job = ?", (job,)).fetchone()
        finally:
            database.close()
        return str(row[0]), str(row[1])

    def restarts(self, job: str) -> int:
        """How often the agent was started again during this job, by its journal."""
        database = sqlite3.connect(f"file:{self.state}/agent.db?mode=ro", uri=True, timeout=5)
        try:
            (count,) = database.execute("SELECT restarts FROM job WHERE job = ?", (job,)).fetchone()
        finally:
            database.close()
        return int(count)

    def ended(self, job: str) -> bool:
        return JobState(self.journal(job)[0]).terminal

    def end_of(self, job: str) -> JobState:
        wait_for(f"the end of {job}", lambda: self.ended(job))
        return JobState(self.journal(job)[0])

    def kill(self) -> None:
        """kill -9 of the supervisor; its children must end by themselves."""
        assert self.child is not None
        family = psutil.Process(self.child.pid).children(recursive=True)
        self.child.kill()
        self.child.wait()
        wait_for("the end of the supervisor's children", lambda: not any(map(lives, family)), 10)

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            self.child.wait(30)

    def log(self) -> str:
        return (self.state / "log").read_text()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    with standin(tmp_path) as place:
        made = Device(place)
        try:
            yield made
        finally:
            made.close()


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # whoever is process 1 may reap late
    except psutil.NoSuchProcess:
        return False


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
    assert device.child is not None
    for worker in psutil.Process(device.child.pid).children():
        if "edgekit_agent.worker" in worker.cmdline():
            worker.kill()
    assert device.client.served_weight() in (OLD, NEW)
    state = device.end_of(job)
    assert state in (JobState.SUCCEEDED, JobState.ROLLED_BACK), device.log()
    assert device.client.served_weight() == (NEW if state is JobState.SUCCEEDED else OLD)


def test_serving_that_keeps_crashing_in_the_watch_is_rolled_back(device: Device) -> None:
    job = device.assign(on_old(device), watch_s=60.0).job
    device.start()
    assert reached(device, job, Stage.WATCH)
    assert device.child is not None
    killed = 0
    while not device.ended(job):
        for worker in psutil.Process(device.child.pid).children():
            if killed < 3:
                os.kill(worker.pid, 9)
                killed += 1
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
