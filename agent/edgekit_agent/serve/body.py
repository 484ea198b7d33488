"""A large request body, read from the socket to the place where it stays.

Past the parser, which has seen the header: through it each byte is copied three times, here not at all.
Memory grows with what has come, never with what was announced.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from edgekit_agent.serve.known import Known

WORTH_BYTES = 64 * 1024
"""Bodies that lack more than this are worth reading apart."""
_FIRST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Before:
    """What came before a body that is read apart."""

    head: bytes
    """The header, if all of it is at hand."""
    known: Known | None
    """What it means, if it was seen before."""


class Owner(Protocol):
    """The connection, which has the transport's events again when the body is complete."""

    def body_grows(self, size: int) -> bool: ...
    def body_read(self, body: bytearray) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def eof_received(self) -> bool: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Body(asyncio.BufferedProtocol):
    """Takes the transport's events for as long as the body comes in."""

    def __init__(self, owner: Owner, first: bytes, size: int) -> None:
        """`first`: what has come already, less than `size` bytes."""
        self._owner = owner
        self._size = size
        self._filled = len(first)
        self._buffer = bytearray(min(size, max(_FIRST_BYTES, 2 * len(first))))
        self._buffer[: len(first)] = first

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        # Nobody holds a view of the buffer here, so it may grow.
        if self._filled == len(self._buffer):
            self._buffer.extend(bytes(min(self._size - self._filled, self._filled)))
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._owner.body_grows(self._filled) and self._filled == self._size:
            self._owner.body_read(self._buffer)

    def eof_received(self) -> bool:
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
