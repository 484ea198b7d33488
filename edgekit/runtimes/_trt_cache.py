"""Engines that this device has built, so that it builds them once.

An entry is a folder named by everything the engine depends on. `manifest.json` is written last and holds the
digests of the other files: an entry without it, or with a byte changed, is thrown away and built anew.

An engine holds weights. By default entries lie in memory (/dev/shm), survive a restart of the agent and are
gone with the power; `cache = "disk"` puts them on a disk, which an encrypted profile does not allow.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import codec
from edgekit.errors import EngineError
from edgekit.files import write_bytes
from edgekit.runtimes._base import ENGINE_CACHE

KINDS = ("memory", "disk", "none")
KEEP = 4
"""Newest entries that stay: the current and the previous release, on two providers."""
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    made_from: dict[str, str]
    sha256: dict[str, str]


@dataclass(frozen=True)
class Entry:
    """One engine's folder, locked while it is in hand."""

    folder: Path
    made_from: dict[str, str]
    intact: bool
    """Complete and undamaged; otherwise the folder is empty."""

    def seal(self) -> None:
        """What lies in the folder is the engine. Raises SystemFault when it cannot be written."""
        manifest = Manifest(self.made_from, _digests(self.folder))
        write_bytes(self.folder / _MANIFEST, codec.to_json(manifest), mode=0o600)


def key(made_from: Mapping[str, str]) -> str:
    """An entry's name: equal for equal model, plan, GPU, driver and library versions."""
    return hashlib.sha256(codec.to_json(dict(made_from))).hexdigest()[:40]


def root(kind: str) -> Path:
    """The folder of all entries, made private to this user. Raises EngineError when it cannot be."""
    if kind == "memory":
        folder = Path("/dev/shm") / f"edgekit-{os.getuid()}" / "engines"  # noqa: S108 - checked below
    else:
        named = os.environ.get(ENGINE_CACHE)
        folder = Path(named) if named else Path.home() / ".cache" / "edgekit" / "engines"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        for one in (folder.parent, folder) if kind == "memory" else (folder,):
            seen = one.lstat()
            private = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077
            if not private:
                raise EngineError(f"the engine cache {one} is not this user's alone", f"chmod 700 {one}")
    except OSError as exc:
        raise EngineError(f"the engine cache {folder} cannot be used: {exc.strerror}") from None
    return folder


@contextmanager
def entry(folder: Path, made_from: Mapping[str, str]) -> Iterator[Entry]:
    """The entry for `made_from` below `folder`, this process's alone until the end of the block."""
    name = key(made_from)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = folder / name
        intact = _intact(place, dict(made_from))
        if not intact:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(mode=0o700)
        os.utime(place)
        _prune(folder)
        yield Entry(place, dict(made_from), intact)


def _intact(place: Path, made_from: dict[str, str]) -> bool:
    try:
        manifest = codec.from_json(
            Manifest, (place / _MANIFEST).read_bytes(), what="engine", error=EngineError
        )
    except (OSError, EngineError):
        return False
    return manifest.made_from == made_from and manifest.sha256 == _digests(place)


def _digests(place: Path) -> dict[str, str]:
    files = sorted(path for path in place.rglob("*") if path.is_file() and path.name != _MANIFEST)
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _prune(folder: Path) -> None:
    entries = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("timing")]
    newest = sorted(entries, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for old in newest[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
