"""A whole fleet on this machine: the manager with its broker, and agents, all as real processes.

`Lab` starts them through their command lines, restarts what a test kills, and asks the admin API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from edgekit.crypto.keys import SealingKey
from tests.support.bundles import Keys
from tests.support.devices import Client
from tests.support.ports import free_port

BIN = Path(sys.executable).parent
READY_S = 60


class Process:
    """One command that stays: started, killed, started again; output in `<name>.log`."""

    def __init__(self, name: str, folder: Path, command: list[str]) -> None:
        self.name, self.folder, self.command = name, folder, command
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin"}
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.child = subprocess.Popen(self.command, stdout=log, stderr=log, env=environment)

    def kill(self) -> None:
        """kill -9 and reap."""
        if self.child:
            self.child.kill()
            self.child.wait()

    def stop(self) -> None:
        if self.child and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()

    def children(self, word: str) -> list[psutil.Process]:
        """Child processes with `word` in their command line."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.child.pid).children(recursive=True) if self.child else []
            return [child for child in family if _has_word(child, word)]
        return []

    def log(self) -> str:
        return (self.folder / f"{self.name}.log").read_text(errors="replace")


def _has_word(process: psutil.Process, word: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return any(word in part for part in process.cmdline())
    return False


class Agent(Process):
    """One enrolled device; serves on a Unix socket in the lab's folder."""

    def __init__(self, device: str, folder: Path) -> None:
        self.state = folder / device
        self.socket = folder / f"{device}.sock"
        self.client = Client(unix=self.socket)
        super().__init__(device, folder, [str(BIN / "edgekit-agent"), "--config", f"{self.state}/agent.toml"])


class Lab:
    """The manager and its agents under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "fleet"
        command = [str(BIN / "edgekit-fleet"), "up", "--state", str(self.state)]
        for port in ("--port", "--device-port", "--mqtt-port"):
            command += [port, str(free_port())]
        self.fleet = Process("fleet", folder, command)
        self.agents: dict[str, Agent] = {}

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / str(words[0])), *map(str, words[1:])]
        environment = {**os.environ, "EDGEKIT_KEYS": str(self.folder / "keys")}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def init(self) -> None:
        self.run("edgekit-fleet", "init", "--state", self.state)

    def trust(self, key: Path) -> None:
        self.run("edgekit-fleet", "trust", "add", key, "--state", self.state)

    def keys(self) -> Keys:
        """A builder that this fleet trusts, and the fleet's own recipient key: bundles made with them fit."""
        made = Keys(recipient=SealingKey.load(self.state / "keys" / "recipient.pem"))
        public = self.folder / "builder.pub"
        public.write_bytes(made.signer.public().to_pem())
        self.trust(public)
        return made

    def up(self) -> None:
        """Start the manager and wait until its API answers."""
        self.fleet.start()
        self.wait(lambda: self.answers("/healthz"), "the fleet's API")

    def answers(self, path: str) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
            return self.api("GET", path)[0] == 200
        return False

    def api(self, method: str, path: str, body: Any = None, raw: bytes | None = None) -> tuple[int, Any]:
        """One request to the admin API with the admin's token: (status, answer)."""
        ready = json.loads((self.state / "fleet.json").read_text())
        url = urlsplit(ready["url"])
        context = ssl.create_default_context(cafile=str(self.state / "ca" / "ca.pem"))
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=30)
        token = (self.state / "admin.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """GET that must be answered, across a restart of the manager."""
        found: list[Any] = []

        def ask() -> bool:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                status, answer = self.api("GET", path)
                if status == 200:
                    found.append(answer)
            return bool(found)

        self.wait(ask, f"an answer to GET {path}")
        return found[0]

    def enroll(self, device: str, profile: str) -> Agent:
        """Token, key, certificate, configuration; then start the agent."""
        words = ("fleet", "enroll", "--state", self.state, "--device", device, "--profile", profile, "--json")
        token = json.loads(self.run("edgekit", *words).stdout)["token"]
        agent = Agent(device, self.folder)
        self.run(
            "edgekit-agent", "enroll", "--token", token, "--state", agent.state, "--profile", profile,
            "--device", device, "--emulated", "--telemetry-s", "0.5", "--unix", agent.socket, "--port", "0",
        )  # fmt: skip
        agent.start()
        self.agents[device] = agent
        return agent

    def publish(self, bundle: Path) -> None:
        status, answer = self.api("POST", "/v1/releases", raw=bundle.read_bytes())
        assert status in (200, 201), answer

    def roll_out(self, release: str, **strategy: Any) -> int:
        """Begin a rollout; its number."""
        status, answer = self.api("POST", "/v1/rollouts", {"release": release, "strategy": strategy})
        assert status == 201, answer
        return int(answer["id"])

    def ended(self, rollout: int, timeout_s: float = READY_S) -> str:
        """Wait for the end of a rollout; its final state."""
        seen: list[str] = []

        def over() -> bool:
            seen.append(self.get(f"/v1/rollouts/{rollout}")["state"])
            return seen[-1] in ("FINISHED", "ROLLED_BACK", "STOPPED", "SUPERSEDED")

        self.wait(over, f"the end of rollout {rollout}", timeout_s)
        return seen[-1]

    def devices(self) -> dict[str, dict[str, Any]]:
        return {device["id"]: device for device in self.get("/v1/devices")["devices"]}

    def online(self) -> None:
        self.wait(lambda: all(d["online"] for d in self.devices().values()), "every device online")

    def wait(self, ready: Callable[[], bool], what: str, timeout_s: float = READY_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        """The last lines of every process, for a failing test's report."""
        parts = [(p.name, p.log().splitlines()[-25:]) for p in (self.fleet, *self.agents.values()) if p.child]
        return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in parts)

    def stop(self) -> None:
        for process in (*self.agents.values(), self.fleet):
            process.stop()


@contextlib.contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab that is initialised; everything it started is stopped at the end."""
    made = Lab(folder)
    made.init()
    try:
        yield made
    finally:
        made.stop()
