"""A server with all its processes: started on one core, what it takes, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SERVER_CORE, CLIENT_CORE = 0, 1
_STOP_S = 20.0


@dataclass(frozen=True)
class Tree:
    """A process and its descendants, as they are at the time of each call."""

    root: psutil.Process
    log: Path

    def processes(self) -> list[psutil.Process]:
        return [self.root, *self.root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Time on a CPU so far, of every thread that lives or lived, to the nanosecond: the clock that
        clock_getcpuclockid(3) names."""
        total = 0.0
        for one in self.processes():
            with contextlib.suppress(OSError):  # ended meanwhile
                total += time.clock_gettime(~one.pid << 3 | 2)
        return total

    def pss_mib(self) -> float:
        """What the processes share counts once."""
        total = 0
        for one in self.processes():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{one.pid}/smaps_rollup").read_text().splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return total / 1024

    def alive(self) -> None:
        """Raises RuntimeError with the end of its log when it is not."""
        if not self.root.is_running() or self.root.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"the server ended: {self.log.read_text(errors='replace')[-1500:]}")


@contextlib.contextmanager
def started(words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Tree]:
    """`words` in `folder` on the servers' core; its whole process group ends with the block.

    Python keeps its bytecode, as it does where packages are installed.
    """
    log = folder / "log"
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with log.open("wb") as output:
        child = subprocess.Popen(
            ["taskset", "-c", str(SERVER_CORE), *words],
            cwd=folder,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    tree = Tree(psutil.Process(child.pid), log)
    try:
        yield tree
    finally:
        everyone = tree.processes() if child.poll() is None else []
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for one in everyone:  # some are in sessions of their own
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        child.wait()
        psutil.wait_procs(everyone, _STOP_S)
