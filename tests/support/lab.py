"""A whole fleet on this machine: the manager with its broker, and agents, all as real processes.

`Lab` starts them through their command lines, restarts what a test kills, and asks the admin API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil

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


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self.path))


class Agent(Process):
    """One enrolled device; serves on a Unix socket in the lab's folder."""

    def __init__(self, device: str, folder: Path) -> None:
        self.state = folder / device
        self.socket = folder / f"{device}.sock"
        super().__init__(device, folder, [str(BIN / "edgekit-agent"), "--config", f"{self.state}/agent.toml"])

    def infer(self, model: str, inputs: dict[str, np.ndarray[Any, Any]]) -> tuple[int, Any]:
        """POST one v2 request of FP32 tensors: (status, answer)."""
        tensors = [
            {"name": name, "datatype": "FP32", "shape": list(array.shape), "data": array.ravel().tolist()}
            for name, array in inputs.items()
        ]
        return self.request("POST", f"/v2/models/{model}/infer", {"inputs": tensors})

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = UnixConnection(self.socket)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()
        finally:
            connection.close()


class Lab:
    """The manager and its agents under one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "fleet"
        command = [str(BIN / "edgekit-fleet"), "up", "--state", str(self.state)]
        for port in ("--port", "--device-port", "--mqtt-port"):
            command += [port, str(_free_port())]
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
            "--device", device, "--emulated", "--unix", agent.socket, "--port", "0",
        )  # fmt: skip
        agent.start()
        self.agents[device] = agent
        return agent

    def publish(self, bundle: Path) -> None:
        status, answer = self.api("POST", "/v1/releases", raw=bundle.read_bytes())
        assert status in (200, 201), answer

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
