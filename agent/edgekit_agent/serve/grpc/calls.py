"""gRPC calls on streams: one message each way, or many (grpc doc/PROTOCOL-HTTP2.md)."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from edgekit_agent.serve.grpc import framing, status
from edgekit_agent.serve.grpc.budget import Lease
from edgekit_agent.serve.grpc.framing import Compressed, Messages
from edgekit_agent.serve.grpc.h2 import guard
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.h2.stream import Stream
from edgekit_agent.serve.grpc.link import Link
from edgekit_agent.serve.grpc.service import Arrived, Incoming, Method, Reply
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.shares import Share
from edgekit_agent.serve.trace import Span

MAX_IN_FLIGHT = 16
"""Messages of one streaming call that are worked on at the same time."""


class _Base:
    """What both kinds of calls share: a method, the request's messages, memory for the one at hand."""

    __slots__ = (
        "_begun_ns", "_bytes_in", "_bytes_out", "_deadline_ns", "_done", "_lease", "_link", "_messages",
        "_method", "_span", "_stream",
    )  # fmt: skip

    def __init__(self, link: Link, stream: Stream, span: Span | None) -> None:
        """Raises RpcError."""
        headers = stream.head.headers
        self._span = span
        self._begun_ns = time.perf_counter_ns()
        self._bytes_in = self._bytes_out = 0  # of messages
        self._link = link
        self._stream = stream
        self._method: Method = link.registry.find(stream.head.path)
        timeout = framing.timeout_ns(headers.get(b"grpc-timeout"))
        self._deadline_ns = self._begun_ns + timeout if timeout else 0
        encoding = headers.get(b"grpc-encoding")
        if encoding is not None:
            framing.check_encoding(encoding)
        self._messages = Messages(link.limits.max_body_bytes, link.buffers)
        self._lease: Lease | None = None
        self._done = False

    def _feed(self, chunk: Chunk) -> None:
        """Take octets; ask for memory when the message at hand is longer than the window. Raises RpcError."""
        self._messages.feed(chunk)
        self._ask()

    def _ask(self) -> None:
        if self._lease is not None:
            return
        missing = self._messages.missing() - self._stream.receive_window - self._stream.coming
        if missing > 0:
            self._lease = self._link.lease(self._stream, missing)

    def _incoming(self, compressed: bool, message: framing.Buffer) -> Incoming:
        headers = self._stream.head.headers
        self._bytes_in += len(message)
        whole: framing.Buffer | Compressed = message
        if compressed:
            whole = Compressed(message, headers.get(b"grpc-encoding", b"identity"))
        return Arrived(whole, time.perf_counter_ns(), self._deadline_ns, headers, self._link.peer)

    def _note(self, code: int) -> None:
        """The call has ended."""
        if self._span is not None:
            sizes = self._bytes_in, self._bytes_out
            self._link.note(self._span, self._stream, code, self._begun_ns, sizes)


class Call(_Base):
    """One request, one answer. See link.Exchange."""

    __slots__ = ("_share",)

    def __init__(self, link: Link, stream: Stream, span: Span | None) -> None:
        super().__init__(link, stream, span)
        self._share: Share | None = None  # that it counts in

    def on_data(self, chunk: Chunk) -> None:
        if self._done:
            return
        try:
            self._feed(chunk)
        except RpcError as exc:
            self._answer(Reply(code=exc.code, text=exc.text))

    def on_end(self) -> None:
        if self._done:
            return
        try:
            taken = self._messages.take()
            if taken is None:
                raise RpcError(status.INVALID_ARGUMENT, "the request ends before its message does")
            if not self._messages.empty:
                raise RpcError(status.UNIMPLEMENTED, "more than one request message in a unary call")
            incoming = self._incoming(*taken)
            if self._method.counted:
                self._share = self._link.claim()
        except RpcError as exc:
            self._answer(Reply(code=exc.code, text=exc.text))
            return
        self._stream.busy = True
        link = self._link
        link.work(link.share, lambda: link.registry.call(self._method, incoming, self._answer))

    def on_reset(self) -> None:
        if not self._stream.busy:  # else the message is still in use
            self._end()

    def check_time(self, now: float) -> None:
        limit = self._link.limits.read_timeout_s
        if not self._done and not self._stream.remote_done and now - self._stream.begun > limit:
            text = f"the request took longer than {limit:g} s to arrive"
            self._answer(Reply(code=status.DEADLINE_EXCEEDED, text=text))

    def _answer(self, reply: Reply) -> None:
        link, stream = self._link, self._stream
        if self._done:
            return
        self._end()
        self._bytes_out = sum(map(len, reply.parts))
        link.reply(stream, reply, self._span)
        self._note(reply.code)
        link.touched()

    def _end(self) -> None:
        self._done = True
        self._link.end(self._lease)
        self._link.yield_(self._share)


@dataclass(slots=True)
class _Slot:
    """A request of a streaming call that waits for its turn to be answered."""

    lease: Lease | None
    share: Share | None
    reply: Reply | None = None


class Duplex(_Base):
    """Many requests, many answers, in order. See link.Exchange.

    The window opens again only as messages are taken, and they are taken only as others are answered.
    """

    __slots__ = ("_begun", "_heard", "_pumping", "_since", "_slots", "_window")

    def __init__(self, link: Link, stream: Stream, span: Span | None) -> None:
        super().__init__(link, stream, span)
        self._slots: deque[_Slot] = deque()
        self._begun = False
        self._pumping = False
        self._window = stream.receive_window
        self._heard = stream.begun
        self._since: float | None = None  # when the message at hand began

    def on_data(self, chunk: Chunk) -> None:
        if self._done:
            return
        self._heard = self._link.machine.now
        self._messages.feed(chunk)
        self._pump()

    def on_end(self) -> None:
        self._pump()

    def on_reset(self) -> None:
        self._done = True
        self._link.end(self._lease)
        # Messages that are worked on keep theirs until they are answered.

    def check_time(self, now: float) -> None:
        limits = self._link.limits
        if self._done:
            return
        try:
            self._link.permit(self._stream)  # a token may be revoked in the middle of a call
        except RpcError as exc:
            self._finish(exc.code, exc.text)
            return
        if self._slots:
            return
        if self._deadline_ns and time.perf_counter_ns() > self._deadline_ns:
            self._finish(status.DEADLINE_EXCEEDED, "the call's deadline has passed")
        elif self._since is not None and now - self._since > limits.read_timeout_s:
            self._finish(status.DEADLINE_EXCEEDED, f"a message took longer than {limits.read_timeout_s:g} s")
        elif now - self._heard > limits.idle_timeout_s:
            self._finish(status.UNAVAILABLE, f"nothing was asked for {limits.idle_timeout_s:g} s")

    def _pump(self) -> None:
        """Work on as many messages as may be at once, then let the client send more."""
        if self._pumping or self._done:
            return
        self._pumping = True
        try:
            while len(self._slots) < MAX_IN_FLIGHT and not self._done:
                taken = self._messages.take()
                if taken is None:
                    break
                self._since = None
                slot = _Slot(self._lease, self._link.claim())
                self._lease = None
                self._slots.append(slot)
                self._stream.busy = True
                self._call(self._incoming(*taken), slot)
            if not self._done and len(self._slots) < MAX_IN_FLIGHT:
                self._wait()
        except RpcError as exc:
            self._finish(exc.code, exc.text)
        self._pumping = False

    def _wait(self) -> None:
        """No message is whole: see to it that one can be, or end the call. Raises RpcError."""
        if self._stream.remote_done:
            if not self._messages.empty:
                raise RpcError(status.INVALID_ARGUMENT, "the call ends in the middle of a message")
            if not self._slots:
                self._finish()
            return
        if self._messages.empty:
            self._since = None
        elif self._since is None:
            self._since = self._link.machine.now
        open_now = self._stream.receive_window + self._stream.coming
        if open_now < self._window // 2:
            self._link.machine.grant(self._stream, self._window - open_now)
        self._ask()

    def _call(self, incoming: Incoming, slot: _Slot) -> None:
        def answer(reply: Reply) -> None:
            slot.reply = reply
            self._link.end(slot.lease)
            self._link.yield_(slot.share)
            self._send()
            self._pump()

        link = self._link
        link.work(link.share, lambda: link.registry.call(self._method, incoming, answer))

    def _send(self) -> None:
        """The answers whose turn it is."""
        link, stream = self._link, self._stream
        while self._slots and (reply := self._slots[0].reply) is not None:
            self._slots.popleft()
            if self._done:
                continue
            if reply.code != status.OK:
                self._finish(reply.code, reply.text)
                continue
            if not self._begun:
                self._begun = True
                link.begin(stream, self._span)
            link.message(stream, reply)
            self._bytes_out += sum(map(len, reply.parts))
            link.machine.guard.earn(guard.ANSWER)
            link.touched()
        if not self._slots:
            self._heard = link.machine.now
            if self._done:
                link.machine.end(stream)  # an orphan's place is free
            else:
                stream.busy = False

    def _finish(self, code: int = status.OK, text: str = "") -> None:
        self._done = True
        self._link.end(self._lease)
        if code == status.OK and not self._begun:
            self._link.begin(self._stream, self._span)
            self._begun = True
        self._link.finish(self._stream, code, text, begun=self._begun, span=self._span)
        self._note(code)
        self._link.touched()
