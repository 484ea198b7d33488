"""Unary calls that come whole, with a header that the connection has sent before: the way without detours.

Most calls are such: clients repeat their header, and a small request fits into one DATA frame.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache

from edgekit_agent.serve.grpc import framing, status
from edgekit_agent.serve.grpc.framing import PREFIX_BYTES, Buffer, Compressed, prefix
from edgekit_agent.serve.grpc.h2.head import Head
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.h2.stream import Stream
from edgekit_agent.serve.grpc.link import BUSY, JOINED_BYTES, USUAL, Link
from edgekit_agent.serve.grpc.service import Method, Reply
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.peer import Peer
from edgekit_agent.serve.shares import Share

_prefix = lru_cache(256)(prefix)
"""Answers of one model have few different sizes."""
_VIEW_FROM = 8192  # copying fewer octets is cheaper than a view of them


class Plan:
    """What is known of all calls of a connection with one header."""

    __slots__ = ("link", "method", "octets", "prefix", "timeout_ns")

    def __init__(self, link: Link, method: Method, timeout_ns: int) -> None:
        """`timeout_ns`: 0 for none."""
        self.link = link
        self.method = method
        self.timeout_ns = timeout_ns
        self.octets, self.prefix = -1, b""
        """Of the last message: its size with its prefix, and that."""

    def whole(self, data: bytes, start: int, end: int) -> bool:
        """Whether data[start:end] is one uncompressed message with its prefix."""
        size = end - start - PREFIX_BYTES
        if not 0 <= size <= self.link.limits.max_body_bytes:
            return False
        self.octets, self.prefix = end - start, prefix(size)
        return data.startswith(self.prefix, start)


def plan(link: Link, method: Method, head: Head) -> Plan | None:
    """For a call that was let in. None: each goes the long way. Raises RpcError."""
    if method.streams:
        return None
    return Plan(link, method, framing.timeout_ns(head.headers.get(b"grpc-timeout")))


class Quick(Stream):
    """One such call: stream, message and exchange in one. See service.Incoming and link.Exchange."""

    __slots__ = ("_link", "_share", "deadline_ns", "headers", "message", "peer", "received_ns")

    message: Buffer | Compressed
    headers: Mapping[bytes, bytes]
    peer: Peer
    received_ns: int
    deadline_ns: int
    _link: Link
    _share: Share | None  # that it counts in

    def on_whole(self, data: bytes, start: int, end: int) -> None:
        plan: Plan = self.head.plan
        self._link = link = plan.link
        body = start + PREFIX_BYTES
        last = end - start == plan.octets and data[start:body] == plan.prefix
        if not last and not plan.whole(data, start, end):
            self._long(data[start:end])
            return
        if link.guarded or link.machine.output.pending_bytes:
            try:
                link.let_in(self)
            except RpcError as exc:
                link.refuse(self, exc)
                return
        self.app = self
        share = link.share
        method = plan.method
        self._share = None
        if method.counted and share is not None:
            if not link.shares.begin(share, self.begun):
                link.finish(self, status.RESOURCE_EXHAUSTED, BUSY, begun=False)
                return
            self._share = share
        self.message = data[body:end] if end - body < _VIEW_FROM else memoryview(data)[body:end]
        self.received_ns = now = time.perf_counter_ns()
        self.deadline_ns = now + plan.timeout_ns if plan.timeout_ns else 0
        self.headers = self.head.headers
        self.peer = link.peer
        self.busy = True
        turns = link.turns
        before, turns.asking = turns.asking, share
        try:
            method.handler(self, self._answer)
        except Exception as exc:
            link.registry.failed(exc, self._answer)
        turns.asking = before

    def _long(self, data: bytes) -> None:
        """Not one message, or a compressed one: the way of all others."""
        sink = self._link.machine.sink
        sink.on_request(self)
        if not self.closed:
            sink.on_data(self, data)
        if not self.closed:
            sink.on_end(self)

    def _answer(self, reply: Reply) -> None:
        self.app = None  # or it would keep itself alive
        link = self._link
        if self._share is not None:
            link.shares.end(self._share)
        parts = reply.parts
        size = len(parts[0]) + len(parts[1]) if len(parts) == 2 else sum(map(len, parts))
        if (
            reply.code != status.OK
            or size > JOINED_BYTES
            or not link.machine.answer(self, USUAL, [_prefix(size), *parts], PREFIX_BYTES + size)
        ):
            link.reply(self, reply)
        link.touched()

    def on_data(self, chunk: Chunk) -> None:
        """All of it has come."""

    def on_end(self) -> None:
        """It has ended."""

    def on_reset(self) -> None:
        """The message is still in use; the answer will come."""

    def check_time(self, now: float) -> None:
        """Nothing is waited for that the client owes."""
