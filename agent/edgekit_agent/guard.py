"""What makes the supervisor replace a serving process: progress, memory and idle work, not liveness alone."""

from __future__ import annotations

import time
from dataclasses import dataclass

from edgekit.errors import SystemFault
from edgekit_agent import board
from edgekit_agent.ipc import Closed
from edgekit_agent.launch import Serving

START_S = 120.0
"""Until its first answer a process may take so long: a slow board reads its libraries from a slow card."""
PING_S = 1.0
PING_TIMEOUT_S = 0.5
LEAK_S = 3.0
"""Memory over the budget for so long is not a large request's: it will not come back."""
HELD_UP_S = 1.0
"""When so much lies between two looks, all of the machine stood still (a virtual machine is paused, memory is
paged out): that time is nobody's fault."""
EXCESS = 1.25
"""Times the budget that no process may have for a moment; its own allocations fail from there, too."""
SPIN_S = 10.0
SPIN_SHARE = 0.5
"""So much of one core over SPIN_S, while no request is running, is work that nobody asked for."""


@dataclass(frozen=True)
class Verdict:
    """Why a serving process has to be replaced."""

    reason: str
    gentle: bool = False
    """It still answers: start another first, then let it finish what it has begun."""
    stuck: bool = False
    """Its engine hangs; its clients may be told before it is ended."""


class Guard:
    """Of one serving process with one release. `look` several times a second; touched by one thread."""

    def __init__(
        self, serving: Serving, *, hang_s: float, memory_mib: float = 0.0, answered: bool = True
    ) -> None:
        """`memory_mib`: the release's budget, resident memory of the process; 0: no bound. `answered`: it is
        known to have started."""
        self._serving, self._hang_s, self._memory_mib = serving, hang_s, memory_mib
        now = time.monotonic()
        self._heard = self._pinged = now
        self._silence_s = hang_s if answered else max(hang_s, START_S)
        self._fat_since: float | None = None
        self._looked = now
        self._lost_s = 0.0  # of the time that an overdue run has taken
        self._requests = -1
        self._quiet_since, self._quiet_cpu_s = now, self._engine_cpu_s()

    def look(self) -> Verdict | None:
        """None: all is well. Raises nothing; takes up to PING_TIMEOUT_S."""
        self._forgive(time.monotonic() - self._looked)
        verdict = self._look()
        self._looked = time.monotonic()
        return verdict

    def _look(self) -> Verdict | None:
        if not self._serving.alive:
            return Verdict("it ended")
        overdue = self._serving.page.overdue_s(time.monotonic_ns())
        if overdue > self._lost_s:
            return Verdict(f"an inference should have ended {overdue - self._lost_s:.1f} s ago", stuck=True)
        if not overdue:
            self._lost_s = 0.0
        return self._memory() or self._ping()

    def _forgive(self, gap_s: float) -> None:
        """Since the last look `gap_s` has passed: when that is because nothing ran, it does not count."""
        if gap_s > HELD_UP_S:
            self._lost_s += gap_s
            self._heard += gap_s

    def _memory(self) -> Verdict | None:
        if not self._memory_mib:
            return None
        now, size = time.monotonic(), board.resident_mib(self._serving.process.pid)
        if size <= self._memory_mib:
            self._fat_since = None
            return None
        self._fat_since = self._fat_since or now
        text = f"it has {size:.0f} MiB of memory, {self._memory_mib:.0f} MiB are its budget"
        if size > EXCESS * self._memory_mib:
            return Verdict(text)
        return Verdict(text, gentle=True) if now - self._fat_since > LEAK_S else None

    def _ping(self) -> Verdict | None:
        now = time.monotonic()
        if now - self._pinged < PING_S:
            return None
        self._pinged = now
        try:
            pong = self._serving.ping(timeout_s=PING_TIMEOUT_S)
        except Closed:
            return Verdict("it ended")
        except SystemFault:
            self._working(now)
            silent = time.monotonic() - self._heard
            late = silent > self._silence_s
            return Verdict(f"it has not answered for {silent:.0f} s") if late else None
        self._heard, self._silence_s = now, self._hang_s
        if pong.oldest_run_s > self._hang_s:  # where the page has no slot for it
            return Verdict(f"an inference has been running for {pong.oldest_run_s:.0f} s", stuck=True)
        if pong.in_flight or pong.requests != self._requests:
            self._requests = pong.requests
            self._working(now)
            return None
        return self._spins(now)

    def _working(self, now: float) -> None:
        self._quiet_since, self._quiet_cpu_s = now, self._engine_cpu_s()

    def _engine_cpu_s(self) -> float:
        """Without the main thread, which has clients to talk to."""
        pid = self._serving.process.pid
        return board.cpu_s(pid) - board.cpu_s(pid, pid)

    def _spins(self, now: float) -> Verdict | None:
        quiet = now - self._quiet_since
        if quiet < SPIN_S:
            return None
        used = self._engine_cpu_s() - self._quiet_cpu_s
        self._working(now)
        if used / quiet < SPIN_SHARE:
            return None
        return Verdict(
            f"it used {used:.1f} s of the processor in {quiet:.0f} s without a request", gentle=True
        )
