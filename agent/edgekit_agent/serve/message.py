"""One HTTP request and one answer, without any IO."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from edgekit_agent.serve.peer import NOBODY, Peer

JSON = "application/json"
BINARY = "application/octet-stream"
_SPLIT_BYTES = 64 * 1024


@dataclass(slots=True)
class Memo:
    """What a protocol remembers of a head, for the next request that has the same."""

    again: Callable[[Request, Callable[[Response], None]], bool] | None = None
    """Answers such a request, or returns False: that one must go the whole way."""


@dataclass(slots=True)
class Request:
    method: bytes
    target: bytes
    """As in the request line: path and query."""
    headers: dict[bytes, bytes]
    """Lower-case names; of repeated fields the last counts."""
    body: bytes | bytearray
    """A bytearray where it was read apart: larger than serve/body.py's WORTH_BYTES."""
    keep_alive: bool
    received_ns: int
    """time.perf_counter_ns() when its last byte was read."""
    http_1_0: bool = False
    peer: Peer = NOBODY
    """Who sent it."""
    held: int = 0
    """Bytes of the body that count as buffered until it is answered."""
    memo: Memo | None = None
    """Shared by requests of one connection whose heads are the same bytes."""


@dataclass(slots=True)
class Response:
    status: int
    body: bytes = b""
    content_type: str = JSON
    json_size: int = 0
    """Inference-Header-Content-Length, when `body` is JSON followed by binary tensors."""
    extra: str = ""
    """More header fields, each ended by CRLF."""
    tail: tuple[memoryview, ...] = ()
    """Bytes after `body`, written without being copied together: large tensors."""

    def head(self, *, close: bool, keep_alive_wanted: bool = False) -> bytes:
        """Status line and header fields. `keep_alive_wanted`: an HTTP/1.0 client must be told."""
        size = len(self.body)
        if self.tail:
            size += sum(part.nbytes for part in self.tail)
        return _head(
            self.status, self.content_type, self.json_size, self.extra, size, close, keep_alive_wanted
        )

    def parts(self, head: bytes) -> tuple[bytes | memoryview, ...]:
        """What goes to the client: small parts in one, large ones without a copy."""
        if self.tail:
            return (head + self.body, *self.tail)
        return (head, self.body) if len(self.body) > _SPLIT_BYTES else (head + self.body,)


@lru_cache(256)
def _head(
    status: int, content_type: str, json_size: int, extra: str, size: int, close: bool, keep_alive: bool
) -> bytes:
    """Answers of one model have few different heads."""
    lines = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\nContent-Type: {content_type}\r\n"
    if json_size:
        lines += f"Inference-Header-Content-Length: {json_size}\r\n"
    if close:
        lines += "Connection: close\r\n"
    elif keep_alive:
        lines += "Connection: keep-alive\r\n"
    return f"{lines}{extra}Content-Length: {size}\r\n\r\n".encode()


_PHRASES = {status.value: status.phrase for status in HTTPStatus}


def ok(value: Any) -> Response:
    return Response(200, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())


def error(status: int, text: str, extra: str = "") -> Response:
    """{"error": text}, the shape that clients of Triton expect."""
    return Response(status, json.dumps({"error": one_line(text)}).encode(), extra=extra)


def one_line(text: str) -> str:
    """An error's text, which may repeat a name that a client has made up of line breaks and the like."""
    return text if text.isprintable() else "".join([char if char.isprintable() else "?" for char in text])
