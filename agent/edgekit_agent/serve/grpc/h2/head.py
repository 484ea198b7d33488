"""What a request's header fields must be, and what of them is kept (RFC 9113 section 8)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from edgekit_agent.serve.grpc.h2.hpack import Field

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
# Section 8.2.2: they speak of one connection of HTTP/1.1 and are malformed here.
_CONNECTION = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_MAX_LENGTH_DIGITS = 18


class Malformed(ValueError):
    """A request that RFC 9113 section 8.1.1 calls so; its stream ends with PROTOCOL_ERROR."""


@dataclass(slots=True)
class Head:
    """A request's header. Shared by the requests whose header blocks are equal, so it is not changed."""

    method: bytes
    path: bytes
    headers: dict[bytes, bytes]
    """Lower-case names without pseudo-fields; :authority as host. Of repeated fields the last counts."""
    length: int
    """Content-Length, -1 when there is none."""
    plan: Any = None
    """The sink's own: what it has found out about requests with this header. Once it is set, such a request
    that comes in one piece goes to `Stream.on_whole`."""


def parse(fields: list[Field]) -> Head:
    """Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    length = -1
    for name, value in fields:
        if name[:1] == b":":
            if name not in _PSEUDO or name in pseudo or headers:
                raise Malformed(f"pseudo-field {name!r} is unknown, repeated or late")
            _check_value(name, value)
            pseudo[name] = value
            continue
        _check_regular(name, value)
        if name == b"content-length":
            known, length = length, _length(value)
            if known not in (-1, length):
                raise Malformed("content-length is given twice and differs")
        headers[name] = value
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if method == b"CONNECT":
        raise Malformed("CONNECT is not served")
    if not method or not _NAME.fullmatch(method.lower()):
        raise Malformed("no :method")
    if pseudo.get(b":scheme") not in (b"http", b"https"):
        raise Malformed(":scheme must be http or https")
    if path[:1] != b"/" and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed(":path must begin with /")
    authority = pseudo.get(b":authority")
    if authority is not None:
        headers[b"host"] = authority
    return Head(method, path, headers, length)


def check_trailers(fields: list[Field]) -> None:
    """Raises Malformed. Section 8.1: no pseudo-fields. What they say is not used."""
    for name, value in fields:
        _check_regular(name, value)


def _check_regular(name: bytes, value: bytes) -> None:
    """Section 8.2.1."""
    if not _NAME.fullmatch(name):
        raise Malformed(f"{name[:40]!r} is no field name")
    if name in _CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise Malformed(f"{name.decode()} does not belong into HTTP/2")
    _check_value(name, value)


def _check_value(name: bytes, value: bytes) -> None:
    if _CONTROL.search(value) or value != value.strip(b" \t"):
        raise Malformed(f"the value of {name[:40]!r} is malformed")


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > _MAX_LENGTH_DIGITS:
        raise Malformed("content-length is no number")
    return int(value)
