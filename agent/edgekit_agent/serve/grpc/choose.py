"""Which protocol a new connection speaks, by its first octets: the same socket serves HTTP/1.1 and HTTP/2.

RFC 9113 section 3.3 (prior knowledge); with TLS, ALPN has agreed on the same before (section 3.2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from edgekit_agent.serve import peer
from edgekit_agent.serve.grpc.h2.frames import PREFACE
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import error
from edgekit_agent.serve.shares import Share, Shares


class Chosen(Protocol):
    """What a server does with a connection of either kind."""

    @property
    def idle(self) -> bool: ...
    @property
    def share(self) -> Share | None: ...
    @property
    def lone(self) -> bool: ...
    def check_time(self, now: float) -> None: ...
    def close_if_idle(self) -> None: ...
    def abort(self) -> None: ...


class Server(Protocol):
    limits: Limits
    now: Callable[[], float]
    shares: Shares

    def opened(self, connection: Chosen, share: Share | None = None) -> bool: ...
    def closed(self, connection: Chosen) -> None: ...


class Choice(asyncio.Protocol):
    """Waits for as many octets as tell HTTP/2's preface from a request line, then gives its place away."""

    idle = lone = True

    def __init__(
        self, server: Server, one: Callable[[], asyncio.Protocol], two: Callable[[], asyncio.Protocol]
    ) -> None:
        """`one` and `two` make protocols for HTTP/1.1 and HTTP/2."""
        self._server = server
        self._one, self._two = one, two
        self._data = b""
        self._transport: asyncio.Transport | None = None
        self._begun = server.now()
        self.share: Share | None = None

    def check_time(self, now: float) -> None:
        limits, transport = self._server.limits, self._transport
        limit = limits.read_timeout_s if self._data else limits.idle_timeout_s
        if transport is None or now - self._begun <= limit:
            return
        if self._data:
            late = error(408, f"the request took longer than {limits.read_timeout_s:g} s to arrive")
            transport.write(late.head(close=True) + late.body)
        transport.close()

    def close_if_idle(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.share = self._server.shares.join(peer.of(transport).key)
        if not self._server.opened(self, self.share):
            self._become(self._one)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._leave()

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        if data[:3] == b"PRI":
            self._data = data
            self._become(self._two)
        elif PREFACE.startswith(data):
            self._data = data
        else:
            self._data = data
            self._become(self._one)

    def _become(self, make: Callable[[], asyncio.Protocol]) -> None:
        transport, self._transport = self._transport, None
        if transport is None:
            return
        self._leave()
        protocol = make()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if self._data:
            protocol.data_received(self._data)

    def _leave(self) -> None:
        self._server.closed(self)
        if self.share is not None:
            self._server.shares.leave(self.share)
            self.share = None
