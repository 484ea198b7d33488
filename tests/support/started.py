"""`edgekit-agent serve` as a person starts it: supervisor, serving process, spare; TCP and a Unix socket."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from edgekit import bundle
from edgekit.bundle.model import ReleaseInfo
from tests.support.bundles import Keys, make_variant
from tests.support.serving import Candidate

AGENT = str(Path(sys.executable).with_name("edgekit-agent"))
_WRONG = re.compile(r"Traceback|^\S+ \S+ (?:ERROR|CRITICAL|WARNING asyncio:) ", re.MULTILINE)
_STOP_S = 30.0


@dataclasses.dataclass(frozen=True)
class Started:
    """Of an agent that serves."""

    supervisor: psutil.Process
    serving: psutil.Process
    """The process that answered first; whoever answers after a crash is another one."""
    port: int
    unix: Path
    log: Path

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def complaints(self) -> list[str]:
        """Lines of the log that an agent in good health does not write."""
        text = self.log.read_text(errors="replace")
        found = {match.start() for match in _WRONG.finditer(text)}
        return [text[start : start + 2000].rstrip() for start in sorted(found)]

    def same(self) -> bool:
        """Whether the serving process is the one of the beginning."""
        return self.serving.is_running() and self.serving.status() != psutil.STATUS_ZOMBIE


def write_bundle(folder: Path, found: Candidate, keys: Keys, file: str = "release.edgekit") -> Path:
    """The candidate as a signed, encrypted bundle."""
    one = make_variant(
        found.load.config, files=dict(found.files), golden=found.load.golden, golden_files=dict(found.golden),
        reference=found.load.reference,
    )  # fmt: skip
    path = folder / file
    info = ReleaseInfo(found.load.name, found.load.version)
    bundle.write(path, info, [one], signer=keys.signer, recipients=[keys.recipient.public()], encrypt=True)
    return path


@contextlib.contextmanager
def started(
    folder: Path, found: Candidate, *more: str, beside: Sequence[Candidate] = ()
) -> Iterator[Started]:
    """An agent that serves `found`; ended at the end, where its exit status must be 0. `more`: options.
    `beside`: served by the same agent, of other names."""
    keys = Keys()
    paths = [write_bundle(folder, one, keys, f"{one.load.name}.edgekit") for one in (found, *beside)]
    keys.recipient.save(folder / "recipient.pem")
    (folder / "builder.pub").write_bytes(keys.signer.public().to_pem())
    unix, log = folder / "agent.sock", folder / "log"
    words: list[str | Path] = [AGENT, "serve", *paths, "--key", folder / "recipient.pem"]
    words += ["--trust", folder / "builder.pub", "--profile", "generic-cpu", "--emulated"]
    words += ["--port", "0", "--unix", unix, *more]
    with log.open("wb") as file:
        child = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=file, text=True
        )
    try:
        assert child.stdout is not None
        line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"the agent does not start: {log.read_text()[-800:]}")
        supervisor = psutil.Process(child.pid)
        yield Started(
            supervisor, _serving(supervisor), int(json.loads(line)["endpoint"].rpartition(":")[2]), unix, log
        )
    finally:
        child.terminate()
        try:
            status = child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        finally:
            if child.stdout is not None:
                child.stdout.close()
    if status:
        raise RuntimeError(f"the agent ended with {status}: {log.read_text()[-800:]}")


def _serving(supervisor: psutil.Process) -> psutil.Process:
    """The oldest of its serving processes; a spare comes later."""
    workers = [one for one in supervisor.children() if "edgekit_agent.worker" in one.cmdline()]
    return min(workers, key=lambda one: one.create_time())
