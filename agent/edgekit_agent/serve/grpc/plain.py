"""Ordinary HTTP requests that come over HTTP/2: curl and browsers choose it by themselves with TLS."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgekit_agent.serve.grpc.budget import Lease
from edgekit_agent.serve.grpc.h2 import hpack
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.h2.stream import Stream
from edgekit_agent.serve.grpc.link import Link
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.http_tools import RETRY
from edgekit_agent.serve.message import Request, Response, error
from edgekit_agent.serve.shares import Share

Handle = Callable[[Request, Callable[[Response], None]], None]
_CONNECTION = frozenset(("connection", "keep-alive", "transfer-encoding", "upgrade"))


class Plain:
    """See link.Exchange. The request goes the way that it would go over HTTP/1.1."""

    def __init__(self, link: Link, stream: Stream, handle: Handle) -> None:
        self._link = link
        self._stream = stream
        self._handle = handle
        self._body: bytes | bytearray = b""
        self._leases: list[Lease | None] = []
        self._share: Share | None = None  # that it counts in
        self._window = stream.receive_window
        self._done = False
        if stream.head.length > link.limits.max_body_bytes:
            self._too_large()
        elif stream.head.length > self._window:
            self._leases.append(link.lease(stream, stream.head.length - self._window))

    def on_data(self, chunk: Chunk) -> None:
        if self._done:
            return
        if not self._body:
            self._body = bytes(chunk)
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body) + chunk
        else:
            self._body += chunk
        if len(self._body) > self._link.limits.max_body_bytes:
            self._too_large()
        elif self._thirsty():
            self._leases.append(self._link.lease(self._stream, self._window))

    def _thirsty(self) -> bool:
        """Whether a body of unknown length is at the end of what it may send."""
        waiting = any(lease is not None and not lease.held for lease in self._leases)
        low = self._stream.receive_window < self._window // 2
        return self._stream.head.length < 0 and low and not waiting

    def on_end(self) -> None:
        if self._done:
            return
        head = self._stream.head
        request = Request(
            head.method, head.path, head.headers, bytes(self._body), True, time.perf_counter_ns()
        )
        request.peer = self._link.peer
        link = self._link
        if head.method == b"POST":  # what only reads is answered at once
            try:
                self._share = link.claim()
            except RpcError as exc:
                self._answer(error(429, exc.text, RETRY))
                return
        self._stream.busy = True
        link.work(link.share, lambda: self._handle(request, self._answer))

    def on_reset(self) -> None:
        if not self._stream.busy:
            self._end()

    def check_time(self, now: float) -> None:
        limit = self._link.limits.read_timeout_s
        if not self._done and not self._stream.remote_done and now - self._stream.begun > limit:
            self._answer(error(408, f"the request took longer than {limit:g} s to arrive"))

    def refuse(self, response: Response) -> None:
        """Answer now, whatever comes."""
        self._answer(response)

    def _too_large(self) -> None:
        self._answer(
            error(413, f"the body is larger than the {self._link.limits.max_body_bytes} bytes allowed")
        )

    def _answer(self, response: Response) -> None:
        if self._done:
            return
        self._end()
        machine, stream = self._link.machine, self._stream
        parts: list[Chunk] = [response.body, *response.tail]
        size = sum(part.nbytes if isinstance(part, memoryview) else len(part) for part in parts)
        bare = stream.head.method == b"HEAD" or not size
        machine.headers(stream, hpack.encode(_fields(response, size)), end=bare)
        if not bare:
            for part in parts:
                machine.data(stream, part.cast("B") if isinstance(part, memoryview) else part)
            machine.end(stream)
        self._link.touched()

    def _end(self) -> None:
        self._done = True
        self._body = b""
        for lease in self._leases:
            self._link.end(lease)
        self._link.yield_(self._share)


def _fields(response: Response, size: int) -> list[hpack.Field]:
    fields = [(b":status", str(response.status).encode()), (b"content-type", response.content_type.encode())]
    if response.json_size:
        fields.append((b"inference-header-content-length", str(response.json_size).encode()))
    for line in response.extra.split("\r\n"):
        name, colon, value = line.partition(":")
        if colon and name.lower() not in _CONNECTION:
            fields.append((name.lower().encode(), value.strip().encode()))
    fields.append((b"content-length", str(size).encode()))
    return fields
