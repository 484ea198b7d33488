"""Kept connections of the blocking client: plain sockets, one request at a time on each."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edgekit.client._address import Address
from edgekit.client._http import (
    END,
    MAX_HEAD_BYTES,
    Ask,
    Head,
    Lost,
    NotAnAgent,
    Reply,
    Unreachable,
    parse_head,
    reason,
    refused,
    room,
)
from edgekit.errors import SystemFault, TimedOut

if TYPE_CHECKING:
    import ssl

_AT_ONCE = 64 * 1024


class Connection:
    """Of no further use after an exchange that raised, or when `kept` is False."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        self._socket = sock
        self._address = address
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.kept = True

    def close(self) -> None:
        self._socket.close()

    def is_stale(self) -> bool:
        """Whether the agent has ended it (or speaks unasked) since the last answer."""
        return bool(self._poll.poll(0))

    def exchange(self, ask: Ask) -> Reply:
        """Raises Lost, TimedOut, NotAnAgent."""
        self.kept = False
        try:
            # An agent that refuses a long body answers early; what it said may be there to read.
            with suppress(BrokenPipeError, ConnectionResetError):
                self._send(ask)
            head, rest = self._head(ask)
            body = self._body(head, rest, ask.deadline)
        except TimeoutError:
            raise TimedOut(f"{self._address} gave no answer in time") from None
        except OSError as exc:
            raise refused(exc, self._address) or Lost(self._address) from None
        self.kept = head.keep_alive
        return Reply(head.status, body, head.json_size, head.retry_after_s)

    def _send(self, ask: Ask) -> None:
        parts = [ask.head(self._address), *ask.body]
        if sum(map(len, parts)) <= _AT_ONCE:
            parts = [b"".join(parts)]
        for part in parts:
            self._wait_until(ask.deadline)
            self._socket.sendall(part)

    def _head(self, ask: Ask) -> tuple[Head, bytes]:
        data = b""
        while True:
            at = data.find(END)
            if at >= 0:
                head = parse_head(data[:at], self._address, ask.max_answer)
                data = data[at + len(END) :]
                if head.status >= 200:
                    return head, data
                continue  # 100 Continue and its like
            if len(data) > MAX_HEAD_BYTES:
                raise NotAnAgent(self._address, "its header has no end")
            self._wait_until(ask.deadline)
            more = self._socket.recv(_AT_ONCE)
            if not more:
                raise Lost(self._address)
            data += more

    def _body(self, head: Head, rest: bytes, deadline: float) -> memoryview:
        if len(rest) > head.length:
            raise NotAnAgent(self._address, "more bytes than it announced")
        first = room(head)
        body = np.empty(first + head.length, np.uint8).data[first:]
        body[: len(rest)] = rest
        at = len(rest)
        while at < head.length:
            self._wait_until(deadline)
            count = self._socket.recv_into(body[at:])
            if not count:
                raise Lost(self._address)
            at += count
        return body

    def _wait_until(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)


class Pool:
    """Connections to the first of `addresses` that can be reached, at most `size` at once. For threads."""

    def __init__(self, addresses: Sequence[Address], size: int, tls: Callable[[], ssl.SSLContext]) -> None:
        self._addresses = addresses
        self._size = size
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: list[Connection] = []
        self._free = threading.BoundedSemaphore(self._size)
        self.closed = False

    def close(self) -> None:
        self.closed = True
        while self._idle:
            self._idle.pop().close()

    def exchange(self, ask: Ask) -> Reply:
        """Raises Unreachable, Lost, TimedOut, NotAnAgent."""
        if self._pid != os.getpid():
            self._begin()  # after a fork the sockets are the parent's
        if self.closed:
            raise SystemFault("the client is closed", "make another")
        free = self._free
        if not free.acquire(timeout=max(0.0, ask.deadline - time.monotonic())):
            raise TimedOut(f"all {self._size} connections are in use", "allow more: connections=...")
        try:
            return self._exchange(ask)
        finally:
            free.release()

    def _exchange(self, ask: Ask) -> Reply:
        connection = self._kept()
        if connection is not None:
            try:
                return self._use(connection, ask)
            except Lost:  # it was kept too long, or the agent was restarted; the others are no better
                while self._idle:
                    self._idle.pop().close()
        return self._use(self._open(ask.deadline), ask)

    def _kept(self) -> Connection | None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                return None
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def _use(self, connection: Connection, ask: Ask) -> Reply:
        try:
            reply = connection.exchange(ask)
        except BaseException:
            connection.close()
            raise
        if connection.kept and not self.closed:
            self._idle.append(connection)
        else:
            connection.close()
        return reply

    def _open(self, deadline: float) -> Connection:
        reasons = []
        for address in self._addresses:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimedOut(f"{address} was not reached in time")
            try:
                return Connection(self._connect(address, left), address)
            except TimeoutError:
                reasons.append(f"{address}: no answer")
            except OSError as exc:
                if problem := refused(exc, address):
                    raise problem from None
                reasons.append(f"{address}: {reason(exc)}")
        raise Unreachable(f"no agent can be reached ({'; '.join(reasons)})", "is edgekit-agent running?")

    def _connect(self, address: Address, timeout_s: float) -> socket.socket:
        if address.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout_s)
            try:
                sock.connect(address.path)
            except BaseException:
                sock.close()
                raise
            return sock
        sock = socket.create_connection((address.host, address.port), timeout_s)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                self._tls = self._tls or self._make_tls()
                return self._tls.wrap_socket(sock, server_hostname=address.host)
        except BaseException:
            sock.close()
            raise
        return sock
