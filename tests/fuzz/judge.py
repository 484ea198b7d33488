"""What an answer must be, whatever was asked. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.errors import H2Error
from tests.fuzz import below
from tests.fuzz.case import Case, Wire

FINE = frozenset((200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 429, 431, 501, 504, 505))
"""5xx among them: a transfer encoding or version that is not supported, a request's own timeout."""
GRPC_FINE = frozenset((0, 1, 3, 4, 5, 7, 8, 12, 16))
BROKEN_CALL = re.compile(
    r"a message is compressed and grpc-encoding does not say how"  # grpc doc/compression.md asks for INTERNAL
)
_SIZE = re.compile(rb"\r\ncontent-length: ?(\d+)\r\n")
_HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [ -~]*\r\n")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    head: bytes
    """In lower case, with its last CRLF."""
    body: bytes

    @property
    def closes(self) -> bool:
        return b"\r\nconnection: close\r\n" in self.head


class NoHttp(Exception):
    """What came is not HTTP."""


def answer(data: bytes, *, bare: bool = False) -> tuple[Answer, int] | None:
    """The answer that `data` begins with, and its length; None when more has to come. Raises NoHttp."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > 65536 or not b"HTTP/1.1 "[: len(data)] == data[:9]:
            raise NoHttp(repr(data[:200]))
        return None
    match = _HEAD.match(data)
    if match is None:
        raise NoHttp(repr(data[:200]))
    status, head = int(match[1]), data[: end + 2].lower()
    if status == 100:
        return Answer(status, head, b""), end + 4
    sizes = _SIZE.findall(head)
    if len(sizes) != 1:
        raise NoHttp(f"{len(sizes)} lengths in {head[:300]!r}")
    stop = end + 4 + (0 if bare else int(sizes[0]))
    return (Answer(status, head, data[end + 4 : stop]), stop) if len(data) >= stop else None


def of_http(case: Case, found: Answer) -> str:
    """What is wrong with an answer; empty when nothing is."""
    status, head, body = found.status, found.head, found.body
    if status not in FINE and not (status == 503 and b"\r\nretry-after: " in head):
        return f"status {status}: {body[:300]!r}"
    if case.denied and status != case.denied:
        return f"status {status} instead of {case.denied}: {body[:300]!r}"
    if case.denied == 401 and b"\r\nwww-authenticate: bearer" not in head:
        return "401 without WWW-Authenticate"
    if status == 405 and b"\r\nallow: " not in head and b"connect" not in case.data[:7].lower():
        return "405 without Allow"
    if case.bare:
        return ""
    if status >= 400:
        return _error(body)
    if b"\r\ncontent-type: application/json\r\n" in head and b"content-encoding: " not in head:
        size = re.search(rb"\r\ninference-header-content-length: (\d+)\r\n", head)
        if body or size:
            return _json(body[: int(size[1])] if size else body)
    return ""


def of_records(data: bytes) -> tuple[str, str]:
    """What became of bytes that are no TLS, by what came back in the clear; and what is wrong with that."""
    found = below.records(data)
    for one in found:
        if not below.CHANGE <= one[0] <= below.DATA or one[1:2] not in (b"\x03", b""):
            return "wrong", f"no TLS: {data[:200]!r}"
    if found and found[-1][0] == below.ALERT and len(found[-1]) == 7:
        return f"alert {found[-1][6]}", ""
    return ("handshake" if found else "closed"), ""


def _error(body: bytes) -> str:
    """One line, in Triton's or TorchServe's shape."""
    try:
        document = json.loads(body)
    except ValueError:
        return f"an error that is not JSON: {body[:300]!r}"
    if isinstance(document, dict):
        text = document.get("error", document.get("message"))
        if isinstance(text, str) and text and "\n" not in text and len(text) < 2000:
            return ""
    return f"an error without its text in one line: {body[:300]!r}"


def _json(body: bytes) -> str:
    try:
        json.loads(body, parse_constant=_refuse)
    except ValueError as exc:
        return f"an answer that is not JSON ({exc}): {body[:300]!r}"
    return ""


def _refuse(name: str) -> Any:
    raise ValueError(name)


# --- HTTP/2


@dataclass(slots=True)
class Stream:
    """What came for one stream."""

    fields: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int = -1
    """RST_STREAM's code."""

    @property
    def done(self) -> bool:
        return self.ended or self.reset >= 0

    @property
    def status(self) -> str:
        """For counting."""
        if self.reset >= 0 and not self.ended:
            return "reset"
        code = self.fields.get(b"grpc-status")
        return f"grpc {code.decode()}" if code is not None else self.fields.get(b":status", b"?").decode()


class Two:
    """The client's side of a connection, as far as answers go."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.away: tuple[int, str] | None = None
        """GOAWAY's code and text."""
        self.owed: list[bytes] = []
        """Frames that we have to send."""
        self.octets = 0
        self._decoder = hpack.Decoder(1 << 16, 200)
        self._rest = b""
        self._first = True

    def feed(self, data: bytes) -> Iterator[int]:
        """Numbers of streams that are done now. Raises NoHttp."""
        data = self._rest + data if self._rest else data
        pos = 0
        while len(data) - pos >= frames.HEAD_BYTES:
            upper, lower, kind, flags, number = frames.HEAD.unpack_from(data, pos)
            end = pos + frames.HEAD_BYTES + (upper << 8 | lower)
            if end - pos > 9 + frames.DEFAULT_FRAME and end - pos > 9 + (1 << 24):
                raise NoHttp("a frame that is too large")
            if len(data) < end:
                break
            if self._first and kind != frames.SETTINGS:
                raise NoHttp(f"begins with {data[:40]!r}")
            self._first = False
            if self._take(kind, flags, number, data[pos + 9 : end]):
                yield number
            pos = end
        self._rest = data[pos:]

    @property
    def whole(self) -> bool:
        return not self._rest

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> bool:
        stream = self.streams.get(number)
        if kind in (frames.HEADERS, frames.DATA) and stream is None:
            stream = self.streams[number] = Stream()
        if kind == frames.DATA and stream is not None:
            stream.body += payload
            self.octets += len(payload)
        elif kind == frames.HEADERS and stream is not None:
            if not flags & frames.END_HEADERS or stream.ended:
                raise NoHttp(f"HEADERS with flags {flags} after {stream}")
            try:
                stream.fields |= dict(self._decoder.decode(payload) or [])
            except H2Error as exc:
                raise NoHttp(str(exc)) from None
        elif kind == frames.RST_STREAM:
            stream = self.streams.setdefault(number, Stream())
            stream.reset = int.from_bytes(payload, "big")
            return True
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            self.owed.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        elif kind == frames.PING and not flags & frames.ACK:
            self.owed.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.GOAWAY:
            self.away = int.from_bytes(payload[4:8], "big"), payload[8:].decode(errors="replace")
        elif kind > frames.CONTINUATION or kind in (frames.PUSH_PROMISE, frames.PRIORITY):
            raise NoHttp(f"a frame of type {kind}")
        if kind in (frames.DATA, frames.HEADERS) and flags & frames.END_STREAM and stream is not None:
            stream.ended = True
            return True
        return False


def of_stream(case: Case, stream: Stream) -> str:
    """What is wrong with an answer; empty when nothing is."""
    if not stream.ended:
        allowed = case.loose or case.wire is Wire.FRAMES
        return "" if allowed and stream.reset in (0, 1, 3, 5, 6, 7, 8, 11) else f"reset with {stream.reset}"
    status = stream.fields.get(b":status", b"")
    code = stream.fields.get(b"grpc-status")
    if code is None:
        if not status.isdigit():
            return f"no status: {stream.fields}"
        if int(status) == 431 and not stream.body:
            return ""
        head = b"\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in stream.fields.items())
        return of_http(case, Answer(int(status), head.lower(), stream.body))
    if case.denied and int(code if code.isdigit() else -1) != {401: 16, 403: 7}[case.denied]:
        return f"grpc-status {code.decode()} for what {case.denied} is to refuse"
    text = unquote_to_bytes(stream.fields.get(b"grpc-message", b"")).decode(errors="replace")
    if status != b"200" or not code.isdigit() or "\n" in text:
        return f"not gRPC: {stream.fields}"
    if int(code) not in GRPC_FINE and not BROKEN_CALL.search(text):
        return f"grpc-status {code.decode()}: {text[:300]}"
    if int(code) == 0 and not _messages(stream.body):
        return f"a body that is no messages: {stream.body[:100]!r}"
    return ""


def _messages(body: bytes) -> bool:
    while body:
        size = int.from_bytes(body[1:5], "big")
        if body[0] or len(body) < 5 + size:
            return False
        body = body[5 + size :]
    return True
