"""Listening sockets, their connections, and the clock that none of them outlives."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
from collections.abc import Callable, Sequence

from edgekit_agent.serve.connection import Connection
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request
from edgekit_agent.serve.sink import RequestParser

PARSERS = ("httptools", "python")
_BACKLOG = 256
_TICK_S = 0.5


def parser_factory(name: str, limits: Limits) -> Callable[[Connection], RequestParser]:
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
    """HTTP on sockets that listen already; they are duplicated, so closing here leaves the originals open."""

    def __init__(self, handle: Callable[[Request, Respond], None], limits: Limits, parser: str = "") -> None:
        """`handle`: answers one request, as Router's does; `parser`: one of PARSERS, empty for the best."""
        self.limits = limits
        self.handle = handle
        self.draining = False
        self._parser = parser_factory(parser or best_parser(), limits)
        self._connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self._clock = self._loop.call_later(_TICK_S, self._tick)

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def listen(self, listeners: Sequence[socket.socket]) -> None:
        """Begin to accept."""
        for listener in listeners:
            copy = listener.dup()
            copy.setblocking(False)
            # Not create_unix_server: it may unlink the path when closed, and the path is the supervisor's.
            server = await self._loop.create_server(self._connection, sock=copy, backlog=_BACKLOG)
            self._servers.append(server)

    async def drain(self, timeout_s: float) -> bool:
        """Stop accepting, answer what is begun, close. False when `timeout_s` passed before that."""
        self.draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        deadline = self.now() + timeout_s
        while self._connections:
            for connection in list(self._connections):
                connection.close_if_idle()
            if self.now() > deadline:
                return False
            await asyncio.sleep(0.01)
        return True

    def opened(self, connection: Connection) -> bool:
        """Count a connection; False when it is one too many."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.max_connections

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def close(self) -> None:
        """At once: what is not answered never will be. `drain` first for a friendly end."""
        self._clock.cancel()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.abort()

    def _connection(self) -> Connection:
        return Connection(self, self._parser)

    def _tick(self) -> None:
        now = self.now()
        for connection in list(self._connections):
            connection.check_time(now)
        self._clock = self._loop.call_later(_TICK_S, self._tick)
