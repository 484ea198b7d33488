"""One emulated device: a profile's board, its CPU, and the engine in the version that the target names."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgekit
from edgekit import codec
from edgekit import profile as profiles
from edgekit.backends import Recipe
from edgekit.build.emulate import _cpus, _sysroot
from edgekit.build.progress import Progress
from edgekit.bundle.model import EngineRange
from edgekit.errors import DataError, EngineError
from edgekit.files import storage_fault
from edgekit.host import Host, saturates
from edgekit.profile import Profile, Target, Verify

BUDGET_S = 600.0
"""For the rows of one candidate; a first look at a few of them says when they would take longer."""
_SLACK_S = 300.0
_INSIDE = Path(__file__).parent / "inside.py"


@dataclass(frozen=True)
class Job:
    """What to run on the emulated CPU."""

    recipe: Recipe
    verify: Verify
    classify: bool
    files: Mapping[str, bytes]
    inputs: Mapping[str, NDArray[Any]]
    reference: NDArray[Any] | None


@dataclass(frozen=True)
class Machine:
    profile: Profile
    cpu: _cpus.Cpu
    qemu: str
    lock: _sysroot.Lock | None
    """None: the host's own architecture, with the host's own Python and engine."""

    @property
    def name(self) -> str:
        """As certificates have it, e.g. "cortex-a72 (qemu 7.2)"."""
        return f"{self.cpu.name} (qemu {_sysroot.qemu_version(self.qemu)})"

    def identity(self) -> dict[str, str]:
        """What its answers depend on, besides the job."""
        return {"cpu": self.name, "lock": self.lock.digest if self.lock else ""}

    def prepare(self, progress: Progress) -> None:
        """Make what is missing. Raises SystemFault."""
        if self.lock:
            _sysroot.ensure(self.lock, progress)

    def run(self, job: Job, progress: Progress) -> tuple[dict[str, Any], dict[str, bytes]]:
        """`inside.py`'s result and files. Raises EngineError in one line for whatever happened there."""
        what = f"{job.recipe.name} on an emulated {self.cpu.name}"
        rows = len(next(iter(job.inputs.values())))
        sysroot = _sysroot.ensure(self.lock, progress) if self.lock else None
        try:
            with tempfile.TemporaryDirectory(prefix="edgekit-emulate-") as name:
                folder = Path(name)
                _write(folder, job)
                self.furnish(folder / "board", sysroot)
                command, environment = self._command(folder, sysroot)
                with progress.step(f"run {what}, {rows} rows"):
                    return _attend(command, environment, folder, what)
        except OSError as exc:
            raise storage_fault(Path(exc.filename or tempfile.gettempdir()), exc) from None

    def furnish(self, place: Path, sysroot: _sysroot.Sysroot | None = None) -> None:
        """Make the folder that programs take for "/": the board's files, and the system behind links."""
        for path, text in _cpus.board(self.profile).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
        for item in sysroot.root.iterdir() if sysroot else ():
            if item.name not in ("proc", "sys", "dev", "tmp", ".complete"):
                (place / item.name).symlink_to(item)

    def _command(self, folder: Path, sysroot: _sysroot.Sysroot | None) -> tuple[list[str], dict[str, str]]:
        board = folder / "board"
        if sysroot is None:
            command = [self.qemu, "-L", str(board), "-cpu", self.cpu.name, sys.executable, "-I", "-P"]
            return [*command, str(_INSIDE), str(folder)], {}
        command, environment = _sysroot.python(sysroot.root, self.cpu.architecture, board, self.cpu.name)
        code = _sysroot.code(Path(edgekit.__file__).parent)
        debian = sysroot.root / "usr/lib/python3/dist-packages"
        # -S: no start-up code of a system that was never configured.
        return [
            *command,
            "-S",
            "-P",
            str(_INSIDE),
            *map(str, (folder, code, sysroot.site, debian)),
        ], environment


def needed(profile: Profile, here: Host) -> bool:
    """Whether this host's CPU may answer otherwise than the profile's: it lacks something of it, or, on x86,
    has VNNI where the profile does not count on it."""
    if profiles.unmet_by(profile, here):
        return True
    hardware = profile.hardware
    exact = any("vnni" in feature for feature in hardware.isa)
    return hardware.architecture == "x86_64" and not exact and not saturates(here)


def setup(profile: Profile, here: Host, progress: Progress) -> list[str]:
    """Make now what emulating the profile takes. What cannot be emulated, as lines; empty: all of it can.

    Raises ProfileError, SystemFault.
    """
    if not needed(profile, here):
        return [f"{profile.name}: this host will do"]
    problems = []
    for target in profile.target:
        found = machine(profile, target, here)
        if isinstance(found, str):
            problems.append(f"{profile.name}: {target.runtime} not emulated: {found}")
        else:
            found.prepare(progress)
    return problems


def machine(profile: Profile, target: Target, here: Host) -> Machine | str:
    """The machine for one of a profile's targets, or why there is none.

    Raises ProfileError for an unknown CPU, SystemFault when the emulator is not installed.
    """
    hardware = profile.hardware
    if not hardware.emulate:
        return "the profile names no CPU to emulate (hardware.emulate)"
    cpu = _cpus.cpu_of(profile)
    lock = None
    if cpu.architecture != here.architecture:
        wanted = EngineRange(target.runtime, target.minimum, target.below)
        lock = _sysroot.lock_for(wanted, cpu.architecture)
        if lock is None:
            return f"no wheels of {target.runtime} in its range are pinned for {cpu.architecture}"
    return Machine(profile, cpu, _sysroot.qemu(cpu.architecture), lock)


def _write(folder: Path, job: Job) -> None:
    for name, data in job.files.items():
        place = folder / "files" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    (folder / "out").mkdir()
    arrays = [*job.inputs.values(), *([] if job.reference is None else [job.reference.astype(np.int64)])]
    np.savez(folder / "inputs.npz", *arrays)
    described = {
        "engine": job.recipe.engine,
        "options": job.recipe.runtime_options,
        "inputs": list(job.inputs),
        "verify": job.verify,
        "classify": job.classify,
        "budget_s": BUDGET_S,
    }
    (folder / "job.json").write_bytes(codec.to_json(described))


def _attend(
    command: list[str], environment: dict[str, str], folder: Path, what: str
) -> tuple[dict[str, Any], dict[str, bytes]]:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=BUDGET_S + _SLACK_S,
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder), **environment},
        )
    except subprocess.TimeoutExpired:
        raise EngineError(f"{what} took more than {BUDGET_S + _SLACK_S:.0f} s") from None
    document = folder / "result.json"
    if done.returncode or not document.is_file():
        raise EngineError(f"{what} {_end(done.returncode, done.stderr)}")
    result: dict[str, Any] = json.loads(document.read_bytes())
    if "error" in result:
        kind = DataError if "--emulate-rows" in result["hint"] else EngineError
        raise kind(f"{what}: {result['error']}", result["hint"])
    out = folder / "out"
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return result, {str(path.relative_to(out)): path.read_bytes() for path in paths}


def _end(code: int, stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = f": {lines[-1][:300]}" if lines else ""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}{last}"
    return f"failed with exit code {code}{last}"
