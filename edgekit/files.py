"""Atomic writes: a reader sees the old file or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from edgekit.errors import SystemFault


@contextmanager
def atomic_write(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Write to a temporary file beside `path`, fsync, rename, fsync the folder.

    Raises SystemFault (full disk, no such folder, not allowed); then `path` is untouched.
    """
    temporary = ""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = ""
        sync_folder(path.parent)
    except OSError as exc:
        raise storage_fault(path, exc) from None
    finally:
        if temporary:
            with suppress(OSError):
                Path(temporary).unlink()


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Atomically replace `path` with `data`."""
    with atomic_write(path, mode=mode) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_fault(path: Path, exc: OSError) -> SystemFault:
    """The typed error for a failed write to `path`."""
    hints = {
        errno.ENOSPC: "free some space and run the command again; nothing was written",
        errno.EDQUOT: "free some space and run the command again; nothing was written",
        errno.ENOENT: "create the folder first",
        errno.EACCES: "choose a folder that this user may write to",
        errno.EROFS: "choose a folder that can be written to",
    }
    return SystemFault(f"cannot write {path}: {exc.strerror or exc}", hints.get(exc.errno or 0, ""))
