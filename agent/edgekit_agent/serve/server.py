"""Listening sockets, their connections, and the clock that none of them outlives."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit_agent.serve.access import Access, Refused, wanted, wanted_grpc
from edgekit_agent.serve.connection import Connection
from edgekit_agent.serve.grpc.budget import Budget
from edgekit_agent.serve.grpc.choose import Choice, Chosen
from edgekit_agent.serve.handshakes import Handshakes
from edgekit_agent.serve.http_tools import Respond, parts_of
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, error
from edgekit_agent.serve.peer import Peer
from edgekit_agent.serve.room import Ahead, Buffers, Room
from edgekit_agent.serve.safety import Safety
from edgekit_agent.serve.shares import Share, Shares, Turns
from edgekit_agent.serve.sink import RequestParser, Sink
from edgekit_agent.serve.tls import Tls
from edgekit_agent.tokens import Token

if TYPE_CHECKING:
    from edgekit_agent.serve.grpc.service import Registry

PARSERS = ("httptools", "python")
_BACKLOG = 256
_TICK_S = 0.5
_UNGUARDED = Safety()


def parser_factory(name: str, limits: Limits) -> Callable[[Sink], RequestParser]:
    """Make parsers of the kind `name`: one of PARSERS."""
    if name == "httptools":
        from edgekit_agent.serve import parser_httptools

        return parser_httptools.Parser
    from edgekit_agent.serve import parser_python

    return lambda sink: parser_python.Parser(sink, limits.max_header_bytes)


def best_parser() -> str:
    """httptools where it is installed, else the one without dependencies."""
    return "httptools" if importlib.util.find_spec("httptools") else "python"


class Server:
    """HTTP/1.1 and HTTP/2 on sockets that listen already.

    They are duplicated, so closing here leaves the originals open.
    """

    def __init__(
        self,
        handle: Callable[[Request, Respond], None],
        limits: Limits,
        parser: str = "",
        safety: Safety = _UNGUARDED,
        waiting: Callable[[], int] = lambda: 0,
        turns: Turns | None = None,
        grpc: Callable[[], Registry] | None = None,
        least_ahead: Callable[[], int] = lambda: 2,
    ) -> None:
        """`handle`: answers one request, as Router's does; `parser`: one of PARSERS, empty for the best.
        `waiting`: inference requests that wait for the engine now; `turns`: told who asks.
        `grpc`: makes what is called over HTTP/2, when the first client speaks it; without it only HTTP/1.1 is
        spoken. `least_ahead`: requests beyond the running ones that the engine should find when it is free.

        Raises ConfigError: files of `safety` that are not what they should be.
        """
        self.limits = limits
        self.turns = turns or Turns()
        self.handle = self._handle_guarded if safety.tokens else handle
        self.draining = False
        self.access = Access(Path(safety.tokens)) if safety.tokens else None
        self._handle = handle
        buffered = max(limits.max_buffered_bytes, 2 * limits.max_body_bytes)
        self.shares = Shares(limits.max_connections, limits.max_queue, buffered, waiting)
        self.budget = Budget(self.shares)
        self.room = Room(Ahead(limits.max_ahead_bytes, least_ahead), Buffers(limits.max_ahead_bytes))
        self._grpc = grpc
        self._registry: Registry | None = None
        offered = ("http/1.1",) if grpc is None else ("h2", "http/1.1")
        self._tls = Tls(safety, offered) if safety.tls_cert else None
        self._parser = parser_factory(parser or best_parser(), limits)
        self._connections: set[Chosen] = set()
        self._servers: list[asyncio.Server | Handshakes] = []
        self._listeners: Sequence[socket.socket] = ()
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._clock = self._loop.call_later(_TICK_S, self._tick)

    @property
    def connections(self) -> int:
        return len(self._connections)

    def lone(self) -> bool:
        """Whether there is one connection only, and that asks one thing at a time."""
        return len(self._connections) == 1 and all(one.lone for one in self._connections)

    async def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Begin to accept."""
        self._listeners = listeners
        for listener in listeners:
            copy = listener.dup()
            copy.setblocking(False)
            if self._tls is not None and copy.family != socket.AF_UNIX:
                self._servers.append(Handshakes(copy, self._tls.context, self._connection))
                continue
            # Not create_unix_server: it may unlink the path when closed, and the path is the supervisor's.
            server = await self._loop.create_server(self._connection, sock=copy, backlog=_BACKLOG)
            self._servers.append(server)

    async def drain(self, timeout_s: float, grace_s: float = 0.0, *, last: bool = False) -> bool:
        """Stop accepting, answer what is begun, close. False when `timeout_s` passed before that.

        Idle connections may ask once more for `grace_s`; the answer closes them. `last`: nobody accepts
        afterwards, hence serve what waits to be accepted, and have the rest refused.
        """
        self.draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        if last:
            await asyncio.gather(*map(self._accept_rest, self._listeners))
        begin = self.now()
        deadline = begin + timeout_s
        while self._connections:
            for connection in list(self._connections):
                if self.now() >= begin + grace_s:
                    connection.close_if_idle()
            if self.now() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    async def _accept_rest(self, listener: socket.socket) -> None:
        context = self._tls.context if self._tls is not None and listener.family != socket.AF_UNIX else None
        accepted: list[socket.socket] = []
        with contextlib.suppress(OSError):  # would block: there is no more
            while len(accepted) < self.limits.max_connections:
                accepted.append(listener.accept()[0])
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)  # for everybody who holds this socket: a client is refused
        connecting = [
            self._loop.connect_accepted_socket(self._connection, sock, ssl=context) for sock in accepted
        ]
        await asyncio.gather(*connecting, return_exceptions=True)

    def refused(self, peer: Peer, method: bytes, target: bytes, token: bytes | None) -> Refused | None:
        """Why a request over HTTP may not be made; None: it may. `token`: its Authorization.

        Whoever shows a good token is one client with everybody else who shows it.
        """
        if self.access is None or peer.unix:
            return None
        return self._found(peer, self.access.check(wanted(method, parts_of(target)), token))

    def refused_call(self, peer: Peer, path: bytes, token: bytes | None) -> Refused | None:
        """The same for a call of gRPC."""
        if self.access is None or peer.unix:
            return None
        return self._found(peer, self.access.check(wanted_grpc(path.decode("latin-1")), token))

    def _found(self, peer: Peer, found: Token | Refused | None) -> Refused | None:
        if isinstance(found, Refused):
            return found
        if found is not None:
            peer.key = f"token:{found.id}"
        return None

    def _handle_guarded(self, request: Request, respond: Respond) -> None:
        token = request.headers.get(b"authorization")
        refused = self.refused(request.peer, request.method, request.target, token)
        if refused is None:
            self._handle(request, respond)
        else:
            respond(error(refused.status, refused.text, refused.extra))

    def opened(self, connection: Chosen, share: Share | None = None) -> bool:
        """Count a connection; False when it is one too many, for all or for its client."""
        self._connections.add(connection)
        if share is not None and self.shares.crowded(share):
            return False
        return len(self._connections) <= self.limits.max_connections or self._make_room(connection, share)

    def closed(self, connection: Chosen) -> None:
        self._connections.discard(connection)

    def _make_room(self, newcomer: Chosen, share: Share | None) -> bool:
        """End an idle connection of the client that has most, if that is more than the newcomer's."""
        most, greedy = share.connections if share is not None else 0, None
        for one in self._connections:
            if one.idle and one is not newcomer and one.share is not None and one.share.connections > most:
                most, greedy = one.share.connections, one
        if greedy is not None:
            greedy.close_if_idle()
        return greedy is not None

    def close(self) -> None:
        """At once: what is not answered never will be. `drain` first for a friendly end."""
        self._clock.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()

    def _connection(self) -> asyncio.Protocol:
        return self._one() if self._grpc is None else Choice(self, self._one, self._two)

    def _one(self) -> asyncio.Protocol:
        return Connection(self, self._parser)

    def _two(self) -> asyncio.Protocol:
        from edgekit_agent.serve.grpc.connection import Connection  # on many devices nobody calls it

        return Connection(self, self.registry())

    def registry(self) -> Registry:
        """What is called over HTTP/2; only where that is spoken."""
        if self._registry is None:
            assert self._grpc is not None  # noqa: S101 - see above
            self._registry = self._grpc()
        return self._registry

    def _tick(self) -> None:
        now = self.now()
        for connection in list(self._connections):
            connection.check_time(now)
        self.budget.serve()
        self.room.buffers.tend()
        if self.access is not None:
            self.access.refresh()
        if self._tls is not None:
            self._tls.refresh()
        self._clock = self._loop.call_later(_TICK_S, self._tick)
