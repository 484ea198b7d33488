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

PREFIX_BYTES = 5
_ALIGNED = 16  # any data type's size divides it
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
    """Puts a stream's octets together to messages. Its memory is what was fed and not yet taken.

    A message that came in one piece is handed on without a copy. One in several ends at an aligned address,
    and with it its last tensor, which then need not be copied to be aligned.
    """

    __slots__ = ("_buffer", "_max", "_pos")

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._buffer: Buffer = b""
        self._pos = 0

    @property
    def empty(self) -> bool:
        return self._pos == len(self._buffer)

    def feed(self, chunk: Chunk) -> None:
        buffer = self._buffer
        if self._pos == len(buffer):
            self._buffer, self._pos = chunk, 0
        elif isinstance(buffer, bytearray):
            buffer += chunk
        else:
            rest = buffer[self._pos :]
            self._pos = -(PREFIX_BYTES + int.from_bytes(rest[1:PREFIX_BYTES], "big")) % _ALIGNED
            self._buffer = bytearray(self._pos)
            self._buffer += rest
            self._buffer += chunk

    def missing(self) -> int:
        """Octets that the message at hand still lacks; 0 when it is whole or has not begun.

        Raises RpcError when it is larger than allowed.
        """
        there = len(self._buffer) - self._pos
        if there < PREFIX_BYTES:
            return 0 if not there else PREFIX_BYTES - there
        return max(0, PREFIX_BYTES + self._size() - there)

    def take(self) -> tuple[bool, Buffer] | None:
        """The next message and whether it is compressed; None when none is whole. Raises RpcError."""
        pos = self._pos
        if len(self._buffer) - pos < PREFIX_BYTES:
            return None
        flag, size = self._buffer[pos], self._size()
        if flag > 1:
            raise RpcError(INVALID_ARGUMENT, f"a message with flag {flag}")
        end = pos + PREFIX_BYTES + size
        if len(self._buffer) < end:
            return None
        if pos < _ALIGNED and end == len(self._buffer) and isinstance(self._buffer, bytearray):
            message: Buffer = memoryview(self._buffer)[pos + PREFIX_BYTES :]
        elif isinstance(self._buffer, bytearray):
            message = bytes(memoryview(self._buffer)[pos + PREFIX_BYTES : end])
        else:
            message = self._buffer[pos + PREFIX_BYTES : end]
        self._pos = end
        if end == len(self._buffer):
            self._buffer, self._pos = b"", 0
        elif isinstance(self._buffer, bytearray) and end > len(self._buffer) // 2:
            self._buffer, self._pos = self._buffer[end:], 0
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
