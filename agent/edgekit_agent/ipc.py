"""Frames over the socket pair between supervisor and serving process, and who blocks where.

A frame is a 4-byte big-endian length, then that many bytes of JSON {"type", "body"}; its file
descriptors ride on its first bytes (SCM_RIGHTS). Frames and descriptors are bounded, because a serving
process that was taken over by a bad model must not harm the supervisor.

    Client        supervisor's side: thread-safe, `call` waits for the answer with the same id
    AsyncChannel  serving's side, on the asyncio loop: ipc_async.py, for the supervisor needs no loop
    Channel       plain blocking send and receive, used by both of the above's tests and by the probe
"""

from __future__ import annotations

import array
import errno
import itertools
import os
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

from edgekit import codec
from edgekit.errors import ConfigError, SystemFault
from edgekit_agent.messages import Message, descriptors, type_of

M = TypeVar("M", bound=Message)
Received = tuple[Message, list[int]]

MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_DESCRIPTORS = 128  # the kernel takes 253 at most
_LENGTH = struct.Struct("!I")
# struct timeval; its words have 64 bits where a 32-bit system counts time in 64 (SO_SNDTIMEO_NEW).
_SEND_TIMEOUT = struct.pack("@qq" if socket.SO_SNDTIMEO == 67 else "@ll", 10, 0)
_READ_BYTES = 256 * 1024
_ANCILLARY = socket.CMSG_SPACE(253 * array.array("i").itemsize)


class Closed(SystemFault):
    """The other side is gone."""


def encode(message: Message, fds: Sequence[int]) -> bytes:
    """The frame of `message`. Raises ConfigError for a wrong number of descriptors or too large a frame."""
    if len(fds) != descriptors(message) or len(fds) > MAX_DESCRIPTORS:
        raise ConfigError(f"control message: {len(fds)} files, {descriptors(message)} named")
    body = codec.to_json({"type": type(message).__name__, "body": message})
    if len(body) > MAX_FRAME_BYTES:
        raise ConfigError(f"control message: {len(body)} bytes, more than the {MAX_FRAME_BYTES} allowed")
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Bytes and descriptors in, messages out. Owns descriptors until a message takes them."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: deque[int] = deque()

    def feed(self, data: bytes, fds: Sequence[int]) -> list[Received]:
        """Every message that is complete now. Raises ConfigError for a frame that breaks the rules."""
        self._data += data
        self._fds += fds
        if len(self._fds) > MAX_DESCRIPTORS:
            raise ConfigError("control message: too many files")
        ready = []
        while (frame := self._take()) is not None:
            ready.append(self._message(frame))
        return ready

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popleft())

    def _take(self) -> bytes | None:
        if len(self._data) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._data)
        if size > MAX_FRAME_BYTES:
            raise ConfigError(f"control message: {size} bytes, more than the {MAX_FRAME_BYTES} allowed")
        if len(self._data) < _LENGTH.size + size:
            return None
        frame = bytes(self._data[_LENGTH.size : _LENGTH.size + size])
        del self._data[: _LENGTH.size + size]
        return frame

    def _message(self, frame: bytes) -> Received:
        what = "control message"
        plain = codec.parse_json(frame, what=what, max_bytes=MAX_FRAME_BYTES)
        if not isinstance(plain, dict) or set(plain) != {"type", "body"}:
            raise ConfigError(f"{what}: expected type and body")
        message: Message = codec.from_plain(type_of(plain["type"]), plain["body"], what=what)
        wanted = descriptors(message)
        if wanted > len(self._fds):
            raise ConfigError(f"{what}: {wanted} files named, {len(self._fds)} came")
        return message, [self._fds.popleft() for _ in range(wanted)]


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One recvmsg. Raises Closed at the end of the stream, ConfigError when descriptors were cut off."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(_READ_BYTES, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
    except OSError as exc:
        raise _hung_up(exc) from None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise ConfigError("control message: some files were cut off")
    if not data:
        raise Closed("control socket: the other side closed it")
    return data, list(fds)


def send(sock: socket.socket, frame: memoryview, fds: Sequence[int]) -> int:
    """One sendmsg; descriptors go with the first bytes. Returns how many bytes went."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        return sock.sendmsg([frame], rights, socket.MSG_NOSIGNAL)
    except OSError as exc:
        raise _hung_up(exc) from None


def _hung_up(exc: OSError) -> Exception:
    """Closed, where the other side has hung up or another thread of this one; `exc` itself otherwise."""
    if isinstance(exc, ConnectionError) or exc.errno == errno.EBADF:
        return Closed(f"control socket: {exc.strerror}")
    return exc


class Channel:
    """Blocking. `send` may be called by several threads, `receive` by one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._ready: deque[Received] = deque()
        self._sending = threading.Lock()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Raises Closed, or SystemFault when the socket's send timeout passes."""
        frame = memoryview(encode(message, fds))
        with self._sending:
            try:
                sent = send(self._sock, frame, fds)
                while sent < len(frame):
                    sent += send(self._sock, frame[sent:], ())
            except (TimeoutError, BlockingIOError):  # the latter is how Linux reports SO_SNDTIMEO
                raise SystemFault("control socket: the other side does not read") from None

    def receive(self) -> Received:
        """The next message. Raises Closed, ConfigError, or TimeoutError when the socket has a timeout."""
        while not self._ready:
            self._ready += self._decoder.feed(*receive(self._sock))
        return self._ready.popleft()

    def close(self) -> None:
        self._decoder.close()
        for _, fds in self._ready:
            for fd in fds:
                os.close(fd)
        self._ready.clear()
        self._sock.close()


class Client:
    """The supervisor's end: a reader thread, and `call` for any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        self._channel = Channel(sock)
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, Message] = {}
        self._waiting: dict[int, threading.Event] = {}
        self.gone = threading.Event()
        """Set as soon as the other side has ended or hung up."""
        self._thread = threading.Thread(target=self._read, name="serving-control", daemon=True)
        self._thread.start()

    def next_id(self) -> int:
        """A fresh id for a message."""
        return next(self._ids)

    def call(self, message: Message, answer: type[M], fds: Sequence[int] = (), *, timeout_s: float) -> M:
        """Send `message` (its id from `next_id`) and wait for its answer.

        Raises Closed when serving is gone, SystemFault when it does not answer within `timeout_s` seconds.
        """
        event = threading.Event()
        with self._lock:
            if self.gone.is_set():
                raise Closed("the serving process is gone")
            self._waiting[message.id] = event
        try:
            self._channel.send(message, fds)
            done = event.wait(timeout_s)
        finally:
            with self._lock:
                del self._waiting[message.id]
                found = self._answers.pop(message.id, None)
        name = type(message).__name__
        if found is None:
            if done:
                raise Closed(f"the serving process died before it answered {name}")
            raise SystemFault(f"the serving process did not answer {name} within {timeout_s:g} s")
        if not isinstance(found, answer):
            raise SystemFault(f"the serving process answered {name} with {type(found).__name__}")
        return found

    def tell(self, message: Message) -> None:
        """Send without waiting: Shutdown has no answer."""
        self._channel.send(message)

    def close(self) -> None:
        """Hang up: waiting calls raise Closed, and serving exits when it notices."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _read(self) -> None:
        try:
            while True:
                message, fds = self._channel.receive()
                for fd in fds:  # serving has no reason to send us any
                    os.close(fd)
                with self._lock:
                    event = self._waiting.get(message.id)
                    if event is not None:
                        self._answers[message.id] = message
                        event.set()
        except (SystemFault, ConfigError, OSError):
            pass  # gone, or babbling: either way its supervisor starts another
        finally:
            with self._lock:
                self.gone.set()
                for event in self._waiting.values():
                    event.set()
            self._channel.close()
