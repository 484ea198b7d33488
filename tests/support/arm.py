"""Emulated ARM boards with the agent's own wheels, in the systems that `edgekit build --emulate` makes."""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from edgekit import host
from edgekit.build.emulate import Machine, _machine, _sysroot
from edgekit.build.progress import Silent
from edgekit.profile import Profile
from tests.support.devices import wait_for
from tests.support.wheels import UV, pins

NEEDS = {
    "armv7l": ("cryptography", "dacite", "paho-mqtt"),  # Debian has the rest: NumPy and cffi's backend
    "aarch64": ("cffi", "cryptography", "dacite", "paho-mqtt"),  # NumPy comes with the engine
}
START_S = 240.0
"""Until an emulated agent serves, on two busy cores."""


@dataclass(frozen=True)
class Board:
    """A folder that is the board, and programs that run there."""

    folder: Path
    architecture: str
    python: Path
    """Starts the emulated interpreter and is its `sys.executable`: the agent's children are emulated, too."""
    agent: Path
    """`edgekit-agent` as its wheel installs it."""

    def run(self, *words: str | Path) -> Any:
        """What a Python program there prints, as JSON."""
        done = subprocess.run([self.python, *words], capture_output=True, text=True, timeout=START_S)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.contextmanager
    def serving(self, *words: str | Path) -> Iterator[tuple[dict[str, str], psutil.Process]]:
        """`edgekit-agent serve WORDS`: what it says when it is ready, and the supervisor."""
        out, log = self.folder / "ready.json", self.folder / "log"
        with out.open("wb") as stdout, log.open("wb") as stderr:
            child = psutil.Popen([self.agent, "serve", *words], stdout=stdout, stderr=stderr)
        try:
            wait_for("readiness", lambda: out.stat().st_size > 0 or child.poll() is not None, START_S)
            assert child.poll() is None, log.read_text()
            yield json.loads(out.read_bytes()), child
            child.terminate()
            assert child.wait(60) == 0, log.read_text()
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()


def board(folder: Path, profile: Profile, wheels: Path) -> Board:
    """`profile`'s board with the engine of its first target and the agent from `wheels`."""
    machine = _machine.machine(profile, profile.target[0], host.read())
    assert isinstance(machine, Machine), machine
    assert machine.lock is not None
    architecture = machine.lock.architecture
    sysroot = _sysroot.ensure(machine.lock, Silent())
    needs = folder / "agent.txt"
    needs.write_text(pins(NEEDS[architecture]))
    agent = _sysroot.wheels(needs, architecture, sysroot.root, Silent())
    machine.furnish(folder / "board", sysroot)
    command, environment = _sysroot.python(sysroot.root, architecture, folder / "board", machine.cpu.name)
    python = _environment(folder, command, environment, (agent, sysroot.site))
    install: list[str | Path] = [
        UV,
        "pip",
        "install",
        "--quiet",
        "--offline",
        "--no-config",
        "--no-deps",
        "--python",
        python,
    ]
    ours = [path for path in wheels.glob("*.whl") if not path.name.startswith("edgekit_fleet")]
    subprocess.run([*install, *ours], check=True)
    return Board(folder, architecture, python, python.with_name("edgekit-agent"))


def _environment(
    folder: Path, command: list[str], environment: dict[str, str], sites: tuple[Path, ...]
) -> Path:
    """The interpreter of a virtual environment as `python3 -m venv --system-site-packages` makes one.

    It is a script that starts QEMU and has it say (-0) that the script's name is the program's: a supervisor
    that starts children by `sys.executable` starts them emulated, without the kernel's help (binfmt_misc).
    """
    emulator, interpreter = command[:-1], command[-1]
    python = folder / "venv" / "bin" / "python"
    packages = folder / "venv" / "lib" / "python3.11" / "site-packages"
    for place in (python.parent, packages):
        place.mkdir(parents=True)
    (folder / "venv" / "pyvenv.cfg").write_text(
        f"home = {Path(interpreter).parent}\ninclude-system-site-packages = true\n"
    )
    (packages / "sites.pth").write_text("".join(f"{site}\n" for site in sites))
    variables = shlex.join(f"{key}={value}" for key, value in environment.items())
    line = f'{variables} {shlex.join(emulator)} -0 "$0" {shlex.quote(interpreter)} "$@"'
    python.write_text(f"#!/bin/sh\nexec env -u PYTHONDONTWRITEBYTECODE {line}\n")
    python.chmod(0o755)
    return python
