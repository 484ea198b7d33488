"""Make a tool environment: `uv venv`, then exactly what its lock names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

from edgekit.errors import EngineMissing
from edgekit.files import storage_fault, write_bytes

OWN = ""
"""Names edgekit's own interpreter: for scripts that need isolation but nothing more than NumPy."""
_LOCKS = Path(__file__).parent / "locks"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
_FLAGS = re.compile(r"^# edgekit: (--[a-z-]+(?: [\w.-]+)?)$", re.MULTILINE)
"""Flags for uv that one lock needs, e.g. "# edgekit: --python-version 3.12"."""
_THEN = re.compile(r"^# edgekit: then$", re.MULTILINE)
"""Begins a second installation into the same environment, with flags of its own."""
_INSTALL_TIMEOUT_S = 1800.0


class Steps(Protocol):
    """What tells a person that something slow goes on; `edgekit.build.progress` has three."""

    def step(self, text: str) -> AbstractContextManager[None]: ...


def names() -> list[str]:
    """Every tool environment."""
    return sorted(path.stem for path in _LOCKS.glob("*.txt"))


def versions(env: str, packages: Iterable[str]) -> dict[str, str]:
    """Versions that the lock pins: what `build` results depend on; the environment need not exist.

    Raises EngineMissing for a package that the lock does not name.
    """
    pins = {_canonical(name): version for name, version in _PIN.findall(_lock(env))}
    try:
        return {package: pins[_canonical(package)] for package in packages}
    except KeyError as exc:
        raise EngineMissing(f"the tool environment {env!r} has no {exc.args[0]}") from None


def folder(env: str) -> Path:
    """Where the environment lies or will lie: under $EDGEKIT_TOOLENVS or the user's cache."""
    chosen = os.environ.get("EDGEKIT_TOOLENVS", "")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "envs"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(f"{python}\n{_lock(env)}".encode()).hexdigest()[:12]
    return (Path(chosen) if chosen else cache) / f"{env}-{digest}"


def ensure(env: str, progress: Steps | None = None) -> Path:
    """The environment's interpreter; made first when it is not there yet.

    Raises EngineMissing when it cannot be made (offline, no uv), SystemFault on a full disk.
    """
    if env == OWN:
        return Path(sys.executable)
    place = folder(env)
    python = place / "bin" / "python"
    if (place / ".complete").exists():
        return python
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _only_one(place):
            if not (place / ".complete").exists():
                with progress.step(f"make tool environment {env} (once)") if progress else nullcontext():
                    _make(env, place, python)
    except OSError as exc:
        raise storage_fault(place, exc) from None
    return python


def _lock(env: str) -> str:
    path = _LOCKS / f"{env}.txt"
    if not path.is_file():
        raise EngineMissing(f"no tool environment is called {env!r}", f"known: {', '.join(names())}")
    return path.read_text()


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@contextmanager
def _only_one(place: Path) -> Iterator[None]:
    """Two builds that need the same environment: one makes it, the other waits."""
    with place.with_suffix(".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(env: str, place: Path, python: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)  # what an interrupted attempt left
    uv = find_uv()
    _call([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(place)], env)
    command = [uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes"]
    for links in _find_links():
        command += ["--find-links", links]
    for pins in _THEN.split(_lock(env)):
        flags = [word for flag in _FLAGS.findall(pins) for word in flag.split()]
        _call([*command, *flags, "-r", "-"], env, pins)
    write_bytes(place / ".complete", b"")


def find_uv() -> str:
    """uv's program. Raises EngineMissing."""
    try:
        from uv import find_uv_bin
    except ImportError:
        found = shutil.which("uv")
        if found is None:
            hint = "pip install 'edgekit-toolkit[build]'"
            raise EngineMissing("cannot make tool environments: uv is not installed", hint) from None
        return found
    return str(find_uv_bin())


def _find_links() -> list[str]:
    """Folders of wheels that pip would look into; uv does not read pip's settings."""
    words = f"{os.environ.get('PIP_FIND_LINKS', '')} {os.environ.get('EDGEKIT_WHEELS', '')}".split()
    return list(dict.fromkeys(words))


def _call(command: list[str], env: str, text: str = "") -> None:
    """`text` is what the command reads from its standard input."""
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise EngineMissing(f"cannot make the tool environment {env}: {exc}") from None
    if done.returncode:
        words = " ".join(done.stderr.split())[-400:]
        raise EngineMissing(
            f"cannot make the tool environment {env}: {words}",
            f"run `edgekit setup {env}` once where there is a network; it works offline afterwards",
        )
