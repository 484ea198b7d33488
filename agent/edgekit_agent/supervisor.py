"""Keeps one serving process alive and tells it what to serve.

The listening sockets and the plaintext of the release (sealed memory) belong to the supervisor: when
serving crashes or hangs, connections wait in the backlog until its successor has loaded the release. The
successor is there already where memory allows (spare.py); what is wrong with a process is guard.py's to say.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from edgekit.errors import EdgekitError, SystemFault
from edgekit_agent import board, launch, sd
from edgekit_agent.config import LogSection, ServeSection
from edgekit_agent.crashes import CALM_S, Crashes, how
from edgekit_agent.guard import Guard, Verdict
from edgekit_agent.ipc import Closed
from edgekit_agent.launch import Serving
from edgekit_agent.listeners import Listeners, bind
from edgekit_agent.messages import Load, Loaded, Pacing, Stats, Unload, Unloaded
from edgekit_agent.prepare import Prepared
from edgekit_agent.prove import error_of
from edgekit_agent.serve.limits import Limits
from edgekit_agent.spare import Spare

log = logging.getLogger("edgekit.agent.supervisor")

LOOK_S = 0.2
STATS_S = 5.0
DRAIN_S = 10.0
GRACE_S = 1.0
LOAD_S = 120.0
LONGEST_RETRY_S = 60.0

Fallback = Callable[[Prepared], Prepared | None]
"""Asked for the last good release when the one given crashes too often; None: there is none."""


class Supervisor:
    """`start` first; then any thread may call the rest."""

    def __init__(
        self, serve: ServeSection, limits: Limits | None = None, log: LogSection | None = None
    ) -> None:
        self.fallback: Fallback = lambda _: None
        self.fell_back: Callable[[], None] = lambda: None
        """Called when the release that `fallback` gave serves."""
        self._serve = serve
        self._limits = limits or Limits()
        self._log = log or LogSection()
        self._listeners: Listeners | None = None
        self._serving: Serving | None = None
        self._guard: Guard | None = None
        self._spare = Spare(lambda: self._start(wait_for_load=True), serve.spare)
        self._release: Prepared | None = None
        self._beside: tuple[Prepared, ...] = ()
        """Served under their own names, for as long as this supervisor lives."""
        self._paces: dict[str, Pacing] = {}
        """Of those, by release: what serving said when it loaded them first."""
        self._furnished: Serving | None = None
        """The process that has them."""
        self._proven: Pacing | None = None
        """Of the release, by the process that proved it; None: not proven yet."""
        self._up = False
        """Whether the serving process has the release."""
        self._retry_s = self._retry_at = 0.0
        self._loading = threading.RLock()
        """Held by whoever changes process or release."""
        self._stopping = threading.Event()
        self._crashes = Crashes()
        self._restarts = 0
        self._leaving: list[threading.Thread] = []
        self._pulse = sd.Pulse(LOAD_S + CALM_S)
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    @property
    def restarts(self) -> int:
        """Times that serving came back since this agent was started."""
        return self._restarts

    @property
    def endpoint(self) -> str:
        return self._listeners.endpoint if self._listeners else ""

    @property
    def release(self) -> Prepared | None:
        """What is served, or will be again as soon as serving is back."""
        return self._release

    @property
    def healthy(self) -> bool:
        """Whether the serving process is still looked after."""
        return self._thread.is_alive() and self._pulse.healthy

    @property
    def process_id(self) -> int | None:
        """Of the serving process; None while there is none."""
        serving = self._serving
        return serving.process.pid if serving is not None else None

    @property
    def spare_ready(self) -> bool:
        """Whether another process waits to take over."""
        return self._spare.ready

    def bind(self) -> None:
        """Take the port and the Unix socket, or what the service manager listens on already.

        Raises SystemFault when one is in use.
        """
        self._listeners = bind(self._serve, sd.inherited())

    def start(self, *, wait_for_load: bool = False) -> None:
        """Start the serving process. Until something is served clients get 503, or wait."""
        if self._listeners is None:
            self.bind()
        with self._loading:
            self._use(self._start(wait_for_load=wait_for_load))
        self._thread.start()

    def stop(self) -> None:
        """Let requests that are begun end, then end serving."""
        self._stopping.set()
        self._spare.close()
        with self._loading:
            if self._serving is not None:
                ours = self._listeners is not None and self._listeners.ours
                self._serving.stop(drain_s=DRAIN_S, last=ours)
                self._serving = None
            for thread in self._leaving:
                thread.join()
            if self._listeners is not None:
                self._listeners.close()
            for release in (self._release, *self._beside):
                if release is not None:
                    release.close()
            self._release, self._beside = None, ()
        if self._thread.ident is not None:
            self._thread.join(5)

    # -- what is served ------------------------------------------------------------------------

    def keep_beside(self, releases: Sequence[Prepared]) -> None:
        """Serve these too, from the next `swap` on; they share process and memory with the release, and are
        closed with the supervisor."""
        with self._loading:
            self._beside = tuple(releases)

    def swap(self, release: Prepared, timeout_s: float) -> Loaded:
        """Serve `release` from now on; no request fails, unless memory is short: then requests get 503 while
        it is loaded. The caller closes what was served before.

        A release is not blamed for a SIGKILL, which comes from outside (a person, the kernel when memory
        runs out): it is loaded once more. When this raises (the engine's or the golden check's error,
        SystemFault), the old release serves.
        """
        with self._loading:
            before, replace = self._release, self._must_replace(release)
            if replace:
                log.warning("memory is short: %s ends before %s is loaded", before, release.release)
            for again in (False, True):
                serving = self._current()
                try:
                    answer = self._load(serving, release, timeout_s, replace=replace)
                    break
                except EdgekitError as exc:
                    killed = isinstance(exc, Closed) and _ended(serving) == -signal.SIGKILL
                    self._put_back(exc, replaced=replace)
                    if again or not killed:
                        raise
                    log.warning("%s is loaded once more: something killed the process", release.release)
            self._serves(release, answer)
            return answer

    def restore(self, release: Prepared | None, timeout_s: float) -> None:
        """Serve `release` (None: nothing) whatever it takes: a serving process that dies is started again.

        Raises the engine's error, or SystemFault after `timeout_s`; it is tried again at the next crash.
        """
        with self._loading:
            if release is not self._release:
                self._proven = None
            self._release, self._up = release, False
            deadline = time.monotonic() + timeout_s
            while not self._stopping.is_set():
                try:
                    serving = self._current()
                    if release is None:
                        message = Unload(serving.client.next_id())
                        serving.client.call(message, Unloaded, timeout_s=timeout_s)
                    else:
                        answer = self._load(serving, release, max(0.1, deadline - time.monotonic()))
                        self._serves(release, answer)
                    return
                except SystemFault as exc:
                    if time.monotonic() > deadline:
                        raise
                    self._renew(str(exc))

    def stats(self) -> Stats | None:
        """Counters of the serving process; None while it is being started."""
        try:
            return self._current().stats(timeout_s=STATS_S)
        except SystemFault:
            return None

    def _load(
        self,
        serving: Serving,
        release: Prepared,
        timeout_s: float,
        *,
        replace: bool = False,
    ) -> Loaded:
        """Order `serving` to load `release`. Raises its error, or SystemFault."""
        self._furnish(serving, release, timeout_s)
        message, descriptors = release.message(
            serving.client.next_id(), replace=replace,
            proven=self._proven if release is self._release else None,
            announce_s=self._serve.announce_s,
            memory_mib=self._budget_mib(release), restarts=self._restarts,
        )  # fmt: skip
        return _sent(serving, message, descriptors, timeout_s)

    def _furnish(self, serving: Serving, release: Prepared, timeout_s: float) -> None:
        """What stands beside the release comes first, for with that the process begins to listen. After a
        crash it is only named: the release answers at once, and the others load when they are asked."""
        if self._furnished is serving:
            return
        for slot, one in enumerate(self._beside, 1):
            proven = self._paces.get(one.release)
            message, descriptors = one.message(
                serving.client.next_id(), slot=slot, proven=proven, lazy=proven is not None,
                memory_mib=self._budget_mib(release), restarts=self._restarts,
            )  # fmt: skip
            answer = _sent(serving, message, descriptors, timeout_s)
            if answer.pacing is not None:
                self._paces[one.release] = answer.pacing
        self._furnished = serving

    def _serves(self, release: Prepared, answer: Loaded) -> None:
        self._release, self._proven, self._up = release, answer.pacing, True
        self._retry_s = 0.0
        self._guard = self._guard_of(self._current())
        self._spare.tend(release.engine)

    def _put_back(self, exc: EdgekitError, *, replaced: bool) -> None:
        """After a swap that failed: whatever it did to the process, the old release serves."""
        died = isinstance(exc, SystemFault)
        try:
            if self._release is None or not (died or replaced):
                if died:
                    self._renew(str(exc))
            elif not died:
                self._serves(self._release, self._load(self._current(), self._release, LOAD_S))
            elif self._current().alive:
                self._recycle(str(exc))  # the old release answers still; a thread is stuck in the new one
            else:
                self._revive(str(exc))
        except EdgekitError as again:
            log.error("%s", again)

    def _must_replace(self, release: Prepared) -> bool:
        if self._release is None or self._serve.swap == "beside":
            return False
        return self._serve.swap == "replace" or board.available_mib() < release.needs_mib

    def _budget_mib(self, release: Prepared) -> float:
        """For all that is served; 0: one of them declares none."""
        declared = [one.entry.config.memory_budget_mib for one in (release, *self._beside)]
        return self._serve.memory_mib or (sum(declared) if all(declared) else 0.0)

    # -- the process ---------------------------------------------------------------------------

    def _current(self) -> Serving:
        serving = self._serving
        if serving is None:
            raise Closed("the serving process is not running")
        return serving

    def _start(self, *, wait_for_load: bool) -> Serving:
        assert self._listeners is not None  # noqa: S101 - `start` binds
        return launch.start(
            self._listeners.sockets, self._limits, protocols=self._serve.protocols,
            safety=self._serve.safety, restarts=self._restarts, wait_for_load=wait_for_load,
            stall_s=self._serve.stall_s, hang_s=self._serve.hang_s, log=self._log,
        )  # fmt: skip

    def _use(self, serving: Serving) -> None:
        self._serving, self._guard = serving, self._guard_of(serving, answered=False)

    def _guard_of(self, serving: Serving, *, answered: bool = True) -> Guard:
        budget = self._budget_mib(self._release) if self._release is not None else 0.0
        return Guard(serving, hang_s=self._serve.hang_s, memory_mib=budget, answered=answered)

    def _renew(self, reason: str) -> None:
        """End what is left of the process and have another, later the more often that happened lately."""
        if self._serving is not None:
            with suppress(Exception):
                reason = f"{reason}; {how(self._serving.process.poll())}"
            self._serving.kill()
        wait_s = self._crashes.add(time.monotonic(), served=self._up)
        self._serving, self._up = None, False
        pause = f" in {wait_s:.1f} s" if wait_s else ""
        log.warning("serving is started again%s: %s", pause, reason)
        if self._stopping.wait(wait_s):
            return
        self._restarts += 1
        spare = self._spare.take(self._release.engine) if self._release is not None else None
        self._use(spare or self._start(wait_for_load=self._release is not None))

    def _revive(self, reason: str) -> None:
        """Replace a process that is gone or stuck, and serve again: the last good release when this one
        crashes too often."""
        began = time.monotonic()
        self._renew(reason)
        if self._release is None or self._stopping.is_set():
            return
        self._load_again(began)

    def _retry(self) -> None:
        """The release could not be loaded, and clients get 503: once more, at longer and longer intervals."""
        now = time.monotonic()
        if now >= self._retry_at:
            self._retry_s = min(LONGEST_RETRY_S, 2 * self._retry_s or 1.0)
            self._retry_at = now + self._retry_s
            self._crashes.add(now)
            self._load_again(now)

    def _load_again(self, began: float) -> None:
        assert self._release is not None  # noqa: S101 - both callers look
        before = self._release
        release = self._last_good(before)
        self._serves(release, self._load(self._current(), release, LOAD_S))
        log.info("serving %s again after %.2f s", release.release, time.monotonic() - began)
        if release is not before:
            self.fell_back()

    def _recycle(self, reason: str) -> None:
        """Replace a process that still answers: another takes over first, and no request is lost."""
        old, release = self._current(), self._release
        if release is None or board.available_mib() < release.needs_mib:
            old.stop(drain_s=GRACE_S)
            self._revive(reason)
            return
        log.warning("serving is replaced: %s", reason)
        fresh = self._spare.take(release.engine) or self._start(wait_for_load=True)
        try:
            answer = self._load(fresh, release, LOAD_S)
        except BaseException:
            fresh.kill()
            self._revive(reason)
            return
        self._crashes.add(time.monotonic())
        self._restarts += 1
        self._use(fresh)
        self._serves(release, answer)
        leaving = threading.Thread(target=old.stop, kwargs={"drain_s": DRAIN_S, "grace_s": GRACE_S})
        leaving.start()
        self._leaving = [one for one in self._leaving if one.is_alive()] + [leaving]

    def _last_good(self, release: Prepared) -> Prepared:
        """`release`, or the one before it when it crashed too often."""
        limit = self._serve.crash_limit
        if not limit or self._crashes.count(time.monotonic()) < limit:
            return release
        before = self.fallback(release)
        if before is None:
            return release
        log.error("%s crashed %d times: %s serves again", release.release, limit, before.release)
        self._crashes.clear()
        self._release, self._proven = before, None
        release.close()
        return before

    def _watch(self) -> None:
        """Look at the process; one that is gone, stuck or out of bounds is replaced."""
        while not self._stopping.is_set():
            self._pulse.beat()
            guard, serving = self._guard, self._serving
            verdict = guard.look() if guard is not None else None
            idle = self._release is None or self._up
            if verdict is None and idle:
                self._spare.tend(self._release.engine if self._release is not None else "")
                if serving is not None:
                    serving.client.gone.wait(LOOK_S)
                continue
            if not self._loading.acquire(timeout=LOOK_S):
                continue  # a swap is going on; it notices by itself when the process dies
            try:
                if not self._stopping.is_set() and self._guard is guard:
                    self._act(verdict)
            except EdgekitError as exc:
                log.error("%s", exc)
            finally:
                self._loading.release()
            self._stopping.wait(LOOK_S if verdict is None else 0.01)

    def _act(self, verdict: Verdict | None) -> None:
        if verdict is None:
            self._retry()
        elif verdict.gentle:
            self._recycle(verdict.reason)
        elif verdict.stuck:
            self._current().abandon()
            self._revive(verdict.reason)
        else:
            self._revive(verdict.reason)


def _ended(serving: Serving) -> int | None:
    """The status of a process that has hung up; None: it runs still."""
    with suppress(subprocess.TimeoutExpired):
        return serving.process.wait(1.0)
    return None


def _sent(serving: Serving, message: Load, descriptors: Sequence[int], timeout_s: float) -> Loaded:
    """The answer to a Load that worked. Raises the error that it reports."""
    answer = serving.load(message, descriptors, timeout_s=timeout_s)
    if not answer.ok:
        raise error_of(answer)
    return answer
