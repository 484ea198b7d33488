"""What the head of an HTTP/1.1 request must be, beyond what its parser has checked. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from edgekit_agent.serve.limits import Limits

SINGLE = frozenset({
    b"content-length", b"transfer-encoding", b"host", b"authorization", b"content-encoding", b"content-type",
    b"inference-header-content-length", b"expect",
})  # fmt: skip
"""Header fields that come once: of two the next program on the way might believe the other."""
_HOST = re.compile(rb"[A-Za-z0-9._~%:\[\]-]{0,255}")
_LONGEST_NUMBER = 18


def problem(
    version: str,
    method: bytes,
    target: bytes,
    headers: Mapping[bytes, bytes],
    repeated: bytes,
    limits: Limits,
) -> tuple[int, str] | None:
    """The status and text of a refusal; None: it is fine.

    `headers`: by lower-case name; `repeated`: one of SINGLE that came more than once. Where the end of the
    body could be understood in two ways the request is refused: RFC 9112, sections 3.2, 6.1 and 6.3.
    """
    coding, host = headers.get(b"transfer-encoding"), headers.get(b"host")
    length = headers.get(b"content-length", b"0")
    expect = headers.get(b"expect")
    size = len(target) + sum(len(name) + len(value) for name, value in headers.items())
    if version not in ("1.0", "1.1"):
        return 505, "speak HTTP/1.1"
    if repeated:
        return 400, f"bad request: two header fields {repeated.decode()}"
    if host is None and version == "1.1":
        return 400, "bad request: no Host"
    if host is not None and not _HOST.fullmatch(host):
        return 400, "bad request: not a Host"
    if coding is not None and version == "1.0":
        return 400, "bad request: HTTP/1.0 has no Transfer-Encoding"
    if size > limits.max_header_bytes:
        return 431, "the request's header is too large"
    if method == b"CONNECT":
        return 405, "Method Not Allowed"
    if coding is not None and b"content-length" in headers:
        return 400, "bad request: both Transfer-Encoding and Content-Length"
    if coding is not None and coding.lower() != b"chunked":
        return 501, "the only transfer encoding is chunked"
    if not length.isdigit() or len(length) > _LONGEST_NUMBER or int(length) > limits.max_body_bytes:
        return 413, f"the body is larger than the {limits.max_body_bytes} bytes allowed"
    if expect is not None and expect.lower() != b"100-continue":
        return 417, "the only expectation is 100-continue"
    return None
