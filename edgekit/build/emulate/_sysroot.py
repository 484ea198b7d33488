"""Folders that hold another architecture's Python and engine, made on first use, offline afterwards.

    root-ARCH-DIGEST/           Debian's python3 and the libraries that engines link to (mmdebstrap)
    site-ENGINE-V-ARCH-DIGEST/  the engine's own wheels, exactly those of locks/ARCH/ENGINE-V.txt (uv)
    compiled/                   bytecode of all that the emulated interpreters have imported

uv is shown the emulated interpreter and asks it itself which wheels fit. Each folder is complete when it has
the file ".complete"; what an interruption left is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit import toolenv
from edgekit.build.progress import Progress
from edgekit.bundle.model import EngineRange
from edgekit.bundle.selection import in_range, numbers
from edgekit.errors import SystemFault
from edgekit.files import storage_fault, write_bytes

SUITE = "bookworm"
PYTHON = "usr/bin/python3.11"
_TIMEOUT_S = 900.0
_LOCKS = Path(__file__).parent / "locks"
_DEBIAN = {"aarch64": "arm64", "armv7l": "armhf"}
QEMU = {"aarch64": "qemu-aarch64-static", "armv7l": "qemu-arm-static", "x86_64": "qemu-x86_64-static"}
_PACKAGES = {
    "aarch64": ("python3", "libstdc++6", "libgomp1"),
    # No index has NumPy 1 as a wheel for 32-bit ARM, and tflite-runtime wants it; Debian has both parts. Nor
    # has one cffi, through which the agent's cryptography is called.
    "armv7l": ("python3", "libstdc++6", "libgomp1", "python3-numpy", "python3-cffi-backend"),
}
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Lock:
    """One engine at one version, for one architecture."""

    engine: str
    version: str
    architecture: str

    @property
    def path(self) -> Path:
        return _LOCKS / self.architecture / f"{self.engine}-{self.version}.txt"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:12]


@dataclass(frozen=True)
class Sysroot:
    root: Path
    site: Path
    lock: Lock


def lock_for(wanted: EngineRange, architecture: str) -> Lock | None:
    """The newest version in range that edgekit has wheels pinned for; None when there is none."""
    found = (lock for lock in locks(architecture) if lock.engine == wanted.name)
    fitting = (lock for lock in found if in_range(lock.version, wanted))
    return max(fitting, key=lambda lock: numbers(lock.version), default=None)


def qemu(architecture: str) -> str:
    """The emulator's program. Raises SystemFault naming the packages when something is not installed."""
    program = shutil.which(QEMU[architecture])
    if program is None:
        raise SystemFault(
            f"cannot emulate {architecture}: {QEMU[architecture]} is not installed",
            "apt-get install qemu-user-static mmdebstrap",
        )
    return program


@cache
def qemu_version(program: str) -> str:
    """Major and minor, e.g. "7.2"."""
    told = _call([program, "--version"], "ask qemu for its version")
    found = re.search(r"version (\d+\.\d+)", told)
    return found[1] if found else "unknown"


def locks(architecture: str) -> list[Lock]:
    """Everything that is pinned for an architecture."""
    names = sorted(path.stem for path in (_LOCKS / architecture).glob("*.txt"))
    pairs = (name.rpartition("-") for name in names)
    return [Lock(engine, version, architecture) for engine, _, version in pairs]


def ensure(lock: Lock, progress: Progress) -> Sysroot:
    """Both folders, made where they are missing. Raises SystemFault when they cannot be made."""
    root = system(lock.architecture, progress)
    return Sysroot(root, wheels(lock.path, lock.architecture, root, progress), lock)


def system(architecture: str, progress: Progress) -> Path:
    """Debian's part. Raises SystemFault when it cannot be made."""
    packages = " ".join(_PACKAGES[architecture])
    digest = hashlib.sha256(f"{SUITE} {packages}".encode()).hexdigest()[:12]
    root = _folder() / f"root-{architecture}-{digest}"
    with _made(root, progress, f"unpack a system for {architecture} (once)") as missing:
        if missing:
            _make_root(architecture, root)
    return root


def wheels(pins: Path, architecture: str, root: Path, progress: Progress) -> Path:
    """The wheels that `pins` names with their hashes, for the system in `root`. Raises SystemFault."""
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    site = _folder() / f"site-{pins.stem}-{architecture}-{digest}"
    with _made(site, progress, f"fetch {pins.stem} for {architecture} (once)") as missing:
        if missing:
            _make_site(pins, architecture, root, site)
    return site


def python(root: Path, architecture: str, prefix: Path, cpu: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment that start the emulated interpreter; `prefix` is what it takes for "/"."""
    command = [qemu(architecture), "-L", str(prefix), "-cpu", cpu, str(root / PYTHON)]
    # Compiling what an engine imports takes most of a short run.
    return command, {"PYTHONNOUSERSITE": "1", "PYTHONPYCACHEPREFIX": str(_folder() / "compiled")}


def code(package: Path) -> Path:
    """A folder with `package` alone, the same one each time: what is compiled is found by its path."""
    place = _folder() / f"code-{hashlib.sha256(bytes(package)).hexdigest()[:12]}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (place / package.name).symlink_to(package)
    except OSError as exc:
        raise storage_fault(place, exc) from None
    return place


def _folder() -> Path:
    chosen = os.environ.get("EDGEKIT_SYSROOTS", "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "sysroots"
    return Path(chosen) if chosen else cache


def _missing(place: Path) -> bool:
    return not (place / ".complete").exists()


@contextmanager
def _made(place: Path, progress: Progress, what: str) -> Iterator[bool]:
    """Two builds that need the same folder: one makes it, the other waits. Yields whether it is missing."""
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        if not _missing(place):
            yield False
            return
        with (place.parent / f"{place.name}.lock").open("w") as file, progress.step(what):
            fcntl.flock(file, fcntl.LOCK_EX)
            missing = _missing(place)
            if missing:
                shutil.rmtree(place, ignore_errors=True)  # what an interrupted attempt left
            yield missing
    except OSError as exc:
        raise storage_fault(Path(exc.filename or place), exc) from None


def _make_root(architecture: str, root: Path) -> None:
    program = shutil.which("mmdebstrap")
    if program is None:
        raise SystemFault(
            f"cannot unpack a system for {architecture}: mmdebstrap is not installed",
            "apt-get install qemu-user-static mmdebstrap",
        )
    included = ",".join(_PACKAGES[architecture])
    command = [program, "--quiet", f"--arch={_DEBIAN[architecture]}", "--variant=extract"]
    command += [f"--include={included}", SUITE, str(root), *_mirror()]
    _call(command, f"unpack a system for {architecture}")
    # Unpacked only: the scripts that would set up Debian's alternatives have not run.
    for name in ("blas/libblas.so.3", "lapack/liblapack.so.3"):
        for found in root.glob(f"usr/lib/*/{name}"):
            (found.parent.parent / found.name).symlink_to(Path(name))
    write_bytes(root / ".complete", b"")


def _mirror() -> list[str]:
    """The archive that this machine installs from, its main suite alone; empty: mmdebstrap's own choice."""
    address = os.environ.get("EDGEKIT_DEBIAN_MIRROR", "")
    for path in _SOURCES:
        if not address and path.is_file():
            found = re.search(
                r"^(?:URIs:|deb(?: \[[^\]]*\])?)\s+(\S+/debian/?)(?:\s|$)", path.read_text(), re.M
            )
            address = found[1] if found else ""
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return [f"deb {signed}{address} {SUITE} main"] if address else []


def _make_site(pins: Path, architecture: str, root: Path, site: Path) -> None:
    """uv runs the emulated interpreter once, to ask what it is; hence a program that is one file."""
    command, environment = python(root, architecture, root, _PLAIN[architecture])
    program = site.parent / f"{site.name}.python"
    variables = " ".join(f"{key}={value}" for key, value in environment.items())
    words = " ".join(f"'{word}'" for word in command)
    write_bytes(program, f'#!/bin/sh\nexec env {variables} {words} "$@"\n'.encode(), mode=0o755)
    install = [toolenv.find_uv(), "pip", "install", "--quiet", "--no-config", "--python", str(program)]
    install += ["--target", str(site), "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    _call([*install, "-r", str(pins)], f"fetch {pins.stem} for {architecture}")
    program.unlink()
    write_bytes(site / ".complete", b"")


_PLAIN = {"aarch64": "cortex-a53", "armv7l": "cortex-a7"}


def _call(command: Sequence[str], what: str) -> str:
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SystemFault(f"cannot {what}: {exc}") from None
    if done.returncode:
        words = " ".join(done.stderr.split())[-400:]
        hint = "this needs a network once; it works offline afterwards"
        raise SystemFault(f"cannot {what}: {words}", hint)
    return done.stdout
