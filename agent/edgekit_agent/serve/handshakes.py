"""Accepts TLS connections. A handshake costs us more than the client, so few are under way at once."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from ssl import SSLContext

from edgekit_agent.serve.peer import host_of

HANDSHAKE_S = 10.0
"""A client that has not finished by then is cut off."""
_SHUTDOWN_S = 2.0
MAX_PENDING = 64
MAX_PENDING_PER_HOST = 16
_PAUSE_S = 0.1


class Handshakes:
    """On one listening socket, which is closed by `close`."""

    def __init__(
        self, listener: socket.socket, context: SSLContext, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._listener = listener
        self._context = context
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._pending: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def close(self) -> None:
        """Accept no more. Handshakes that are under way go on."""
        self._accepting.cancel()
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # no descriptors left, or the client has gone already
                await asyncio.sleep(_PAUSE_S)
                continue
            host = host_of(sock)
            if self._pending.total() >= MAX_PENDING or self._pending[host] >= MAX_PENDING_PER_HOST:
                sock.close()
                continue
            self._pending[host] += 1
            task = self._loop.create_task(self._shake(sock, host))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _shake(self, sock: socket.socket, host: str) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._factory, sock, ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=_SHUTDOWN_S,
            )  # fmt: skip
        except OSError:  # SSLError is one
            sock.close()  # the client's business
        finally:
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]
