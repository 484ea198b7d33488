"""What the exchanges on one HTTP/2 connection share: how they send, and where their memory comes from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Protocol

from edgekit_agent.serve import trace
from edgekit_agent.serve.access import Access
from edgekit_agent.serve.grpc import status
from edgekit_agent.serve.grpc.budget import Budget, Lease
from edgekit_agent.serve.grpc.framing import ENCODINGS, PREFIX_BYTES, prefix
from edgekit_agent.serve.grpc.h2 import hpack
from edgekit_agent.serve.grpc.h2.machine import Machine
from edgekit_agent.serve.grpc.h2.output import Around
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.h2.stream import Stream
from edgekit_agent.serve.grpc.service import Registry, Reply
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.peer import NOBODY
from edgekit_agent.serve.room import Room
from edgekit_agent.serve.shares import Share, Shares, Turns
from edgekit_agent.serve.trace import Span

BUSY = "too many requests of yours are waiting"
JOINED_BYTES = 16 * 1024  # copying fewer octets is cheaper than sending several pieces
_HEAD_FIELDS = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b",".join(ENCODINGS)),
]
_HEAD = hpack.encode(_HEAD_FIELDS)
_OK = hpack.encode(status.trailers(status.OK))
USUAL = Around(_HEAD, _OK)
_OUR_FAULTS = (status.UNKNOWN, status.DEADLINE_EXCEEDED, status.INTERNAL, status.UNAVAILABLE)
"""What HTTP has the statuses from 500 on for."""


class Server(Protocol):
    """What the links of all connections share: of server.Server."""

    access: Access | None
    limits: Limits
    shares: Shares
    turns: Turns
    budget: Budget
    room: Room


class Exchange(Protocol):
    """One request and its answer. Its calls come in order; after `on_reset` there are none."""

    def on_data(self, chunk: Chunk) -> None: ...
    def on_end(self) -> None: ...
    def on_reset(self) -> None: ...
    def check_time(self, now: float) -> None:
        """Called now and then: end what takes too long. `now` in seconds."""
        ...


class Link:
    """See module. `touched` is called when there is something to send."""

    def __init__(
        self,
        machine: Machine,
        server: Server,
        registry: Registry,
        touched: Callable[[], None],
        permit: Callable[[Stream], None],
    ) -> None:
        """`permit` raises RpcError when a call may not go on."""
        self.machine = machine
        self.limits = server.limits
        self.touched = touched
        self.permit = permit
        self.guarded = server.access is not None
        """Whether `permit` has anything to look at."""
        self.registry = registry
        self.peer = NOBODY
        """Who is at the other end; known when the connection is made."""
        self.share: Share | None = None
        """Of the client, while the connection is open."""
        self.turns = server.turns
        self.shares = server.shares
        self.buffers = server.room.buffers
        self._server = server

    def join(self) -> Share:
        """The connection is the client's that `peer` says."""
        self.leave()
        self.share = self._server.shares.join(self.peer.key)
        return self.share

    def leave(self) -> None:
        if self.share is not None:
            self._server.shares.leave(self.share)
            self.share = None

    def work(self, share: Share | None, call: Callable[[], None]) -> None:
        """Make a call for a client whose turn is counted."""
        turns = self.turns
        before, turns.asking = turns.asking, share
        call()
        turns.asking = before

    def claim(self) -> Share | None:
        """Count a request that may have to wait for the engine; its share, for `yield_`. Raises RpcError."""
        share = self.share
        if share is not None and not self._server.shares.begin(share, self.machine.now):
            raise RpcError(status.RESOURCE_EXHAUSTED, BUSY)
        return share

    def yield_(self, share: Share | None) -> None:
        """The request is answered."""
        if share is not None:
            self._server.shares.end(share)

    def lease(self, stream: Stream, octets: int) -> Lease | None:
        """Widen the stream's window by `octets` when there is memory for them."""

        def granted(octets: int) -> None:
            self.machine.grant(stream, octets)
            self.touched()

        return None if self.share is None else self._server.budget.ask(self.share, octets, granted)

    def end(self, lease: Lease | None) -> None:
        """What a lease was for is not in memory any more."""
        if lease is not None:
            self._server.budget.end(lease)

    @property
    def choked(self) -> bool:
        """Whether more answers wait for the client's windows than we keep."""
        return self.machine.output.pending_bytes > 2 * self.limits.max_body_bytes

    def let_in(self, stream: Stream) -> None:
        """Raises RpcError: a call that may not be made now."""
        if self.guarded:
            self.permit(stream)
        if self.choked:
            raise RpcError(status.RESOURCE_EXHAUSTED, "earlier answers are not taken")

    def refuse(self, stream: Stream, exc: RpcError) -> None:
        """Answer a call that was not let in, or is none."""
        span, begun_ns = self.span(stream), time.perf_counter_ns()
        self.finish(stream, exc.code, exc.text, begun=False, span=span)
        if span is not None:
            self.note(span, stream, exc.code, begun_ns)

    def begin(self, stream: Stream, span: Span | None = None) -> None:
        """The header of a call's answer."""
        self.machine.headers(stream, hpack.encode([*_HEAD_FIELDS, *_ids(span)]) if span else _HEAD)

    def message(self, stream: Stream, reply: Reply) -> None:
        """One message of an answer that has begun."""
        parts = reply.parts
        size = sum(map(len, parts))
        if size <= JOINED_BYTES:
            self.machine.data(stream, b"".join((prefix(size), *parts)))
            return
        self.machine.data(stream, prefix(size) + parts[0])
        for part in parts[1:]:
            self.machine.data(stream, part if isinstance(part, bytes) else memoryview(part))

    def reply(self, stream: Stream, reply: Reply, span: Span | None = None) -> None:
        """The whole answer to a unary call."""
        if reply.code != status.OK:
            self.finish(stream, reply.code, reply.text, begun=False, span=span)
            return
        parts = reply.parts
        size = sum(map(len, parts))
        if (
            size <= JOINED_BYTES
            and span is None
            and self.machine.answer(stream, USUAL, [prefix(size), *parts], PREFIX_BYTES + size)
        ):
            return
        self.begin(stream, span)
        self.message(stream, reply)
        self.finish(stream)

    def finish(
        self,
        stream: Stream,
        code: int = status.OK,
        text: str = "",
        *,
        begun: bool = True,
        span: Span | None = None,
    ) -> None:
        """The end of a call's answer; `begun`: whether there was a header."""
        if code == status.OK and begun:
            self.machine.end(stream, _OK)
            return
        fields = status.trailers(code, text)
        if begun:
            self.machine.end(stream, hpack.encode(fields))
        else:
            self.machine.headers(stream, hpack.encode([*_HEAD_FIELDS, *_ids(span), *fields]), end=True)

    def span(self, stream: Stream) -> Span | None:
        """Where a call belongs in a trace, if its client or the log wants to know."""
        return trace.asked(stream.head.headers, self.registry.log)

    def note(
        self, span: Span, stream: Stream, code: int, begun_ns: int, sizes: tuple[int, int] = (0, 0)
    ) -> None:
        """Log the end of a call as the configuration wants it. `sizes`: octets of all messages in and out."""
        wanted = self.registry.log
        if wanted == "all" or (wanted == "failed" and code != status.OK):
            level = logging.ERROR if code in _OUR_FAULTS else logging.INFO
            fields: dict[str, object] = {"method": "gRPC", "grpc_status": code}
            trace.note(span, level, begun_ns, stream.head.path, sizes, fields)


def _ids(span: Span | None) -> list[hpack.Field]:
    """What goes back to the client, as over HTTP."""
    if span is None:
        return []
    return [(b"traceparent", span.traceparent.encode()), (b"x-request-id", span.request.encode())]
