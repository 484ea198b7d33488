"""Both clients behind one face, and servers that answer whatever a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from edgekit.client import AsyncClient, Client

KINDS = ("sync", "async")


class Awaited:
    """An AsyncClient whose calls block, on an event loop of its own thread."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

        async def make() -> AsyncClient:
            return AsyncClient(*args, **options)

        try:
            self._client = self._wait(make())
        except BaseException:
            self._end()
            raise

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)
        return lambda *args, **options: self._wait(method(*args, **options))

    def __enter__(self) -> Awaited:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._client.close())
        self._wait(asyncio.sleep(0.01))  # the transports' last callbacks
        self._end()

    def _wait(self, awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, self._loop).result(60)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def client(kind: str, *args: Any, **options: Any) -> Any:
    """A Client, or an AsyncClient that behaves like one."""
    return Client(*args, **options) if kind == "sync" else Awaited(*args, **options)


class Scripted:
    """Answers connection after connection with the bytes of `answers`, one per request; then it is silent.

    An empty answer is the end of the connection, as is every answer with `close`.
    """

    def __init__(self, *answers: bytes, close: bool = False) -> None:
        self.requests: list[bytes] = []
        self._answers = list(answers)
        self._close = close
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._held:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._held.append(sock)
                with contextlib.suppress(OSError):
                    while request := _request(sock):
                        self.requests.append(request)
                        if not self._answers:
                            break  # silent: the client has to give up by itself
                        answer = self._answers.pop(0)
                        sock.sendall(answer)
                        if self._close or not answer:
                            sock.shutdown(socket.SHUT_RDWR)
                            break


def _request(sock: socket.socket) -> bytes:
    """One whole request; empty when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = (line.lower() for line in head.split(b"\r\n"))
    size = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < size:
        more = sock.recv(65536)
        if not more:
            return b""
        body += more
    return head + b"\r\n\r\n" + body


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address that refuses connections for as long as it is held."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
