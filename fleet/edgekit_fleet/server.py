"""The two HTTPS listeners in one event loop, on sockets that are bound before anything starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette

from edgekit.errors import SystemFault
from edgekit_fleet.tls import PeerProtocol

GRACE_S = 5


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: `up` has one for the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make(app: Starlette, tls: ssl.SSLContext) -> Server:
    def context(*_: Any) -> ssl.SSLContext:
        return tls

    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
        ssl_context_factory=context,
    )
    return Server(config)


async def started(servers: list[Server], tasks: list[asyncio.Task[None]]) -> None:
    """Return when all of them accept requests. Raises SystemFault when one ended instead."""
    while not all(server.started for server in servers):
        if any(task.done() for task in tasks):
            raise SystemFault("a listener did not start", "see the log above")
        await asyncio.sleep(0.01)


def listen(bound: socket.socket, what: str) -> socket.socket:
    """Raises SystemFault when another program was faster on the same port."""
    try:
        bound.listen(1024)
    except OSError as exc:
        raise SystemFault(f"cannot listen for {what}: {exc.strerror}", "choose another port") from None
    bound.setblocking(False)
    return bound
