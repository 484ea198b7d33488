"""The client's half of HTTP/1.1 without any IO: a request's head to bytes, an answer's head from bytes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from edgekit.client._address import Address
from edgekit.errors import AuthError, SystemFault

MAX_HEAD_BYTES = 64 * 1024
END = b"\r\n\r\n"

_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LONGEST_NUMBER = 15


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. What it waits for ends at `deadline` (time.monotonic() seconds)."""

    method: str
    path: str
    deadline: float
    body: tuple[bytes | memoryview, ...] = ()
    json_size: int = 0
    """Inference-Header-Content-Length, when binary tensors follow the JSON."""
    lines: str = ""
    """More header fields, each ended by CRLF."""
    max_answer: int = 1 << 30

    def head(self, address: Address) -> bytes:
        size = sum(len(part) for part in self.body)
        text = f"{self.method} {self.path} HTTP/1.1\r\nHost: {address.authority}\r\n{self.lines}"
        if self.json_size:
            text += f"Inference-Header-Content-Length: {self.json_size}\r\n"
        if self.method == "POST":
            kind = "application/octet-stream" if self.json_size else "application/json"
            text += f"Content-Type: {kind}\r\nContent-Length: {size}\r\n"
        return f"{text}\r\n".encode("ascii")


@dataclass(frozen=True, slots=True)
class Head:
    """Status line and header fields of an answer, as far as they matter."""

    status: int
    length: int
    """Bytes of the body."""
    json_size: int | None
    retry_after_s: float | None
    keep_alive: bool


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: memoryview
    json_size: int | None = None
    retry_after_s: float | None = None


class NotAnAgent(SystemFault):
    """What came back is not an answer of the Open Inference Protocol over HTTP/1.1."""

    def __init__(self, address: Address, why: str) -> None:
        super().__init__(f"{address} did not answer like an agent: {why}", "does an agent listen there?")


class Unreachable(SystemFault):
    """No connection; nothing was sent."""


class Lost(SystemFault):
    """The connection ended before the answer was complete."""

    def __init__(self, address: Address) -> None:
        super().__init__(f"{address} ended the connection before it answered", "is its log telling why?")


def reason(exc: OSError) -> str:
    """Why no connection came about, in the system's words."""
    return os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror or str(exc)


def refused(exc: Exception, address: Address) -> AuthError | None:
    """The error when TLS failed because one side does not trust the other; None for anything else."""
    if not address.tls or type(exc).__module__ != "ssl" or "EOF" in type(exc).__name__:
        return None
    text = str(getattr(exc, "verify_message", "")) or str(getattr(exc, "reason", "")) or str(exc)
    return AuthError(
        f"{address}: TLS failed: {text}", "ca=... trusts its issuer; cert=... and key=... are yours"
    )


def parse_head(data: bytes, address: Address, max_body: int) -> Head:
    """`data` is everything before the empty line. Raises NotAnAgent; nothing is guessed or mended."""
    first, *lines = data.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise NotAnAgent(address, f"{first[:60]!r} is no status line")
    old, status = match[1] == b"0", int(match[2])
    fields: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise NotAnAgent(address, f"{line[:60]!r} is no header field")
        name = name.lower()
        if name == b"content-length" and name in fields:
            raise NotAnAgent(address, "two Content-Length fields")
        fields[name] = value.strip(b" \t")
    if b"transfer-encoding" in fields:
        raise NotAnAgent(address, "its body is chunked")
    bodiless = status < 200 or status in (204, 304)
    length = 0 if bodiless else _number(fields.get(b"content-length"), address, "Content-Length")
    if length is None:
        raise NotAnAgent(address, "no Content-Length")
    if length > max_body:
        raise NotAnAgent(address, f"its answer of {length} bytes is larger than the {max_body} allowed")
    json_size = _number(fields.get(b"inference-header-content-length"), address, "the header's length")
    if json_size is not None and not 0 < json_size <= length:
        raise NotAnAgent(address, f"{json_size} bytes of JSON in a body of {length}")
    wait = fields.get(b"retry-after")
    options = {word.strip().lower() for word in fields.get(b"connection", b"").split(b",")}
    return Head(
        status=status,
        length=length,
        json_size=json_size,
        # The other form is a date; clocks of devices are often wrong.
        retry_after_s=None if wait is None else float(wait) if wait.isdigit() and len(wait) < 6 else 1.0,
        keep_alive=b"keep-alive" in options if old else b"close" not in options,
    )


def room(head: Head) -> int:
    """How many bytes to leave free before a body so that its first binary tensor begins aligned."""
    return -(head.json_size or 0) % 64


def _number(value: bytes | None, address: Address, what: str) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > _LONGEST_NUMBER:
        raise NotAnAgent(address, f"{what} is {value[:30]!r}")
    return int(value)
