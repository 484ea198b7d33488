"""Sends cases to an agent over many connections at once."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from benchmarks.load import connect
from edgekit.runtimes import Array
from edgekit_agent.serve.grpc.h2 import frames
from tests.fuzz import judge
from tests.fuzz.cases import GROUP, Case, Source, Wire
from tests.fuzz.judge import NoHttp, Two
from tests.fuzz.seeds import _oip
from tests.fuzz.targets import Target
from tests.fuzz.work import Calls, Found, Frames, Kept, Raw, Work

HANG_S = 5.0
AT_ONCE = {Wire.KEPT: 4, Wire.CALL: 1, Wire.RAW: 6, Wire.FRAMES: 6}
"""Connections that a client has at work. A call more would be refused for being one too many."""
CHECK_EVERY = 1000
_CHUNK = 1 << 18
_AHEAD = 64
_WIDE = (1 << 31) - 1 - frames.DEFAULT_WINDOW

Job = list[Case]
"""Cases of one kind for one connection."""


class Client:
    """See module."""

    def __init__(self, addresses: list[str], target: Target, found: Found | None = None) -> None:
        """`addresses`: used in turns."""
        self._addresses = addresses
        self._turn = 0
        self._target = target
        self.found = found or Found()
        self._idle: list[socket.socket] = []
        self._idle_two: list[tuple[socket.socket, Two, int]] = []
        self._poller = select.epoll()
        self._at_work: dict[int, Work] = {}
        self._busy: Counter[Wire] = Counter()

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
            for number, _ in self._poller.poll(1.0):
                for job in self._ready(number):
                    queues[job[0].wire].append(job)
            self._overdue()
            if taken >= checked:
                checked += CHECK_EVERY
                self.check()
        self.check()
        return self.found

    def _address(self) -> str:
        self._turn += 1
        return self._addresses[self._turn % len(self._addresses)]

    def _open(self) -> socket.socket:
        sock = connect(self._address())
        sock.settimeout(HANG_S)
        return sock

    def _begin(self, cases: Job) -> None:
        work: Work
        wire = cases[0].wire
        self._busy[wire] += 1
        if wire is Wire.KEPT:
            work = Kept(self._idle.pop() if self._idle else self._open(), self.found, cases)
        elif wire is Wire.CALL:
            sock, two, stream = self._idle_two.pop() if self._idle_two else self._open_two()
            work = Calls(sock, self.found, cases, two, stream)
        else:
            work = (Raw if wire is Wire.RAW else Frames)(self._open(), self.found, cases[0])
        self._at_work[work.sock.fileno()] = work
        self._poller.register(work.sock.fileno(), select.EPOLLIN)
        work.start()

    def _open_two(self) -> tuple[socket.socket, Two, int]:
        sock = self._open()
        hello = frames.settings({frames.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
        sock.sendall(frames.PREFACE + hello + frames.window_update(0, _WIDE))
        return sock, Two(), 1

    def _ready(self, number: int) -> Iterator[Job]:
        work = self._at_work[number]
        try:
            data = work.sock.recv(_CHUNK)
        except OSError:
            data = b""
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
        if not keep or work.keep is None:
            work.sock.close()
        elif isinstance(work, Calls):
            self._idle_two.append((work.sock, work.two, work.next))
        else:
            self._idle.append(work.sock)

    def _overdue(self) -> None:
        now = time.monotonic()
        for number, work in list(self._at_work.items()):
            if now - work.begun > HANG_S:
                self.found.add(work.waiting(), "none", f"no answer within {HANG_S:g} s")
                self._end(number, keep=False)

    def check(self) -> None:
        """A valid request on a new connection gets the right numbers. Raises AssertionError, OSError."""
        seed = next(one for one in _oip(self._target.inputs, {}) if one.binary)
        first, tail = seed.parts()
        body = first + tail
        fields = f"Content-Length: {len(body)}\r\nInference-Header-Content-Length: {len(first)}\r\n\r\n"
        with connect(self._address()) as sock:
            sock.settimeout(HANG_S)
            sock.sendall(b"POST " + seed.path + b" HTTP/1.1\r\nHost: x\r\n" + fields.encode() + body)
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


def _jobs(cases: Iterable[Case]) -> Iterator[Job]:
    """Cases of a group share a connection where their kind does."""
    job: Job = []
    for case in cases:
        if job and (case.number // GROUP != job[0].number // GROUP or case.wire in (Wire.RAW, Wire.FRAMES)):
            yield job
            job = []
        job.append(case)
    if job:
        yield job


def cases(target: str, seed: int, numbers: Iterable[int]) -> Iterator[Case]:
    source = Source.of(target, seed)
    return (source.case(number) for number in numbers)
