"""Triton's system shared memory: regions under /dev/shm that clients register and name in their requests.

The kernel says which user is at the other end of a connection (peer.py). That user must own the memory
object, and sees its own regions only: otherwise anybody on the machine could have the agent, which may be
root, read or write the memory of others.

Tensors are copied with pread and pwrite, not mapped. A mapping would save one copy, but a client that
shortens its object would kill the serving process (SIGBUS), and could change a tensor after it was checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import InputError
from edgekit_agent.serve.peer import UNKNOWN, Peer

FOLDER = Path("/dev/shm")  # noqa: S108 - where shm_open(3) has its objects
MAX_REGIONS = 256
MAX_PER_USER = 64
_MAX_NAME = 255
_MAX_SIZE = 1 << 40
_SHORT = 120


class _Object:
    """An open memory object; closed when the last region and the last request that uses it are gone."""

    __slots__ = ("fd", "writable")

    def __init__(self, path: Path) -> None:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self.fd, self.writable = -1, True
        try:
            self.fd = os.open(path, os.O_RDWR | flags)
        except PermissionError:
            self.fd, self.writable = os.open(path, os.O_RDONLY | flags), False

    def about(self) -> os.stat_result:
        return os.fstat(self.fd)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Region:
    name: str
    key: str
    offset: int
    size: int
    object: _Object
    peer: Peer
    """Whose connection registered it."""

    def document(self) -> dict[str, str | int]:
        """As Triton's status shows it."""
        return {"name": self.name, "key": self.key, "offset": self.offset, "byte_size": self.size}


@dataclass(frozen=True, slots=True)
class Span:
    """A place for a tensor, as a request names it."""

    region: str
    offset: int
    size: int


class Regions:
    """All registered regions. Changed on the event loop only, read by any thread."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._folder = folder
        self._regions: dict[tuple[int, str], Region] = {}

    def register(self, peer: Peer, name: str, key: str, offset: int, size: int) -> None:
        """Name `size` bytes from `offset` of the memory object `key`. Raises InputError."""
        uid = _user(peer)
        if not 0 < len(name) <= _MAX_NAME:
            raise InputError(f"the name of a shared memory region has 1 to {_MAX_NAME} characters")
        if (uid, name) in self._regions:
            raise InputError(f"shared memory region '{name[:_SHORT]}' already in manager")
        if self._full(uid):
            self._forget(lambda region: not region.peer.open or region.object.about().st_size == 0)
            if self._full(uid):
                raise InputError("too many shared memory regions", "unregister some")
        opened = self._open(uid, key, offset, size)
        self._regions[uid, name] = Region(name, key, offset, size, opened, peer)
        peer.at_close.add(self._left)

    def unregister(self, peer: Peer, name: str = "") -> None:
        """Forget a region, or all of this user; what does not exist is no error. Raises InputError."""
        uid = _user(peer)
        for of, other in list(self._regions):
            if of == uid and name in ("", other):
                del self._regions[of, other]

    def status(self, peer: Peer, name: str = "") -> list[dict[str, str | int]]:
        """One region, or all of this user. Raises InputError for one that it does not have."""
        uid = _user(peer)
        found = [
            r.document() for (of, other), r in self._regions.items() if of == uid and name in ("", other)
        ]
        if name and not found:
            raise InputError(f"Unable to find system shared memory region: '{name[:_SHORT]}'")
        return found

    def read(self, peer: Peer, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` of a region. Raises InputError."""
        region = self._span(peer, name, offset, size)
        data = os.pread(region.object.fd, size, region.offset + offset)
        if len(data) != size:
            raise InputError(f"shared memory region '{name[:_SHORT]}' has become shorter")
        return data

    def write(self, peer: Peer, name: str, offset: int, size: int, data: bytes | memoryview) -> None:
        """`data`, which needs no more than `size` bytes, to `offset` of a region. Raises InputError."""
        region = self._span(peer, name, offset, size)
        if len(data) > size:
            raise InputError(
                f"shared memory size specified with the request for an output ({size} bytes) should be at "
                f"least {len(data)} bytes to hold the results"
            )
        if not region.object.writable:
            raise InputError(f"shared memory region '{name[:_SHORT]}' may only be read by the agent")
        # Not beyond the object's end: pwrite would make it longer.
        if region.object.about().st_size < region.offset + offset + len(data):
            raise InputError(f"shared memory region '{name[:_SHORT]}' has become shorter")
        if os.pwrite(region.object.fd, data, region.offset + offset) != len(data):
            raise InputError(f"shared memory region '{name[:_SHORT]}': the system has no memory for it")

    def check(self, peer: Peer, name: str, offset: int, size: int) -> None:
        """Raise InputError unless `size` bytes from `offset` are in a region of this user."""
        self._span(peer, name, offset, size)

    def _span(self, peer: Peer, name: str, offset: int, size: int) -> Region:
        region = self._regions.get((_user(peer), name))
        if region is None:
            raise InputError(f"Unable to find shared memory region: '{name[:_SHORT]}'", "register it first")
        if offset < 0 or size < 0 or offset + size > region.size:
            raise InputError(
                f"Invalid offset + byte size for shared memory region: '{name[:_SHORT]}' "
                f"({offset} + {size} of {region.size} bytes)"
            )
        return region

    def _open(self, uid: int, key: str, offset: int, size: int) -> _Object:
        plain = key.removeprefix("/")
        if plain in ("", ".", "..") or "/" in plain or "\0" in plain or len(plain) > _MAX_NAME:
            raise InputError(f"'{key[:_SHORT]}' is no name of a shared memory object", "as for shm_open(3)")
        if not (0 <= offset <= _MAX_SIZE and 0 < size <= _MAX_SIZE):
            raise InputError("offset and byte_size of a shared memory region must be sizes")
        try:
            opened = _Object(self._folder / plain)
        except (OSError, ValueError):
            raise InputError(f"Unable to open shared memory region: '{key[:_SHORT]}'") from None
        about = opened.about()
        if not stat.S_ISREG(about.st_mode) or uid not in (about.st_uid, 0):
            # As if it did not exist: what other users have is not told.
            raise InputError(f"Unable to open shared memory region: '{key[:_SHORT]}'")
        if offset + size > about.st_size:
            raise InputError(f"'{key[:_SHORT]}' has {about.st_size} bytes, {offset} + {size} are wanted")
        return opened

    def _full(self, uid: int) -> bool:
        return len(self._regions) >= MAX_REGIONS or sum(of == uid for of, _ in self._regions) >= MAX_PER_USER

    def _left(self, peer: Peer) -> None:
        """Its client may have died, and an object without a name would be kept in memory by us alone."""
        self._forget(lambda region: region.peer is peer)

    def _forget(self, which: Callable[[Region], bool]) -> None:
        """Drop regions whose objects were unlinked."""
        for key, region in list(self._regions.items()):
            if region.object.about().st_nlink == 0 and which(region):
                del self._regions[key]


@dataclass(slots=True)
class Access:
    """One request's access to the regions of its client."""

    regions: Regions
    peer: Peer
    left_bytes: int
    """What may still be read: shared memory is no way around the limit of a body."""

    def read(self, span: Span) -> bytes:
        """Raises InputError."""
        if span.size > self.left_bytes:
            raise InputError(
                f"the inputs in shared memory have more than the {self.left_bytes} bytes allowed"
            )
        self.left_bytes -= span.size
        return self.regions.read(self.peer, span.region, span.offset, span.size)

    def check(self, span: Span) -> None:
        """Raise InputError unless there is such a place; before an answer is made for it."""
        self.regions.check(self.peer, span.region, span.offset, span.size)

    def write(self, span: Span, data: bytes | memoryview) -> None:
        """Raises InputError."""
        self.regions.write(self.peer, span.region, span.offset, span.size, data)


def _user(peer: Peer) -> int:
    if not peer.local:
        raise InputError("shared memory needs a client on this machine, on loopback or the Unix socket")
    uid = peer.uid()
    if uid == UNKNOWN:
        raise InputError("shared memory needs a client whose user the kernel can tell")
    return uid
