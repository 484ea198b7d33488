"""Length-prefixed messages of gRPC, their compression, and timeouts (grpc doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import zlib

from edgekit.errors import InputError
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.status import (
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    RpcError,
)
from edgekit_agent.serve.room import ALIGNED, Buffers

PREFIX_BYTES = 5
_WORTH_BYTES = 64 * 1024  # buffers of so many octets are worth keeping
ENCODINGS = (b"identity", b"gzip", b"deflate")
_UNITS = {
    b"H": 3600 * 10**9,
    b"M": 60 * 10**9,
    b"S": 10**9,
    b"m": 10**6,
    b"u": 10**3,
    b"n": 1,
}
Buffer = bytes | bytearray | memoryview


class DamagedError(InputError):
    """A compressed message cannot be unpacked."""


class TooLargeError(InputError):
    """A message is larger than allowed when it is unpacked."""

    http_status = 413


class Messages:
    """Puts a stream's octets together to messages. Its memory is at most twice what was fed and not taken, or
    a buffer of `buffers`, which is in memory anyway.

    A message that came in one piece is handed on without a copy. One in several ends at an aligned address,
    and with it its last tensor, which then need not be copied to be aligned.
    """

    __slots__ = ("_buffer", "_buffers", "_end", "_fresh", "_max", "_own", "_pos")

    def __init__(self, max_bytes: int, buffers: Buffers | None = None) -> None:
        """`buffers`: for large messages, of sizes that come again."""
        self._max = max_bytes
        self._buffers = buffers
        self._buffer: Buffer = b""
        self._pos = self._end = 0  # what is not taken lies between them
        self._own = self._fresh = False  # _buffer is ours to write to; ... and not one of _buffers

    @property
    def empty(self) -> bool:
        return self._pos == self._end

    def feed(self, chunk: Chunk) -> None:
        if self._pos == self._end:
            self._buffer, self._pos, self._end, self._own = chunk, 0, len(chunk), False
            return
        end = self._end + len(chunk)
        if not self._own or end > len(self._buffer):
            self._move(len(chunk))
            end = self._end + len(chunk)
        memoryview(self._buffer)[self._end : end] = chunk
        self._end = end

    def _move(self, more: int) -> None:
        """To a buffer that has room for `more` octets, and for the whole message when enough has come."""
        rest = memoryview(self._buffer)[self._pos : self._end]
        size = PREFIX_BYTES + int.from_bytes(rest[1:PREFIX_BYTES], "big")
        there = len(rest) + more
        pos = -size % ALIGNED
        made, self._fresh = None, False
        if there <= size <= 4 * there and size >= _WORTH_BYTES and self._buffers is not None:
            made = self._buffers.take(pos + size)
        if made is None:
            room = min(size, 2 * there) if there <= size else 2 * there
            made, self._fresh = bytearray(pos + room), size == room >= _WORTH_BYTES
        self._buffer = made
        self._buffer[pos : pos + len(rest)] = rest
        self._pos, self._end, self._own = pos, pos + len(rest), True

    def missing(self) -> int:
        """Octets that the message at hand still lacks; 0 when it is whole or has not begun.

        Raises RpcError when it is larger than allowed.
        """
        there = self._end - self._pos
        if there < PREFIX_BYTES:
            return 0 if not there else PREFIX_BYTES - there
        return max(0, PREFIX_BYTES + self._size() - there)

    def take(self) -> tuple[bool, Buffer] | None:
        """The next message and whether it is compressed; None when none is whole. Raises RpcError."""
        pos = self._pos
        if self._end - pos < PREFIX_BYTES:
            return None
        flag, size = self._buffer[pos], self._size()
        if flag > 1:
            raise RpcError(INVALID_ARGUMENT, f"a message with flag {flag}")
        end = pos + PREFIX_BYTES + size
        if self._end < end:
            return None
        if not self._own:
            message: Buffer = self._buffer[pos + PREFIX_BYTES : end]
        elif pos < ALIGNED and end == len(self._buffer):
            message = memoryview(self._buffer)[pos + PREFIX_BYTES :]
            if self._fresh and self._buffers is not None and isinstance(self._buffer, bytearray):
                self._buffers.keep(self._buffer)
        else:
            message = bytes(memoryview(self._buffer)[pos + PREFIX_BYTES : end])
        self._pos = end
        if end == self._end:
            self._buffer, self._pos, self._end, self._own = b"", 0, 0, False
        elif self._own and end > len(self._buffer) // 2:
            self._buffer = self._buffer[end : self._end]
            self._pos, self._end = 0, len(self._buffer)
        return flag == 1, message

    def _size(self) -> int:
        start = self._pos + 1
        size = int.from_bytes(self._buffer[start : start + 4], "big")
        if size > self._max:
            raise RpcError(
                RESOURCE_EXHAUSTED, f"a message of {size} bytes is larger than the {self._max} allowed"
            )
        return size


class Compressed:
    """A message that came compressed. Unpacked only as far as asked: it may be a bomb."""

    __slots__ = ("_data", "_encoding")

    def __init__(self, data: Buffer, encoding: bytes) -> None:
        """Raises RpcError for an encoding that is not known here."""
        check_encoding(encoding)
        if encoding == b"identity":
            raise RpcError(INTERNAL, "a message is compressed and grpc-encoding does not say how")
        self._data = data
        self._encoding = encoding

    def head(self, size: int) -> bytes:
        """Up to `size` octets from the beginning. Raises DamagedError."""
        return self._unpack(size)[0]

    def whole(self, max_bytes: int) -> bytes:
        """All of it. Raises TooLargeError, DamagedError."""
        data, complete = self._unpack(max_bytes + 1)
        if len(data) > max_bytes:
            raise TooLargeError(f"the message unpacks to more than the {max_bytes} bytes allowed")
        if not complete:
            raise DamagedError("the compressed message is cut short or has bytes after its end")
        return data

    def _unpack(self, size: int) -> tuple[bytes, bool]:
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 16 if self._encoding == b"gzip" else zlib.MAX_WBITS)
        try:
            data = unpack.decompress(self._data, size)
        except zlib.error as exc:
            raise DamagedError(f"the compressed message is damaged: {exc}") from None
        return data, unpack.eof and not unpack.unused_data


def check_encoding(encoding: bytes) -> None:
    """Raises RpcError."""
    if encoding not in ENCODINGS:
        known = b", ".join(ENCODINGS).decode()
        raise RpcError(UNIMPLEMENTED, f"grpc-encoding {encoding[:40]!r} is not supported, known: {known}")


def timeout_ns(value: bytes | None) -> int:
    """grpc-timeout in nanoseconds, 0 when there is none. Raises RpcError."""
    if value is None:
        return 0
    number, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not number.isdigit() or len(number) > 8:
        raise RpcError(INVALID_ARGUMENT, f"grpc-timeout {value[:40]!r} is malformed")
    return max(1, int(number) * unit)


def prefix(size: int) -> bytes:
    """What comes before an uncompressed message of `size` octets."""
    return b"\0" + size.to_bytes(4, "big")
