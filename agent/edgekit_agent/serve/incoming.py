"""From what a parser of HTTP/1.1 says to requests: limits, what must not be in a head, and who may ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from edgekit_agent.serve.access import Refused
from edgekit_agent.serve.arriving import MAX_HEADERS, Arriving
from edgekit_agent.serve.heads import problem
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request
from edgekit_agent.serve.sink import RequestParser, Sink


class Owner(Protocol):
    """The connection."""

    @property
    def deaf(self) -> bool:
        """Whether no further request is taken."""
        ...

    def message_begins(self) -> None: ...
    def refused(self, method: bytes, target: bytes, token: bytes | None) -> Refused | None:
        """Why such a request may not be made; None: it may."""
        ...

    def body_grows(self, size: int) -> bool:
        """Count a body's `size` bytes so far; False when that is too much, and answered."""
        ...

    def message_complete(self, request: Request) -> None: ...
    def fail(self, status: int, text: str, extra: str = "") -> None: ...


class Incoming:
    """The `Sink` of one connection's parser. `new` is the request that is coming."""

    def __init__(self, owner: Owner, parser: Callable[[Sink], RequestParser], limits: Limits) -> None:
        self._owner, self._make, self._limits = owner, parser, limits
        self.parser = parser(self)
        self.new = Arriving()
        self.completed = 0
        """Requests since somebody set it to 0."""
        self.last: Request | None = None
        """Of these."""

    def feed(self, data: bytes) -> None:
        """Raises BadRequest."""
        self.completed, self.last = 0, None
        if not self.new.head_done:
            self.new.header_bytes += len(data)  # counted again, exactly, when the header is complete
        self.new.received += len(data)
        self.parser.feed(data)
        most = self._limits.max_header_bytes
        if not self.new.head_done and self.new.header_bytes > most:
            self._owner.fail(431, "the request's header is too large")
        if self.new.received - 2 * self.new.body_bytes > most:
            self._owner.fail(400, "bad request: more bytes around the body than in it")

    def request(self, body: bytes | bytearray) -> Request:
        """The request that ends with `body`."""
        parser, now = self.parser, time.perf_counter_ns()
        old = parser.version() == "1.0"
        return Request(parser.method(), self.new.url, self.new.headers, body, parser.keep_alive(), now, old)

    def skip_body(self) -> None:
        """The body came another way; the parser, which waits for it, is of no further use."""
        self.parser = self._make(self)

    def end(self) -> None:
        """The connection is closed. Its parser, it and this refer to each other."""
        del self.parser, self._owner

    # --- the parser's

    def on_message_begin(self) -> None:
        if not self._owner.deaf:
            self.new = Arriving()
            self._owner.message_begins()

    def on_url(self, url: bytes) -> None:
        self.new.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.new.head_done:
            return  # a trailer: it must not change what the header said
        if not self.new.header(name, value) and not self._owner.deaf:
            self._owner.fail(431, f"more than {MAX_HEADERS} header fields")

    def on_headers_complete(self) -> None:
        new, parser = self.new, self.parser
        new.head_done = True
        if self._owner.deaf:
            return
        if parser.upgrade() and parser.method() != b"CONNECT":
            new.upgrading = True
            return
        version, method = parser.version(), parser.method()
        wrong = problem(version, method, new.url, new.headers, new.repeated, self._limits)
        if wrong is not None:
            self._owner.fail(*wrong)
        elif no := self._owner.refused(method, new.url, new.headers.get(b"authorization")):
            self._owner.fail(no.status, no.text, no.extra)  # before its body is taken
        else:
            new.length = int(new.headers.get(b"content-length", b"0"))
            new.owes_continue = b"expect" in new.headers and version == "1.1"

    def on_body(self, body: bytes) -> None:
        if self._owner.deaf:
            return
        self.new.body_bytes += len(body)
        self.new.owes_continue = False
        if not self._owner.body_grows(self.new.body_bytes):
            return
        if self.new.body_bytes > self._limits.max_body_bytes:
            limit = self._limits.max_body_bytes
            self._owner.fail(413, f"the body is larger than the {limit} bytes allowed")
        else:
            self.new.body.append(body)

    def on_message_complete(self) -> None:
        if self._owner.deaf or self.new.upgrading:
            return
        request = self.request(self.new.whole_body())
        self.completed, self.last = self.completed + 1, request
        self._owner.message_complete(request)
        self.new = Arriving()

    def head_without_upgrade(self) -> bytes:
        if self._owner.deaf or not self.new.upgrading:
            return b""
        return self.new.head_without_upgrade(self.parser.method())
