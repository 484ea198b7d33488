"""One HTTP/1.1 connection: parse, keep order, answer, and let nobody hold it for ever.

Requests are answered one at a time in the order in which they came (pipelining). While answers are
outstanding or the client does not read, the connection stops reading.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from edgekit_agent.serve import peer
from edgekit_agent.serve.access import Refused
from edgekit_agent.serve.arriving import Arriving
from edgekit_agent.serve.body import WORTH_BYTES, Before, Body
from edgekit_agent.serve.claim import Claim
from edgekit_agent.serve.http_tools import RETRY
from edgekit_agent.serve.incoming import Incoming
from edgekit_agent.serve.known import Known
from edgekit_agent.serve.message import Request, Response, error
from edgekit_agent.serve.shares import Share
from edgekit_agent.serve.sink import BadRequest, RequestParser, Sink

if TYPE_CHECKING:
    from edgekit_agent.serve.server import Server

MAX_PIPELINED = 256
_PAUSE_AT = 8
_LINGER_S = 2.0
_FIRST_S = 0.5  # within this the first request of a new connection may be on its way
_COUNTED_FROM = 64 * 1024  # smaller bodies fit into what connections buffer anyway


class Connection(asyncio.Protocol):
    """See module."""

    def __init__(self, server: Server, parser: Callable[[Sink], RequestParser]) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._peer = peer.NOBODY
        self._claim: Claim | None = None  # on its client's share
        self._incoming = Incoming(self, parser, server.limits)
        self._waiting: deque[Request | Response] = deque()
        self._current: Request | None = None  # being answered
        self._pumping = False
        self._paused = False
        self._deaf = False  # no further request is taken; what comes is thrown away
        self._failed = False  # ... because the client broke a rule
        self._closing = False  # the last answer is written
        self._ended = False  # the client has closed its side
        self._begun: float | None = None  # when the first byte of an incomplete request came
        self._quiet: float = server.now()  # when the connection was last of use
        self._blocked: float | None = None  # since when the client does not read
        self._asked = False  # whether it has been of use
        self._known: Known | None = None
        self._apart: Body | None = None  # a large body that is being read

    # --- the server's clock

    def check_time(self, now: float) -> None:
        """Called now and then: close a connection that is used up, slow or stuck."""
        limits, transport = self._server.limits, self._transport
        if transport is None:
            return
        if self._closing:
            if now - self._quiet > (_LINGER_S if self._blocked is None else limits.write_timeout_s):
                transport.abort()
        elif self._blocked is not None:
            if now - self._blocked > limits.write_timeout_s:
                transport.abort()
        elif self._begun is not None and not self._paused and not self._waits:
            if now - self._begun > limits.read_timeout_s:
                self.fail(408, f"the request took longer than {limits.read_timeout_s:g} s to arrive")
        elif self.idle and now - self._quiet > limits.idle_timeout_s:
            transport.close()

    @property
    def share(self) -> Share | None:
        """The client's."""
        return self._claim.share if self._claim is not None else None

    @property
    def idle(self) -> bool:
        """Nothing is asked that is not answered."""
        return self._current is None and not self._waiting and self._begun is None

    @property
    def lone(self) -> bool:
        """Nothing is asked beside what is being answered."""
        return not self._waiting

    @property
    def _waits(self) -> bool:
        """Nothing is read, for there is enough to do."""
        return self._apart is not None and self._apart.waits

    def close_if_idle(self) -> None:
        """Called again and again while the server ends."""
        new = not self._asked and self._server.now() - self._quiet < _FIRST_S
        if self.idle and not new and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = peer.of(transport)
        self._claim = Claim(self._server.shares, self._peer.key)
        if not self._server.opened(self, self._claim.share):
            self.fail(503, "too many connections", RETRY)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._peer.close()
        self._deaf = True
        self._drop_waiting()
        if self._claim is not None:
            self._claim.close()
        self._server.closed(self)
        self._apart = None
        self._incoming.end()

    def eof_received(self) -> bool:
        """The client sends no more. Answer what it has asked, then close."""
        self._deaf, self._begun, self._ended = True, None, True
        asked = self._current is not None or bool(self._waiting)
        # TLS ends both sides at once: asyncio would only log that it was asked not to.
        return asked and self._transport is not None and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        self._blocked = self._server.now()

    def resume_writing(self) -> None:
        self._blocked = None
        self._pump()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        known, between = self._known, self._begun is None
        if known is not None and between and data.startswith(known.head):
            rest = known.size - len(data)
            if rest == 0:
                self._take(known.request(data[len(known.head) :]))
                self._pump()
                if self._waiting or self._paused:
                    self._throttle()
                return
            if rest > WORTH_BYTES:
                self._begun = self._server.now()
                self._read_apart(known.head, data[len(known.head) :], known.size - len(known.head), known)
                return
        if between:
            self._begun = self._server.now()
        try:
            self._incoming.feed(data)
        except BadRequest as exc:
            self.fail(exc.status, f"bad request: {exc}")
            return
        self._remember(data, between)
        self._pump()
        self._throttle()

    def _remember(self, data: bytes, between: bool) -> None:
        """`data` is parsed. Its head may come again, and a large body has still to come in.

        `between`: it came after one request and before the next.
        """
        incoming = self._incoming
        new, last = incoming.new, incoming.last
        if between and incoming.completed == 1 and last is not None and self._begun is None:
            self._known = Known.of(data[: len(data) - len(last.body)], last)
        elif new.head_done and not self._deaf and new.length - new.body_bytes > WORTH_BYTES:
            head = data[: len(data) - new.body_bytes] if between and incoming.completed == 0 else b""
            self._read_apart(head, new.whole_body(), new.length, None)

    # --- large bodies

    def _read_apart(self, head: bytes, first: bytes, size: int, known: Known | None) -> None:
        """Read a body of `size` bytes, of which `first` has come, past the parser.

        `head`: what came before it, if all of that is at hand; `known`: what it means, if it was seen before.
        """
        if self._transport is not None:
            self._incoming.new.body = []
            self._apart = Body(self, self._transport, size, Before(head, known), self._server.room)
            headers = self._incoming.new.headers if known is None else known.headers
            self._apart.begin(first, headers)
            self._transport.set_protocol(self._apart)

    def body_read(self, body: bytearray, before: Before) -> None:
        """The end of a body that was read apart."""
        if self._deaf:
            self._leave_apart()
            return
        if before.known is not None:
            request = before.known.request(body)
        else:
            request = self._incoming.request(body)
            self._incoming.skip_body()
            self._known = Known.of(before.head, request)
        self._incoming.new = Arriving()
        if self._apart is not None and self._known is not None:
            self._apart.expect(self._known)
        else:
            self._leave_apart()
        self.message_complete(request)
        self._pump()
        self._throttle()

    def other_head(self, data: bytes) -> None:
        """What comes after a body that was read apart begins otherwise than the head before that."""
        self._leave_apart()
        self._begun = None
        self.data_received(data)

    def body_grows(self, size: int) -> bool:
        if size <= _COUNTED_FROM or self._claim is None or self._claim.grow(size):
            return True
        self.fail(503, "too many large requests at once", RETRY)
        return False

    def body_goes_on(self) -> None:
        """It waited; that is not the client's time."""
        self._begun = self._server.now()
        if self._transport is not None and not self._paused:
            self._transport.resume_reading()

    def _leave_apart(self) -> None:
        apart, self._apart = self._apart, None
        if apart is not None and self._transport is not None:
            apart.leave(self)

    # --- requests that come

    @property
    def deaf(self) -> bool:
        return self._deaf

    def message_begins(self) -> None:
        self._begun = self._server.now()

    def refused(self, method: bytes, target: bytes, token: bytes | None) -> Refused | None:
        no = self._server.refused(self._peer, method, target, token)
        if self._claim is not None and self._current is None and not self._waiting:
            self._claim.follow(self._peer.key)
        return no

    def message_complete(self, request: Request) -> None:
        self._take(request)
        self._begun = None

    def _take(self, request: Request) -> None:
        """Let a complete request wait for its turn."""
        if len(self._waiting) >= MAX_PIPELINED:
            self.fail(503, "too many requests at once on one connection")
            return
        request.peer = self._peer
        request.keep_alive = request.keep_alive and not self._server.draining
        self._asked = True
        request.held = self._claim.pass_on() if self._claim is not None else 0
        if request.held:
            self._server.room.ahead.add(request.held)
        self._waiting.append(request)
        self._deaf = not request.keep_alive

    # --- answers

    def fail(self, status: int, text: str, extra: str = "") -> None:
        """Answer with an error after what was asked before, then close: the rest cannot be trusted."""
        if self._failed:
            return  # one mistake in several ways
        self._failed = self._deaf = True
        self._begun = None
        self._leave_apart()
        self._incoming.new.body.clear()
        if self._claim is not None:
            self._claim.drop()
        self._waiting.append(error(status, text, extra))
        self._pump()

    def _pump(self) -> None:
        """Begin answering the next request, as long as answers come at once."""
        if self._pumping:
            return
        self._pumping = True
        while self._waiting and self._current is None and self._blocked is None and not self._closing:
            item = self._waiting.popleft()
            if isinstance(item, Response):
                self._write(item, close=True)
            else:
                self._current = item
                self._ask(item)
        self._pumping = False
        new = self._incoming.new
        wanted = new.owes_continue and not self._deaf
        if wanted and self._current is None and not self._waiting and self._transport:
            new.owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _respond(self, response: Response) -> None:
        request, self._current = self._current, None
        if request is None:
            return
        self._end(request)
        if self._transport is None:
            return  # the client has gone
        close = not request.keep_alive or self._server.draining or (self._deaf and not self._waiting)
        self._write(response, close=close, request=request)
        if self._waiting or self._paused or self._incoming.new.owes_continue:
            self._pump()
            self._throttle()

    def _write(self, response: Response, *, close: bool, request: Request | None = None) -> None:
        if self._transport is None:
            return
        old = request is not None and request.http_1_0
        head = response.head(close=close, keep_alive_wanted=old)
        if request is not None and request.method == b"HEAD":
            self._transport.write(head)
        elif len(parts := response.parts(head)) == 1:
            self._transport.write(parts[0])
        else:
            self._transport.writelines(parts)
        self._quiet = self._server.now()
        if close:
            self._hang_up()

    def _hang_up(self) -> None:
        """After the last answer. A client that still sends is heard out, or it would not read why."""
        self._closing = self._deaf = True
        self._drop_waiting()
        if self._transport is None:
            return
        if self._failed and not self._ended and self._transport.can_write_eof():
            if self._paused:
                self._paused = False
                self._transport.resume_reading()
            self._transport.write_eof()
        else:
            self._transport.close()

    # --- shares

    def _ask(self, request: Request) -> None:
        """Have the request answered, if its client may ask that now."""
        server, claim = self._server, self._claim
        # What only reads is answered at once.
        if claim is not None and request.method == b"POST" and not claim.begin(server.now()):
            self._respond(error(429, "too many requests of yours are waiting", RETRY))
            return
        before, server.turns.asking = server.turns.asking, claim.share if claim is not None else None
        server.handle(request, self._respond)
        server.turns.asking = before

    def _end(self, request: Request) -> None:
        self._let_go(request)
        if self._claim is not None:
            self._claim.end()

    def _drop_waiting(self) -> None:
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, Request):
                self._let_go(item)

    def _let_go(self, request: Request) -> None:
        """Its body needs no room any more."""
        if request.held and self._claim is not None:
            self._claim.let_go(request.held)
            self._server.room.ahead.remove(request.held)

    # --- flow

    def _throttle(self) -> None:
        """Read on, or not, by how many requests wait."""
        if self._transport is None or self._closing:
            return
        full = len(self._waiting) >= _PAUSE_AT or self._blocked is not None
        if full and not self._paused:
            self._transport.pause_reading()
        elif not full and self._paused and not self._waits:
            self._transport.resume_reading()
        self._paused = full
