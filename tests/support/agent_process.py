"""An agent as a real process without a fleet: jobs are put into its store, the rest is as always."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from edgekit.wire import Assignment, JobState
from edgekit_agent.store import Store
from tests.support.devices import Client, wait_for
from tests.support.standin import StandIn, standin

AGENT = str(Path(sys.executable).with_name("edgekit-agent"))


class Device:
    """An agent whose broker is never there."""

    program: str | Path = AGENT

    def __init__(self, place: StandIn, environment: Mapping[str, str] | None = None, **serve: Any) -> None:
        """`serve`: fields of the configuration's [serve]."""
        self.place = place
        self.config = place.install(broker_port=9, **serve)  # the discard port: nobody listens
        self.state = self.config.parent
        self.client = Client(unix=self.state / "agent.sock")
        self.child: subprocess.Popen[bytes] | None = None
        self._environment = {**os.environ, **(environment or {})}

    def start(self) -> None:
        with (self.state / "log").open("ab") as log:
            self.child = subprocess.Popen(
                [self.program, "--config", str(self.config)], stdout=log, stderr=log, env=self._environment
            )

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

    def end_of(self, job: str, timeout_s: float = 60) -> JobState:
        wait_for(f"the end of {job}", lambda: self.ended(job), timeout_s)
        return JobState(self.journal(job)[0])

    def kill(self) -> None:
        """kill -9 of the supervisor; its children must end by themselves."""
        assert self.child is not None
        family = psutil.Process(self.child.pid).children(recursive=True)
        self.child.kill()
        self.child.wait()
        wait_for("the end of the supervisor's children", lambda: not any(map(lives, family)), 60)

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(120)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def log(self) -> str:
        return (self.state / "log").read_text()

    def workers(self) -> list[psutil.Process]:
        """Serving processes: the one that answers and, when there is one, the spare."""
        assert self.child is not None
        return workers_of(psutil.Process(self.child.pid))


@contextlib.contextmanager
def device(folder: Path, environment: Mapping[str, str] | None = None, **serve: Any) -> Iterator[Device]:
    """Not started; ended with the context."""
    with standin(folder) as place:
        made = Device(place, environment, **serve)
        try:
            yield made
        finally:
            made.close()


def workers_of(supervisor: psutil.Process) -> list[psutil.Process]:
    return [one for one in supervisor.children() if lives(one) and _is_worker(one)]


def kill_workers(child: subprocess.Popen[bytes] | None) -> None:
    """kill -9 of a supervisor's serving process and spare at one moment: a spare that takes over between the
    two would be a second crash, or a connection that it has accepted lost."""
    assert child is not None
    supervisor = psutil.Process(child.pid)
    supervisor.suspend()
    try:
        workers = workers_of(supervisor)
        for worker in workers:
            worker.kill()  # nobody reaps it meanwhile
        wait_for("their end", lambda: not any(map(lives, workers)))
    finally:
        supervisor.resume()


def lives(process: psutil.Process) -> bool:
    """Whether any of its threads does: its first one may be a zombie while others, that hold its sockets and
    memory, are still ending. Whoever is to reap it may do so late."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return True
        return len(list(Path(f"/proc/{process.pid}/task").iterdir())) > 1
    except (psutil.NoSuchProcess, OSError):
        return False


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as such
        return "edgekit_agent.worker" in process.cmdline()
    return False
