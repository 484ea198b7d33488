"""The serving process's end of the socket pair to its supervisor; see ipc.py."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edgekit_agent import ipc
from edgekit_agent.messages import Message


class AsyncChannel:
    """The serving process's end, on the running loop."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decoder = ipc.Decoder()
        self._ready: deque[ipc.Received] = deque()
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()

    async def receive(self) -> ipc.Received:
        """The next message. Raises Closed, ConfigError."""
        while not self._ready:
            await self._until(self._loop.add_reader, self._loop.remove_reader)
            with suppress(BlockingIOError):
                self._ready += self._decoder.feed(*ipc.receive(self._sock))
        return self._ready.popleft()

    async def send(self, message: Message) -> None:
        """Raises Closed. Answers carry no descriptors."""
        frame = memoryview(ipc.encode(message, ()))
        async with self._sending:
            while frame:
                try:
                    frame = frame[ipc.send(self._sock, frame, ()) :]
                except BlockingIOError:
                    await self._until(self._loop.add_writer, self._loop.remove_writer)

    async def _until(self, watch: Callable[..., Any], unwatch: Callable[..., Any]) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        watch(self._sock, lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            unwatch(self._sock)

    def close(self) -> None:
        self._decoder.close()
        self._sock.close()
