"""Status codes of gRPC, how they follow from those of HTTP, and how they are written.

Sources: grpc/grpc doc/statuscodes.md, doc/PROTOCOL-HTTP2.md and doc/http-grpc-status-mapping.md.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.h2 import hpack
from edgekit_agent.serve.message import one_line

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
UNAUTHENTICATED = 16

_FROM_HTTP = {
    401: UNAUTHENTICATED,
    403: PERMISSION_DENIED,
    404: NOT_FOUND,
    405: UNIMPLEMENTED,
    408: DEADLINE_EXCEEDED,
    413: RESOURCE_EXHAUSTED,
    429: RESOURCE_EXHAUSTED,
    501: UNIMPLEMENTED,
    503: UNAVAILABLE,
    504: DEADLINE_EXCEEDED,
}
_MAX_TEXT = 1024  # octets of grpc-message; clients limit headers to 8 KiB
_PLAIN = frozenset(range(0x20, 0x7F)) - {0x25}


class RpcError(Exception):
    """The answer to a call is this status instead of a message."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def from_http(status: int) -> int:
    """The code for a status as the core gives it."""
    return _FROM_HTTP.get(status, INVALID_ARGUMENT if 400 <= status < 500 else INTERNAL)


def trailers(code: int, text: str = "") -> list[hpack.Field]:
    """The fields that end a call."""
    fields = [(b"grpc-status", str(code).encode())]
    if text:
        fields.append((b"grpc-message", quote(one_line(text))))
    return fields


def quote(text: str) -> bytes:
    """Percent-encode what is not printable ASCII, and the percent sign; long texts are cut."""
    data = text.encode("utf-8", "replace")[:_MAX_TEXT]
    return b"".join(bytes((octet,)) if octet in _PLAIN else b"%%%02X" % octet for octet in data)
