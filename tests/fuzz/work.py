"""Connections with cases on them: what is sent, and what is made of what comes back."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from edgekit_agent.serve.grpc.h2 import frames
from tests.fuzz import judge
from tests.fuzz.case import Case, Wire
from tests.fuzz.judge import NoHttp, Two

_PATIENCE_S = 0.25
"""So long over TLS an answer is waited for before we send the end; to broken requests none may come."""
_CALLS = 4000
"""Streams of one connection over HTTP/2 before another takes its place."""


@dataclass
class Failure:
    case: Case
    reason: str


@dataclass
class Found:
    """What became of the cases of a run."""

    statuses: Counter[str] = field(default_factory=Counter)
    """By "WIRE protocol: status"."""
    failures: list[Failure] = field(default_factory=list)
    checks: int = 0
    """Valid requests in between, on connections of their own, whose numbers were right."""
    alone: int = 0
    """Requests that were sent again on their own because a connection had closed before them."""
    slowest_s: float = 0.0

    def add(self, case: Case, status: str, wrong: str = "") -> None:
        self.statuses[f"{case.wire.name} {case.protocol}: {status}"] += 1
        if wrong:
            self.failures.append(Failure(case, wrong))


class Work:
    """A connection with cases on it."""

    wire: Wire

    def __init__(self, sock: socket.socket, found: Found) -> None:
        self.sock, self.found = sock, found
        self.begun = time.monotonic()
        self.again: list[list[Case]] = []
        """What has to be sent once more, each on a connection of its own."""

    def start(self) -> None: ...

    def tick(self, now: float) -> None:
        """Called now and then."""

    def receive(self, data: bytes) -> bool:
        """Take what came, nothing at the end of the stream; whether all is done. Raises NoHttp."""
        raise NotImplementedError

    def waiting(self) -> Case:
        """The case that is to blame when nothing comes."""
        raise NotImplementedError

    @property
    def keep(self) -> socket.socket | None:
        """The connection, where it may be used again."""
        return None


class Kept(Work):
    """Requests that follow one another on a connection."""

    wire = Wire.KEPT

    def __init__(self, sock: socket.socket, found: Found, cases: list[Case]) -> None:
        super().__init__(sock, found)
        end = next((at for at, case in enumerate(cases, 1) if case.last), len(cases))
        self._cases = deque(cases[:end])
        if cases[end:]:
            self.again.append(cases[end:])
        self._lonely = len(cases) == 1
        self._data = b""
        self._closed = False

    def start(self) -> None:
        with contextlib.suppress(OSError):  # an answer may tell why
            self.sock.sendall(b"".join(case.data for case in self._cases))

    def receive(self, data: bytes) -> bool:
        self._data += data
        while self._cases and (taken := judge.answer(self._data, bare=self._cases[0].bare)) is not None:
            found, size = taken
            self._data = self._data[size:]
            if found.status == 100:
                continue
            case = self._cases.popleft()
            self.found.add(case, str(found.status), judge.of_http(case, found))
            if found.closes:
                self._closed = True
                self._rest(list(self._cases))
                return True
        if self._cases and not data:
            self._closed = True
            self._hung_up()
            return True
        return not self._cases

    def _hung_up(self) -> None:
        """Without an answer: wrong, unless the one before it is why. Alone it shows."""
        if self._lonely:
            self.found.add(self._cases[0], "none", f"closed without an answer, after {self._data[:200]!r}")
            return
        self.found.alone += 1
        self.again.append([self._cases[0]])
        self._rest(list(self._cases)[1:])

    def _rest(self, cases: list[Case]) -> None:
        if cases:
            self.again.append(cases)

    def waiting(self) -> Case:
        return self._cases[0]

    @property
    def keep(self) -> socket.socket | None:
        return None if self._closed or self._cases or self._data else self.sock


class Whole(Work):
    """One case on a connection of its own, and the end of what we send."""

    def __init__(self, sock: socket.socket, found: Found, case: Case) -> None:
        super().__init__(sock, found)
        self._case = case
        self._ended = False

    def start(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(self._case.data)
        if not isinstance(self.sock, ssl.SSLSocket):
            self._end()

    def tick(self, now: float) -> None:
        if not self._ended and now - self.begun > _PATIENCE_S:
            self._end()

    def _end(self) -> None:
        """TLS cannot end one side only, so that answers which are not written by then are lost."""
        self._ended = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)  # SSLSocket's own would forget its keys

    def waiting(self) -> Case:
        return self._case


class Raw(Whole):
    """Any bytes, and the end of what we send: answers, and the end of what they send."""

    wire = Wire.RAW

    def __init__(self, sock: socket.socket, found: Found, case: Case) -> None:
        super().__init__(sock, found, case)
        self._data = b""

    def receive(self, data: bytes) -> bool:
        self._data += data
        if data:
            if not self._ended:
                self._end()
            return False
        head = b"HEAD " in self._case.data
        first, rest = "none", self._data
        while rest:
            taken = judge.answer(rest, bare=head)
            if taken is None:
                raise NoHttp(f"half an answer: {rest[:300]!r}")
            found, size = taken
            wrong = "" if found.status == 100 else judge.of_http(self._case, found)
            if wrong and not head:
                raise NoHttp(wrong)
            first = str(found.status) if first in ("none", "100") else first
            rest = rest[size:].lstrip() if head and not rest[size:].startswith(b"HTTP") else rest[size:]
            if head:  # which answers have a body only the order of methods would tell
                at = rest.find(b"HTTP/1.1 ")
                rest = rest[at:] if at >= 0 else b""
        self.found.add(self._case, first)
        return True


class Calls(Work):
    """Streams on one connection over HTTP/2."""

    wire = Wire.CALL

    def __init__(self, sock: socket.socket, found: Found, cases: list[Case], two: Two, stream: int) -> None:
        super().__init__(sock, found)
        self.two, self.next = two, stream
        self._lonely = len(cases) == 1
        self._cases: dict[int, Case] = {}
        for case in cases:
            self._cases[self.next] = case
            self.next += 2
        self._closed = False

    def start(self) -> None:
        out = [_numbered(case.data, number) for number, case in self._cases.items()]
        with contextlib.suppress(OSError):
            self.sock.sendall(b"".join(out))

    def receive(self, data: bytes) -> bool:
        for number in self.two.feed(data):
            case = self._cases.pop(number, None)
            stream = self.two.streams.pop(number)
            if case is not None:
                self.found.add(case, stream.status, judge.of_stream(case, stream))
        if self.two.octets > 1 << 20:
            self.two.owed.append(frames.window_update(0, self.two.octets))
            self.two.octets = 0
        if self.two.owed:
            with contextlib.suppress(OSError):
                self.sock.sendall(b"".join(self.two.owed))
            self.two.owed.clear()
        if not data or self.two.away is not None:
            self._closed = True
            self._gone()
            return True
        return not self._cases

    def _gone(self) -> None:
        cases = list(self._cases.values())
        self._cases.clear()
        if not self._lonely:
            self.found.alone += len(cases)
            self.again += [[case] for case in cases]
            return
        for case in cases:
            self.found.add(case, "goaway", f"a well-framed request ends the connection: {self.two.away}")

    def waiting(self) -> Case:
        return next(iter(self._cases.values()))

    @property
    def keep(self) -> socket.socket | None:
        return None if self._closed or self._cases or self.next > 2 * _CALLS else self.sock


class Frames(Whole):
    """Any frames, and the end of what we send."""

    wire = Wire.FRAMES

    def __init__(self, sock: socket.socket, found: Found, case: Case) -> None:
        super().__init__(sock, found, case)
        self._two = Two()
        self._begin = b""
        self._done = 0

    def receive(self, data: bytes) -> bool:
        if len(self._begin) < 5:
            self._begin += data
        if self._begin.startswith(b"HTTP/"):
            if not data:
                self.found.add(self._case, "HTTP/1.1")
            return not data
        statuses = []
        for number in self._two.feed(data):
            stream = self._two.streams.pop(number)
            statuses.append(stream.status)
            if wrong := judge.of_stream(self._case, stream):
                raise NoHttp(wrong)
        self._done += len(statuses)
        if data:
            if self._done and not self._ended:
                self._end()
            return False
        if not self._two.whole:
            raise NoHttp("half a frame")
        away = self._two.away
        if away is not None and away[0] == 2:
            raise NoHttp(f"GOAWAY INTERNAL_ERROR: {away[1]}")
        self.found.add(self._case, f"goaway {away[0]}" if away else "answered" if self._done else "closed")
        return True


def _numbered(data: bytes, stream: int) -> bytes:
    """Frames of stream 0 as frames of `stream`."""
    out = bytearray(data)
    pos = 0
    while pos < len(out):
        out[pos + 5 : pos + 9] = stream.to_bytes(4, "big")
        pos += 9 + int.from_bytes(out[pos : pos + 3], "big")
    return bytes(out)
