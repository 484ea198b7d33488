"""Memory for large bodies: how many are read ahead of the engine, and buffers that are used again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from sys import getrefcount


class Ahead:
    """Complete large requests that are not answered. When there are enough of them to keep the engine busy,
    other bodies stay where they are, in the sockets: here they could only wait as well, and take memory.

    Whoever waits goes on in the order of asking, one for each answer, and all of them when nothing complete
    is left, so that a client that stalls in the middle of its body holds up nobody.
    """

    def __init__(self, most_bytes: int, least: Callable[[], int]) -> None:
        """Others wait from `most_bytes` on, but only where more than `least()` requests are complete."""
        self._most_bytes, self._least = most_bytes, least
        self._bytes = self._count = 0
        self._waiting: deque[Callable[[], None]] = deque()

    @property
    def full(self) -> bool:
        """Whether a body that is not complete should wait."""
        enough = self._bytes >= self._most_bytes and self._count > self._least()
        return enough or (bool(self._waiting) and self._count > 0)

    def add(self, size: int) -> None:
        """A request of `size` bytes is complete."""
        self._bytes += size
        self._count += 1

    def remove(self, size: int) -> None:
        """It is answered, or nobody waits for its answer."""
        self._bytes -= size
        self._count -= 1
        if self._waiting:
            self._waiting.popleft()()
        while self._waiting and not self._count:
            self._waiting.popleft()()

    def wait(self, go_on: Callable[[], None]) -> None:
        """Call `go_on` when it may be read on."""
        self._waiting.append(go_on)

    def forget(self, go_on: Callable[[], None]) -> None:
        """It does not wait any more."""
        if go_on in self._waiting:
            self._waiting.remove(go_on)


ALIGNED = 16
"""Bytes; a bytearray begins at a multiple of it."""


def fresh(size: int, skew: int) -> bytearray:
    """A buffer of `size` bytes that begins `skew` bytes after a multiple of ALIGNED."""
    buffer = bytearray(size + skew)
    del buffer[:skew]  # CPython moves the beginning, not the bytes
    return buffer


class Buffers:
    """Clients send bodies of the same size again and again. Fresh memory for each costs page faults and cold
    caches, more than reading the body into it.

    A buffer is free when nothing but this object refers to it: neither a request nor a view by an array.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: dict[tuple[int, int], list[bytearray]] = {}
        self._of_use = False

    def take(self, size: int, skew: int = 0) -> bytearray | None:
        """A free one of exactly this size and skew (see `fresh`); what it holds is to be overwritten."""
        self._of_use = True
        for buffer in self._kept.get((size, skew), ()):
            if getrefcount(buffer) == _FREE:
                return buffer
        return None

    def keep(self, buffer: bytearray, skew: int = 0) -> None:
        """Use it again when it is free, if there is room for it."""
        if self._bytes + len(buffer) > self._most_bytes:
            self._drop()
        if self._bytes + len(buffer) <= self._most_bytes:
            self._kept.setdefault((len(buffer), skew), []).append(buffer)
            self._bytes += len(buffer)

    def tend(self) -> None:
        """Called now and then: what nobody has used since the last time is given back."""
        if not self._of_use and self._kept:
            self._drop()
        self._of_use = False

    def _drop(self) -> None:
        """Forget those that are free."""
        for kind in list(self._kept):
            used = [buffer for buffer in self._kept[kind] if getrefcount(buffer) != _FREE]
            self._bytes -= kind[0] * (len(self._kept[kind]) - len(used))
            if used:
                self._kept[kind] = used
            else:
                del self._kept[kind]


@dataclass(frozen=True, slots=True)
class Room:
    """Of one server."""

    ahead: Ahead
    buffers: Buffers


def _free_count() -> int:
    """References that a buffer in a list has in the loops above; differs between versions of Python."""
    counts = [getrefcount(buffer) for buffer in [bytearray(1)]]
    return counts[0]


_FREE = _free_count()
