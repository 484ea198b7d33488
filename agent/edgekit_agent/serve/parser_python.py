"""HTTP/1.1 requests parsed in pure Python, for boards where httptools has no wheel.

RFC 9112, strictly: lines end with CRLF, nothing is folded, a length is given once, digits are digits. What
another parser might understand otherwise is refused, because requests are smuggled through the difference.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from edgekit_agent.serve.sink import BadRequest, Sink

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[ \t!-~\x80-\xff]*)?")
_BARE_LF = re.compile(rb"(?<!\r)\n")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_MAX_CHUNK_LINE = 1024
_MAX_CHUNK = 1 << 40


class Parser:
    """Feeds a Sink as parser_httptools does, but trailers are checked and dropped."""

    def __init__(self, sink: Sink, max_header_bytes: int = 1 << 20) -> None:
        self._sink = sink
        self._max_header_bytes = max_header_bytes
        self._step: Callable[[bytes, int], int] = self._head
        self._rest = b""
        """What has come and is not enough for the next step."""
        self._searched = 0
        """Bytes of an unfinished header that were looked at before."""
        self._left = 0
        """Bytes of the body, or of its chunk, that are to come."""
        self._trailers = 0
        self._method = b""
        self._version = ""
        self._options: set[bytes] = set()

    def feed(self, data: bytes) -> None:
        """Raises BadRequest; the connection is then of no further use."""
        if self._rest:
            data, self._rest = self._rest + data, b""
        at = 0
        while at < len(data):
            after = self._step(data, at)
            if after < 0:
                self._rest = data[at:]
                return
            at = after

    def method(self) -> bytes:
        return self._method

    def version(self) -> str:
        return self._version

    def keep_alive(self) -> bool:
        if self._version == "1.1":
            return b"close" not in self._options
        return self._version == "1.0" and b"keep-alive" in self._options

    def upgrade(self) -> bool:
        return False

    # --- steps: each takes what begins at `at`, and returns where the next begins, or -1 for "more, please"

    def _head(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            return at + 2  # RFC 9112, 2.2: an empty line before a request is ignored
        start = at + max(self._searched - len(_END), 0)
        end = data.find(_END, start)
        if end < 0:
            if len(data) - at > self._max_header_bytes:
                raise BadRequest("the request's header is too large", 431)
            if _BARE_LF.search(data, start):
                raise BadRequest("a line ends without CR")
            if data[at] < 0x21 and data[at:] != b"\r":
                raise BadRequest("not HTTP")
            self._searched = len(data) - at
            return -1
        self._searched = 0
        first, *lines = data[at:end].split(b"\r\n")
        match = _REQUEST_LINE.fullmatch(first)
        if match is None:
            raise BadRequest("not a request line of HTTP")
        fields = [_field(line) for line in lines]
        self._method, self._version = match[1], match[3].decode()
        self._options = {
            word.strip().lower()
            for name, value in fields
            if name == b"connection"
            for word in value.split(b",")
        }
        length = _body_length(fields)
        self._sink.on_message_begin()
        self._sink.on_url(match[2])
        for name, value in fields:
            self._sink.on_header(name, value)
        self._sink.on_headers_complete()
        if length is None:
            self._step = self._chunk_line
        elif length:
            self._left, self._step = length, self._body
        else:
            self._sink.on_message_complete()
        return end + len(_END)

    def _body(self, data: bytes, at: int) -> int:
        at = self._pass_on(data, at)
        if not self._left:
            self._step = self._head
            self._sink.on_message_complete()
        return at

    def _chunk_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        line = data[at : end if end >= 0 else len(data)]
        if len(line) > _MAX_CHUNK_LINE or b"\n" in line:
            raise BadRequest("a chunk's first line is too long or does not end with CRLF")
        if end < 0:
            return -1
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise BadRequest("a chunk begins with its size in hexadecimal digits")
        self._left = int(match[1], 16)
        if self._left > _MAX_CHUNK:
            raise BadRequest("the chunk is too large", 413)
        self._trailers = 0
        self._step = self._chunk if self._left else self._trailer
        return end + 2

    def _chunk(self, data: bytes, at: int) -> int:
        at = self._pass_on(data, at)
        if not self._left:
            self._step = self._chunk_end
        return at

    def _chunk_end(self, data: bytes, at: int) -> int:
        if not b"\r\n".startswith(data[at : at + 2]):
            raise BadRequest("a chunk ends with CRLF")
        if len(data) - at < 2:
            return -1
        self._step = self._chunk_line
        return at + 2

    def _trailer(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        size = (end if end >= 0 else len(data)) - at
        if self._trailers + size > self._max_header_bytes:
            raise BadRequest("the request's trailer is too large", 431)
        if data.find(b"\n", at, at + size) >= 0:
            raise BadRequest("a line ends without CR")
        if end < 0:
            return -1
        self._trailers += size
        if size:
            name, _ = _field(data[at:end])
            if name in (b"content-length", b"transfer-encoding"):
                raise BadRequest("a trailer says how long the body is")
        else:
            self._step = self._head
            self._sink.on_message_complete()
        return end + 2

    def _pass_on(self, data: bytes, at: int) -> int:
        """Give the sink as much of the body as there is."""
        part = data[at : at + self._left]
        self._left -= len(part)
        self._sink.on_body(part)
        return at + len(part)


def _field(line: bytes) -> tuple[bytes, bytes]:
    """A header field's name in lower case and its value. Raises BadRequest."""
    name, colon, value = line.partition(b":")
    if not colon or not _NAME.fullmatch(name) or _CONTROL.search(value):
        raise BadRequest("not a header field")
    return name.lower(), value.strip(b" \t")


def _body_length(fields: list[tuple[bytes, bytes]]) -> int | None:
    """Bytes of the body; None: it comes in chunks. Raises BadRequest where that could be read two ways."""
    lengths = [value for name, value in fields if name == b"content-length"]
    codings = [value for name, value in fields if name == b"transfer-encoding"]
    if codings:
        if lengths or len(codings) > 1:
            raise BadRequest("more than one of Content-Length and Transfer-Encoding")
        if codings[0].lower() != b"chunked":
            raise BadRequest("the only transfer encoding is chunked", 501)
        return None
    if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
        raise BadRequest("Content-Length is not one number")
    return int(lengths[0]) if lengths else 0
