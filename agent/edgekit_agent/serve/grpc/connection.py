"""One HTTP/2 connection: bytes to the machine and back, requests to exchanges, and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from edgekit_agent.serve import peer
from edgekit_agent.serve.access import Refused
from edgekit_agent.serve.grpc import link, quick, status
from edgekit_agent.serve.grpc.calls import Call, Duplex
from edgekit_agent.serve.grpc.h2 import errors
from edgekit_agent.serve.grpc.h2.machine import Machine
from edgekit_agent.serve.grpc.h2.sink import Chunk, Config
from edgekit_agent.serve.grpc.h2.stream import Stream
from edgekit_agent.serve.grpc.link import Exchange, Link
from edgekit_agent.serve.grpc.plain import Handle, Plain
from edgekit_agent.serve.grpc.quick import Quick
from edgekit_agent.serve.grpc.service import Registry
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.message import error
from edgekit_agent.serve.peer import Peer
from edgekit_agent.serve.shares import Share

_MIN_STREAMS = 8
_LINGER_S = 2.0
_GOODBYE_S = 1.0
_GRPC = b"application/grpc"


class Server(link.Server, Protocol):
    """Whose connection it is: server.Server."""

    handle: Handle
    draining: bool
    now: Callable[[], float]

    def opened(self, connection: Connection, share: Share | None = None) -> bool: ...
    def closed(self, connection: Connection) -> None: ...
    def refused(self, peer: Peer, method: bytes, target: bytes, token: bytes | None) -> Refused | None: ...
    def refused_call(self, peer: Peer, path: bytes, token: bytes | None) -> Refused | None: ...


class Connection(asyncio.Protocol):
    """See module. Also the `Sink` of its machine."""

    def __init__(self, server: Server, registry: Registry) -> None:
        self._server = server
        limits = server.limits
        header = limits.max_header_bytes
        # What one client may have waiting: more are kept back by the client's library, not refused by us.
        streams = max(_MIN_STREAMS, limits.max_queue * 3 // 4)
        config = Config(max_streams=streams, max_block_bytes=header, max_list_bytes=header)
        self._machine = Machine(self, config, server.now(), Quick)
        self._link = Link(self._machine, server, registry, self._touched, self._permit)
        self._transport: asyncio.Transport | None = None
        self._receiving = False
        self._scheduled = False
        self._hung_up = False
        self._ended = False  # the client has closed its side
        self._quiet = server.now()  # when there was something to do
        self._stuck: float | None = server.now()  # since when the client owes the rest of a frame
        self._frames = 0
        self._blocked: float | None = None  # since when the client does not read
        self._left: float | None = None  # when we said that we leave

    # --- the server's clock

    def check_time(self, now: float) -> None:
        """Called now and then: end what is used up, slow or stuck."""
        limits, machine = self._server.limits, self._machine
        if self._transport is None:
            return
        if self._blocked is not None:
            if now - self._blocked > limits.write_timeout_s:
                self._transport.abort()
            return
        if self._hung_up:
            if now - self._quiet > _LINGER_S:
                self._transport.abort()
            return
        machine.resume(now)
        for stream in list(machine.streams.values()):
            exchange: Exchange | None = stream.app
            if stream.pending and now - stream.moved > limits.write_timeout_s:
                machine.reset(stream, errors.CANCEL)
            elif exchange is not None:
                exchange.check_time(now)
        if self._stuck is not None and now - self._stuck > limits.read_timeout_s:
            machine.fail(
                errors.PROTOCOL_ERROR, f"a frame took longer than {limits.read_timeout_s:g} s to arrive"
            )
        elif self.idle and now - self._quiet > limits.idle_timeout_s:
            machine.fail(errors.NO_ERROR, "idle")
        self._flush()

    @property
    def share(self) -> Share | None:
        return self._link.share

    @property
    def idle(self) -> bool:
        """Nothing is asked that is not answered."""
        return not self._machine.streams and not self._machine.orphans

    @property
    def lone(self) -> bool:
        """Nothing is asked beside what is being answered."""
        return len(self._machine.streams) + self._machine.orphans <= 1

    def close_if_idle(self) -> None:
        """Called again and again while the server ends: take no more requests, then close."""
        if self._transport is None or self._hung_up:
            return
        now = self._server.now()
        if self._left is None:
            self._left = now
            self._machine.leave()
            self._flush()
        elif self.idle and (self._machine.left or now - self._left > _GOODBYE_S):
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._link.peer = peer.of(transport)
        if not self._server.opened(self, self._link.join()):
            self._machine.fail(errors.ENHANCE_YOUR_CALM, "too many connections")
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._link.peer.close()
        self._machine.fail(errors.NO_ERROR, "the connection is gone")
        self._link.leave()
        self._server.closed(self)

    def eof_received(self) -> bool:
        """The client sends no more. What it has asked completely is answered all the same."""
        self._ended = True
        for stream in list(self._machine.streams.values()):
            if not stream.remote_done:
                self._machine.lose(stream)
        if self._machine.output.waiting:
            self._flush()
        asked = bool(self._machine.streams) and not self._hung_up
        # TLS ends both sides at once: asyncio would only log that it was asked not to.
        return asked and self._transport is not None and self._transport.can_write_eof()

    def pause_writing(self) -> None:
        """The client does not read: neither do we."""
        self._blocked = self._server.now()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._blocked = None
        if self._transport is not None:
            self._transport.resume_reading()
        self._machine.resume(self._server.now())
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._hung_up:
            return
        self._quiet = now = self._server.now()
        machine = self._machine
        self._receiving = True
        usual = machine.receive(data, now)
        self._receiving = False
        if usual or not machine.mid_frame:
            self._stuck = None
        elif self._stuck is None or machine.frames != self._frames:
            self._stuck, self._frames = now, machine.frames
        if machine.output.queued or machine.closed or machine.peer_leaves or self._ended:
            self._flush()

    # --- the machine

    def on_request(self, stream: Stream) -> None:
        try:
            stream.app = self._exchange(stream)
        except RpcError as exc:
            self._link.refuse(stream, exc)

    def on_data(self, stream: Stream, chunk: Chunk) -> None:
        stream.app.on_data(chunk)

    def on_end(self, stream: Stream) -> None:
        stream.app.on_end()

    def on_reset(self, stream: Stream) -> None:
        if stream.app is not None:
            stream.app.on_reset()

    def _exchange(self, stream: Stream) -> Exchange:
        """Raises RpcError."""
        head = stream.head
        kind = head.headers.get(b"content-type", b"")
        if head.method != b"POST" or not kind.startswith(_GRPC):
            plain = Plain(self._link, stream, self._server.handle)
            token = head.headers.get(b"authorization")
            refused = self._server.refused(self._link.peer, head.method, head.path, token)
            if refused is not None:  # before its body is taken
                plain.refuse(error(refused.status, refused.text, refused.extra))
            self._rejoin()
            return plain
        if kind[len(_GRPC) :].partition(b";")[0].strip() not in (b"", b"+proto"):
            raise RpcError(status.UNIMPLEMENTED, "messages must be protocol buffers: application/grpc")
        link = self._link
        link.let_in(stream)
        method, span = link.registry.find(head.path), link.span(stream)
        made = Duplex(link, stream, span) if method.streams else Call(link, stream, span)
        if span is None:
            head.plan = quick.plan(link, method, head)
        return made

    def _permit(self, stream: Stream) -> None:
        """Raises RpcError: a call that may not be made, or not any more."""
        token = stream.head.headers.get(b"authorization")
        refused = self._server.refused_call(self._link.peer, stream.head.path, token)
        if refused is not None:
            raise RpcError(status.from_http(refused.status), refused.text)
        self._rejoin()

    def _rejoin(self) -> None:
        """A token says who the client is: that one's share counts from now on."""
        share = self._link.share
        if share is not None and share.key != self._link.peer.key:
            self._link.join()

    # --- out

    def _touched(self) -> None:
        """There is something to send: at once, or together with what follows."""
        machine, transport = self._machine, self._transport
        if self._receiving or transport is None:
            return
        if not machine.streams:
            usual = self._blocked is None and not machine.closed and not self._ended
            if usual and not machine.peer_leaves and not machine.output.waiting:
                transport.write(machine.output.take())
            else:
                self._flush()
        elif not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        transport, machine = self._transport, self._machine
        if transport is None:
            return
        output = machine.output
        self._write(transport)
        if output.waiting and self._ended and self._blocked is None:
            for stream in list(output.waiting.values()):  # no WINDOW_UPDATE will come
                machine.reset(stream, errors.CANCEL)
            self._write(transport)
        if machine.closed and output.empty and not self._hung_up:
            self._hang_up(transport)
        elif (machine.peer_leaves or self._ended) and self.idle:
            transport.close()

    def _write(self, transport: asyncio.Transport) -> None:
        """What the client's windows and the transport take."""
        machine = self._machine
        while machine.output.queued and self._blocked is None:
            transport.write(machine.output.take())
            if machine.output.waiting:
                machine.resume(self._server.now())

    def _hang_up(self, transport: asyncio.Transport) -> None:
        """After GOAWAY. A client that still sends is heard out for a moment, or it would not read why."""
        self._hung_up = True
        self._quiet = self._server.now()
        if transport.can_write_eof():
            transport.write_eof()
        else:
            transport.close()
