"""Keeps one serving process alive and tells it what to serve.

The listening sockets and the plaintext of the release (sealed memory) belong to the supervisor: when
serving crashes or hangs, connections wait in the backlog until its successor has loaded the release.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress

from edgekit import errors
from edgekit.errors import EdgekitError, EngineError, SystemFault
from edgekit_agent import launch
from edgekit_agent.config import ServeSection
from edgekit_agent.ipc import Closed
from edgekit_agent.launch import Serving
from edgekit_agent.listeners import Listeners, bind
from edgekit_agent.messages import Loaded, Stats, Unload, Unloaded
from edgekit_agent.prepare import Prepared
from edgekit_agent.serve.limits import Limits

log = logging.getLogger("edgekit.agent.supervisor")

PING_S = 1.0
STATS_S = 5.0
DRAIN_S = 10.0
LOAD_S = 120.0
CALM_S = 60.0
"""A crash this long after the last one is the first of a new series, hence answered at once."""
LONGEST_WAIT_S = 5.0


class Supervisor:
    """`start` first; then any thread may call the rest."""

    def __init__(self, serve: ServeSection, limits: Limits | None = None) -> None:
        self._serve = serve
        self._limits = limits or Limits()
        self._listeners: Listeners | None = None
        self._serving: Serving | None = None
        self._release: Prepared | None = None
        self._loading = threading.RLock()
        """Held by whoever changes process or release."""
        self._stopping = threading.Event()
        self._crashes: deque[float] = deque(maxlen=16)
        self._restarts = 0
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

    def bind(self) -> None:
        """Take the port and the Unix socket. Raises SystemFault when one is in use."""
        self._listeners = bind(self._serve)

    def start(self, *, wait_for_load: bool = False) -> None:
        """Start the serving process. Until something is served clients get 503, or wait."""
        if self._listeners is None:
            self.bind()
        with self._loading:
            self._spawn(wait_for_load=wait_for_load)
        self._thread.start()

    def stop(self) -> None:
        """Let requests that are begun end, then end serving."""
        self._stopping.set()
        with self._loading:
            if self._serving is not None:
                self._serving.stop(drain_s=DRAIN_S)
                self._serving = None
            if self._listeners is not None:
                self._listeners.close()
            if self._release is not None:
                self._release.close()
                self._release = None
        if self._thread.ident is not None:
            self._thread.join(5)

    # -- what is served ------------------------------------------------------------------------

    def swap(self, release: Prepared, timeout_s: float) -> Loaded:
        """Serve `release` from now on; no request fails. The caller closes what was served before.

        When it raises (the engine's or the golden check's error, SystemFault), the old release serves.
        """
        with self._loading:
            answer = self._load(release, timeout_s)
            self._release = release
            return answer

    def restore(self, release: Prepared | None, timeout_s: float) -> None:
        """Serve `release` (None: nothing) whatever it takes: a serving process that dies is started again.

        Raises the engine's error, or SystemFault after `timeout_s`; it is tried again at the next crash.
        """
        with self._loading:
            self._release = release
            deadline = time.monotonic() + timeout_s
            while not self._stopping.is_set():
                try:
                    if release is None:
                        client = self._current().client
                        client.call(Unload(client.next_id()), Unloaded, timeout_s=timeout_s)
                    else:
                        self._load(release, max(0.1, deadline - time.monotonic()))
                    return
                except SystemFault as exc:
                    if time.monotonic() > deadline:
                        raise
                    log.warning("%s", exc)
                    self._respawn()

    def stats(self) -> Stats | None:
        """Counters of the serving process; None while it is being started."""
        try:
            return self._current().stats(timeout_s=STATS_S)
        except SystemFault:
            return None

    def _load(self, release: Prepared, timeout_s: float) -> Loaded:
        serving = self._current()
        message, descriptors = release.message(serving.client.next_id())
        answer = serving.load(message, descriptors, timeout_s=timeout_s)
        if not answer.ok:
            raise error_of(answer)
        return answer

    # -- the process ---------------------------------------------------------------------------

    def _current(self) -> Serving:
        serving = self._serving
        if serving is None:
            raise Closed("the serving process is not running")
        return serving

    def _spawn(self, *, wait_for_load: bool) -> None:
        assert self._listeners is not None  # noqa: S101 - `start` binds
        self._serving = launch.start(
            self._listeners.sockets,
            self._limits,
            protocols=self._serve.protocols,
            safety=self._serve.safety,
            restarts=self._restarts,
            wait_for_load=wait_for_load,
        )

    def _respawn(self) -> None:
        """Reap what is left and start anew, waiting longer the more often it crashed lately."""
        status = None
        if self._serving is not None:
            with suppress(Exception):
                status = self._serving.process.poll()
            self._serving.kill()
            self._serving = None
        now = time.monotonic()
        while self._crashes and now - self._crashes[0] > CALM_S:
            self._crashes.popleft()
        wait_s = min(LONGEST_WAIT_S, 0.1 * 2 ** len(self._crashes)) if self._crashes else 0.0
        self._crashes.append(now)
        pause = f" in {wait_s:.1f} s" if wait_s else ""
        log.warning("serving ended (%s); starting it again%s", how(status), pause)
        if self._stopping.wait(wait_s):
            return
        self._restarts += 1
        self._spawn(wait_for_load=self._release is not None)

    def _watch(self) -> None:
        """Ping; a process that is gone or hangs is replaced and gets its release again."""
        heard = time.monotonic()
        while not self._stopping.is_set():
            alive, sound = self._ping()
            if sound:
                heard = time.monotonic()
            if alive and time.monotonic() - heard < self._serve.hang_s:
                self._pause()
                continue
            if not self._loading.acquire(timeout=0.2):
                continue  # a swap is going on; it notices by itself when the process dies
            try:
                if not self._stopping.is_set() and (alive or not self._ping()[0]):
                    if alive:
                        log.warning("serving does not answer for %.0f s", self._serve.hang_s)
                    self._revive()
                    heard = time.monotonic()
            except EdgekitError as exc:
                log.error("%s", exc)
            finally:
                self._loading.release()

    def _pause(self) -> None:
        """Wait for the next ping, or for the end of the process."""
        deadline = time.monotonic() + PING_S
        while time.monotonic() < deadline and not self._stopping.wait(0.05):
            serving = self._serving
            if serving is None or serving.process.poll() is not None:
                return

    def _ping(self) -> tuple[bool, bool]:
        """(the process lives, it answers and its engine is not stuck)."""
        serving = self._serving
        if serving is None or serving.process.poll() is not None:
            return False, False
        try:
            pong = serving.ping(timeout_s=PING_S)
        except Closed:
            return False, False
        except SystemFault:
            return True, False
        return True, pong.oldest_run_s < self._serve.hang_s

    def _revive(self) -> None:
        self._respawn()
        if self._release is not None and not self._stopping.is_set():
            started = time.monotonic()
            self._load(self._release, LOAD_S)
            log.info("serving %s again after %.2f s", self._release.release, time.monotonic() - started)


_PROBES = ThreadPoolExecutor(2, "probe")


def probe(release: Prepared, timeout_s: float, keep_going: Callable[[], None]) -> Loaded:
    """Load `release` and repeat its golden samples in a child process, where a crash costs nothing.

    A variant that its builder could not measure on the target is measured here (`Loaded.measured`).
    `keep_going` is called several times a second and raises to stop; the probe then ends on its own and
    closes `release`. Raises GoldenError, EngineError (also for a crash or a hang).
    """
    message, descriptors = release.message(1, certify=not release.entry.certificate.measured_on_target)
    future: Future[Loaded] = _PROBES.submit(launch.probe, message, descriptors, timeout_s=timeout_s)
    while True:
        try:
            answer = future.result(timeout=0.2)
            break
        except NotYet:
            pass
        try:
            keep_going()
        except BaseException:
            future.add_done_callback(lambda _: release.close())
            raise
    if not answer.ok:
        raise error_of(answer)
    return answer


def error_of(answer: Loaded) -> EdgekitError:
    """The error that serving reported, by its class name."""
    kind = getattr(errors, answer.code, EngineError)
    if not (isinstance(kind, type) and issubclass(kind, EdgekitError)):
        kind = EngineError
    return kind(answer.message or "serving could not load the release", answer.hint)


def how(status: int | None) -> str:
    """How a process ended, for people."""
    if status is None:
        return "it did not answer"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
