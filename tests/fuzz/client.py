"""Sends cases to an agent over many connections at once."""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from benchmarks.load import connect
from edgekit.runtimes import Array
from edgekit_agent.serve.grpc.h2 import frames
from tests.fuzz import guards, judge, secure
from tests.fuzz.case import GROUP, Case, Wire
from tests.fuzz.cases import Source
from tests.fuzz.guards import Door
from tests.fuzz.judge import NoHttp, Two
from tests.fuzz.seeds import _oip
from tests.fuzz.targets import Target
from tests.fuzz.work import Calls, Found, Frames, Kept, Raw, Work

HANG_S = 5.0
AT_ONCE = {Wire.KEPT: 4, Wire.CALL: 1, Wire.RAW: 6, Wire.FRAMES: 6, Wire.BELOW: 4, Wire.SPOILT: 1}
"""Connections that a client has at work. A call more would be refused for being one too many."""
CHECK_EVERY = 1000
CHECK_EVERY_BROKEN_TLS = 10
_TICK_S = 0.25
_CHUNK = 1 << 18
_AHEAD = 64
_WIDE = (1 << 31) - 1 - frames.DEFAULT_WINDOW

Job = list[Case]
"""Cases of one kind for one connection."""


class Client:
    """See module."""

    def __init__(self, doors: list[Door], target: Target, found: Found | None = None) -> None:
        """`doors`: used in turns."""
        self._doors = doors
        self._turn = 0
        self._target = target
        self.found = found or Found()
        self._idle: list[socket.socket] = []
        self._idle_two: list[tuple[socket.socket, Two, int]] = []
        self._poller = select.epoll()
        self._at_work: dict[int, Work] = {}
        self._busy: Counter[Wire] = Counter()
        self._broken = 0
        """Connections on which TLS was broken."""

    def run(self, cases: Iterable[Case], seen: Callable[[int], None] = lambda count: None) -> Found:
        """Send all of `cases`. `seen`: gets how many were taken up so far, now and then."""
        queues: dict[Wire, deque[Job]] = {wire: deque() for wire in Wire}
        jobs = _jobs(cases)
        taken = checked = 0
        more = True
        while more or self._at_work or any(queues.values()):
            while more and sum(map(len, queues.values())) < _AHEAD:
                job = next(jobs, None)
                if job is None:
                    more = False
                    break
                taken += len(job)
                queues[job[0].wire].append(job)
            seen(taken)
            for wire, queue in queues.items():
                while queue and self._busy[wire] < AT_ONCE[wire]:
                    self._begin(queue.popleft())
            for number, _ in self._poller.poll(_TICK_S):
                for job in self._ready(number):
                    queues[job[0].wire].append(job)
            self._overdue()
            if taken >= checked:
                checked += CHECK_EVERY
                self.check()
        self.check()
        return self.found

    def _door(self) -> Door:
        self._turn += 1
        return self._doors[self._turn % len(self._doors)]

    def _open(self, speaks: str = secure.ONE) -> socket.socket:
        """A connection, with TLS where that is spoken. Raises OSError, AssertionError."""
        door = self._door()
        sock = _connected(door)
        return secure.wrapped(sock, door.ca, speaks, self._turn) if door.ca else sock

    def _begin(self, cases: Job) -> None:
        work: Work
        wire = cases[0].wire
        self._busy[wire] += 1
        if wire is Wire.KEPT:
            work = Kept(self._idle.pop() if self._idle else self._open(), self.found, cases)
        elif wire is Wire.CALL:
            sock, two, stream = self._idle_two.pop() if self._idle_two else self._open_two()
            work = Calls(sock, self.found, cases, two, stream)
        elif wire is Wire.RAW:
            work = Raw(self._open(), self.found, cases[0])
        elif wire is Wire.FRAMES:
            work = Frames(self._open(secure.TWO), self.found, cases[0])
        else:
            door = self._door()
            work = secure.work(_connected(door), self.found, cases[0], door.ca)
        self._at_work[work.sock.fileno()] = work
        self._poller.register(work.sock.fileno(), select.EPOLLIN)
        work.start()

    def _open_two(self) -> tuple[socket.socket, Two, int]:
        sock = self._open(secure.TWO)
        hello = frames.settings({frames.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
        sock.sendall(frames.PREFACE + hello + frames.window_update(0, _WIDE))
        return sock, Two(), 1

    def _ready(self, number: int) -> Iterator[Job]:
        work = self._at_work[number]
        data: bytes | None
        try:
            data = secure.read(work.sock) if isinstance(work.sock, ssl.SSLSocket) else work.sock.recv(_CHUNK)
        except OSError:
            data = b""
        if data is None:
            return
        try:
            done = work.receive(data)
        except NoHttp as exc:
            self.found.add(work.waiting(), "wrong", str(exc))
            done = True
            self._end(number, keep=False)
            return
        if done:
            self._end(number, keep=True)
            yield from work.again

    def _end(self, number: int, *, keep: bool) -> None:
        work = self._at_work.pop(number)
        self._busy[work.wire] -= 1
        self.found.slowest_s = max(self.found.slowest_s, time.monotonic() - work.begun)
        self._poller.unregister(number)
        if work.wire in (Wire.BELOW, Wire.SPOILT):
            self._broken += 1
            if self._broken % CHECK_EVERY_BROKEN_TLS == 0:
                self.check()
        if not keep or work.keep is None:
            work.sock.close()
        elif isinstance(work, Calls):
            self._idle_two.append((work.sock, work.two, work.next))
        else:
            self._idle.append(work.sock)

    def _overdue(self) -> None:
        now = time.monotonic()
        for number, work in list(self._at_work.items()):
            work.tick(now)
            if now - work.begun > HANG_S:
                self.found.add(work.waiting(), "none", f"no answer within {HANG_S:g} s")
                self._end(number, keep=False)

    def check(self) -> None:
        """A valid request on a new connection gets the right numbers. Raises AssertionError, OSError."""
        seed = next(one for one in _oip(self._target.inputs, {}) if one.binary)
        first, tail = seed.parts()
        body = first + tail
        fields = f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {len(first)}\r\n".encode()
        if self._target.guard == guards.TOKENS:
            fields += b"%s: %s\r\n" % guards.AUTHORIZATION
        with self._open() as sock:
            sock.sendall(b"POST " + seed.path + b" HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body)
            data = b""
            while (taken := judge.answer(data)) is None:
                more = sock.recv(_CHUNK)
                assert more, "hung up on a valid request"
                data += more
        found = taken[0]
        assert found.status == 200, found.body[:300]
        outputs = self._target.outputs or {}
        raw = found.body[-sum(one.nbytes for one in outputs.values()) :]
        for wanted in outputs.values():
            got: Array = np.frombuffer(raw[: wanted.nbytes], wanted.dtype).reshape(wanted.shape)
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
            raw = raw[wanted.nbytes :]
        self.found.checks += 1

    def close(self) -> None:
        for sock in [*self._idle, *(one for one, _, _ in self._idle_two)]:
            sock.close()
        self._idle.clear()
        self._idle_two.clear()


def _connected(door: Door) -> socket.socket:
    sock = connect(door.address)
    sock.settimeout(HANG_S)
    return sock


def _jobs(cases: Iterable[Case]) -> Iterator[Job]:
    """Cases of a group share a connection where their kind does."""
    job: Job = []
    for case in cases:
        if job and (
            case.number // GROUP != job[0].number // GROUP or case.wire not in (Wire.KEPT, Wire.CALL)
        ):
            yield job
            job = []
        job.append(case)
    if job:
        yield job


def cases(target: str, seed: int, numbers: Iterable[int]) -> Iterator[Case]:
    source = Source.of(target, seed)
    return (source.case(number) for number in numbers)
