"""Large tensors beside the socket: memory objects that an agent on this machine reads by itself.

Triton's system shared memory. The name of an object is removed as soon as the agent has opened it, so that
nothing stays behind in /dev/shm; its memory goes back when the client is closed or ends.
"""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) has its objects
FROM_BYTES = 256 * 1024
"""Smaller requests gain nothing."""
MOST_BYTES = 64 << 20
_MOST_REGIONS = 8


class Region:
    """A memory object, used by one request at a time."""

    def __init__(self, size: int) -> None:
        """Raises OSError: no such folder, no room."""
        self.name = f"edgekit-client-{os.getpid()}-{secrets.token_hex(8)}"
        self.key = f"/{self.name}"
        self.size = size
        self._path = FOLDER / self.name
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        self.close = weakref.finalize(self, _give_back, self._fd, os.getpid())
        """Give the memory back; also called when the process ends."""
        try:
            os.posix_fallocate(self._fd, 0, size)  # a full /dev/shm says so here, and not in the middle
        except BaseException:
            self.unlink()
            self.close()
            raise

    def unlink(self) -> None:
        self._path.unlink(missing_ok=True)

    def fill(self, parts: Sequence[bytes | memoryview]) -> list[int]:
        """Write the parts one after the other, aligned; their offsets."""
        offsets = []
        at = 0
        for part in parts:
            offsets.append(at)
            view = memoryview(part)
            while view:
                count = os.pwrite(self._fd, view, at)
                view, at = view[count:], at + count
            at = _aligned(at)
        return offsets


class Regions:
    """Those that the agent knows and no request uses. Safe for threads."""

    def __init__(self) -> None:
        self._free: list[Region] = []
        self._pid = os.getpid()

    def take(self, size: int) -> Region | None:
        """One of at least `size` bytes; None when there is none."""
        if self._pid != os.getpid():
            self._free, self._pid = [], os.getpid()  # after a fork they are the parent's
        for region in list(self._free):
            if region.size >= size:
                try:
                    self._free.remove(region)
                except ValueError:  # another thread was faster
                    continue
                return region
        return None

    def give(self, region: Region) -> None:
        if len(self._free) < _MOST_REGIONS:
            self._free.append(region)
        else:
            region.close()

    def clear(self) -> None:
        while self._free:
            self._free.pop().close()


def rounded(sizes: Sequence[int]) -> int:
    """The size of a region for parts of these sizes: a power of two, so that the next request fits too."""
    total = sum(map(_aligned, sizes))
    return 1 << max(total - 1, 1).bit_length()


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


def _give_back(fd: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child shares the object with its parent
        os.ftruncate(fd, 0)
    os.close(fd)
