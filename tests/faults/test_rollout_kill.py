"""kill -9 at 32 moments of a rollout: it ends in the right state, and every device answers rightly.

Real processes throughout: manager, mosquitto, three agents with their serving processes. The victim is
killed a little later in each rollout; supervisors bring back what is theirs (serving process, broker), and
the test starts again what an init system would (agent, manager).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import devices
from tests.support.lab import Agent, Lab, lab

MOMENTS = 8
STEP_S = 0.45
AGENTS = 3
WEIGHTS = {"1.0.0": 1.0, "2.0.0": 2.0}
BAD = "3.0.0"
STRATEGY = {
    "phases": [{"name": "canary", "size": "1", "soak_s": 0.5}, {"name": "rest", "soak_s": 0.5}],
    "watch_s": 1.0,
}


@pytest.fixture
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A fleet with three devices on release 1.0.0; 2.0.0 is good, 3.0.0 fails its golden check."""
    with lab(tmp_path_factory.mktemp("lab")) as made:
        keys = made.keys()
        made.up()
        for number in range(AGENTS):
            made.enroll(f"device-{number}", "generic-cpu")
        for version, weight in WEIGHTS.items():
            made.publish(devices.release(made.folder, version, devices.variant(weight), keys=keys))
        made.publish(devices.release(made.folder, BAD, devices.variant(3.0, lie=1.0), keys=keys))
        made.online()
        assert made.ended(made.roll_out("tiny:1.0.0", **STRATEGY)) == "FINISHED"
        yield made


def strike(made: Lab, victim: str, moment: int) -> None:
    """Kill one process the hard way; start again what nobody else would."""
    agent: Agent = list(made.agents.values())[moment % AGENTS]
    if victim == "fleet":
        made.fleet.kill()
        time.sleep(0.2)
        made.up()
    elif victim == "agent":
        agent.kill()
        time.sleep(0.2)
        agent.start()
    elif victim == "broker":
        kill(made.fleet.children("mosquitto"))
    else:
        kill(agent.children("edgekit_agent.worker"))


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # its parent has ended it by itself
            process.kill()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["agent", "serving", "fleet", "broker"])
def test_a_rollout_survives_kill_9(victim: str, running: Lab) -> None:
    current = "1.0.0"
    for moment in range(MOMENTS):
        wanted = BAD if moment % 4 == 3 else ("2.0.0" if current == "1.0.0" else "1.0.0")
        rollout = running.roll_out(f"tiny:{wanted}", **STRATEGY)
        time.sleep(moment * STEP_S)
        strike(running, victim, moment)
        state = running.ended(rollout, timeout_s=90)
        told = f"{victim} killed after {moment * STEP_S:.2f} s of rollout {rollout} to {wanted}"
        assert state == ("ROLLED_BACK" if wanted == BAD else "FINISHED"), f"{told}\n{running.logs()}"
        current = current if wanted == BAD else wanted
        check_devices(running, current, told)


def check_devices(running: Lab, version: str, told: str) -> None:
    """Every device serves this release, by its own answers and by its report."""
    for name, agent in running.agents.items():

        def serves(agent: Agent = agent) -> bool:
            return agent.client.served_weight() == WEIGHTS[version]

        devices.wait_for(f"{name} serving {version} ({told})", serves, timeout_s=30)
    running.wait(
        lambda: {d["release"] for d in running.devices().values()} == {f"tiny:{version}"},
        f"every device reporting {version} ({told})",
    )


def test_the_manager_starts_again_on_its_folder(tmp_path: Path) -> None:
    with lab(tmp_path) as made:
        made.up()
        made.fleet.kill()
        made.up()
        assert made.get("/healthz")["ok"]
