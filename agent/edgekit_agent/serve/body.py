"""A large request body, read from the socket to the place where it stays.

Past the parser, which has seen the header: through it each byte is copied three times, here not at all.
Memory grows with what has come, never with what was announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from edgekit_agent.serve.known import Known
from edgekit_agent.serve.room import ALIGNED, Room, fresh

WORTH_BYTES = 64 * 1024
"""Bodies that lack more than this are worth reading apart."""
_FIRST_BYTES = 256 * 1024
_JSON_SIZE = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Before:
    """What came before a body that is read apart."""

    head: bytes
    """The header, if all of it is at hand."""
    known: Known | None
    """What it means, if it was seen before. Then `head` is at hand."""


class Owner(Protocol):
    """The connection, which has the transport's events again when something else comes."""

    @property
    def deaf(self) -> bool: ...
    def message_begins(self) -> None: ...
    def body_grows(self, size: int) -> bool: ...
    def body_read(self, body: bytearray, before: Before) -> None: ...
    def body_goes_on(self) -> None: ...
    def other_head(self, data: bytes) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Body(asyncio.BufferedProtocol):
    """Takes the transport's events for a body, and for the next ones while the same head comes before them;
    until `leave`."""

    def __init__(
        self, owner: Owner, transport: asyncio.Transport, size: int, before: Before, room: Room
    ) -> None:
        """`size`: of the body; `before`: what came before it."""
        self._owner, self._transport, self._room = owner, transport, room
        self._before = before
        self._size = size
        self._skew = 0  # see room.fresh
        self._filled = 0
        self._buffer = bytearray()  # of the body, or of the head before that
        self._in_head = False
        self._fresh = self._may_wait = True
        self.waits = False
        """For requests before it: nothing is read."""

    def begin(self, first: bytes, headers: Mapping[bytes, bytes]) -> None:
        """A body comes, of which `first` is there: less than `size` bytes."""
        self._skew = _skew(headers)
        reused = self._room.buffers.take(self._size, self._skew)
        self._buffer = reused or fresh(min(self._size, max(_FIRST_BYTES, 2 * len(first))), self._skew)
        self._buffer[: len(first)] = first
        self._filled = len(first)
        self._fresh, self._may_wait, self._in_head = reused is None, True, False

    def expect(self, known: Known) -> None:
        """Such a request may come again."""
        self._before = Before(known.head, known)
        self._size = known.size - len(known.head)
        self._buffer, self._filled, self._in_head = bytearray(len(known.head)), 0, True

    def leave(self, protocol: asyncio.BaseProtocol) -> None:
        """Let `protocol` have the transport's events."""
        self._room.ahead.forget(self._go_on)
        if self.waits:
            self.waits = False
            self._transport.resume_reading()
        self._buffer = bytearray(1)
        self._transport.set_protocol(protocol)

    # --- the transport's events

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        # Nobody holds a view of the buffer here, so it may grow.
        if self._filled == len(self._buffer):
            grown = fresh(min(self._size, 2 * self._filled), self._skew)
            grown[: self._filled] = self._buffer
            self._buffer = grown
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._in_head:
            self._head_came(nbytes)
            return
        self._filled += nbytes
        if not self._owner.body_grows(self._filled):
            return
        if self._filled == self._size:
            body, self._buffer = self._buffer, bytearray(1)
            if self._fresh:
                self._room.buffers.keep(body, self._skew)
            self._owner.body_read(body, self._before)
        elif self._may_wait and self._room.ahead.full:
            self._may_wait, self.waits = False, True
            self._transport.pause_reading()
            self._room.ahead.wait(self._go_on)

    def _head_came(self, nbytes: int) -> None:
        """Only as much as the expected head is long is read, so that what follows need not be moved."""
        if self._owner.deaf:
            return
        if self._filled == 0:
            self._owner.message_begins()
        self._filled += nbytes
        if not self._before.head.startswith(self._buffer[: self._filled]):
            self._owner.other_head(bytes(self._buffer[: self._filled]))
        elif self._before.known is not None and self._filled == len(self._before.head):
            self.begin(b"", self._before.known.headers)

    def _go_on(self) -> None:
        if self.waits:
            self.waits = False
            self._owner.body_goes_on()

    def eof_received(self) -> bool:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._room.ahead.forget(self._go_on)
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()


def _skew(headers: Mapping[bytes, bytes]) -> int:
    """For raw tensors after JSON, so that the first one lies where arrays may begin."""
    size = headers.get(_JSON_SIZE, b"")
    return -int(size) % ALIGNED if size.isdigit() and len(size) <= 12 else 0
