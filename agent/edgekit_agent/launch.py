"""The supervisor's way to start the serving process and probes. Imports neither NumPy nor asyncio."""

from __future__ import annotations

import concurrent.futures
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from edgekit.errors import EdgekitError, SystemFault
from edgekit_agent.config import LogSection
from edgekit_agent.ipc import Channel, Client, Closed
from edgekit_agent.messages import (
    Drain,
    Drained,
    Found,
    Load,
    Loaded,
    Ping,
    Pong,
    Shutdown,
    Stats,
    StatsRequest,
    Survey,
    Warm,
    Warmed,
)
from edgekit_agent.progress import Page
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.protocols import ALL
from edgekit_agent.serve.safety import Safety

_UNGUARDED = Safety()
# A child dies with the thread that forked it (PR_SET_PDEATHSIG), hence one forking thread that stays.
_FORKER = concurrent.futures.ThreadPoolExecutor(1, "forker")

log = logging.getLogger("edgekit.agent")

STALL_S = 2.0
SURVEY_S = 120.0
"""A slow board reads an engine's library from a slow card."""
HANG_S = 20.0
_PLAIN = LogSection()
_FIRST_TO_DIE = {"edgekit_agent.probe": "1000", "edgekit_agent.worker": "500"}
"""When memory runs out: a probe, then serving, which can be started again, and the supervisor last."""
_TUNABLES, _LARGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
"""An engine walks through megabytes of tensors from the heap: with large pages a MobileNet takes 12.7 ms
instead of 13.2, for 1 MiB more. Known to glibc 2.35 and later; others read the variable without effect."""


@dataclass(frozen=True)
class Serving:
    """A running serving process. Every call raises ipc.Closed when it is gone."""

    process: subprocess.Popen[bytes]
    client: Client
    page: Page
    """What it is running; readable when it answers nothing."""

    def load(self, load: Load, fds: Sequence[int], *, timeout_s: float) -> Loaded:
        """Serve a release (its `id` from `client.next_id()`); the caller keeps and closes `fds`."""
        return self.client.call(load, Loaded, fds, timeout_s=timeout_s)

    def stats(self, *, timeout_s: float = 5.0) -> Stats:
        return self.client.call(StatsRequest(self.client.next_id()), Stats, timeout_s=timeout_s)

    def ping(self, *, timeout_s: float) -> Pong:
        return self.client.call(Ping(self.client.next_id()), Pong, timeout_s=timeout_s)

    def warm(self, engine: str, *, timeout_s: float) -> bool:
        """Import an engine's library; False when that fails."""
        return self.client.call(Warm(self.client.next_id(), engine), Warmed, timeout_s=timeout_s).ok

    def abandon(self) -> None:
        """Its engine is stuck: let it tell its clients, if it still can. Takes a second at most."""
        with suppress(EdgekitError):
            self.ping(timeout_s=0.1)
            self.client.call(Drain(self.client.next_id(), 0.5, abandon=True), Drained, timeout_s=0.9)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self, *, drain_s: float = 5.0, grace_s: float = 0.0, last: bool = False) -> None:
        """Finish what is begun, then end; killed when it does not. The listening sockets stay open.

        `grace_s`, `last`: see Drain; for when another process accepts already, and for when none ever will.
        """
        try:
            drain = Drain(self.client.next_id(), drain_s, grace_s, last=last)
            self.client.call(drain, Drained, timeout_s=drain_s + 2)
            self.client.tell(Shutdown(self.client.next_id()))
            self.process.wait(2)
        except (EdgekitError, subprocess.TimeoutExpired):
            pass
        self.kill()

    def kill(self) -> None:
        """kill -9, reap, hang up."""
        self.process.kill()
        self.process.wait()
        self.client.close()
        self.page.close()


def start(
    listeners: Sequence[socket.socket],
    limits: Limits,
    *,
    protocols: Sequence[str] = (ALL,),
    restarts: int = 0,
    wait_for_load: bool = False,
    parser: str = "",
    safety: Safety = _UNGUARDED,
    stall_s: float = STALL_S,
    hang_s: float = HANG_S,
    log: LogSection = _PLAIN,
) -> Serving:
    """Start edgekit_agent.worker on listening sockets that the caller keeps open.

    With `wait_for_load` connections wait in the backlog until the first Load is answered; otherwise they
    get 503 until then. `protocols`: names as in the configuration. `parser`: one of server.PARSERS, empty for
    the best. `safety`: what guards TCP sockets. `restarts` is shown as edgekit_serving_restarts_total. A run
    is overdue not before `stall_s` and not later than `hang_s`, see progress.Watched. Raises SystemFault.
    """
    page = Page.create()
    arguments = ["--limits", limits.to_argument(), "--restarts", str(restarts)]
    for name in protocols:
        arguments += ["--protocol", name]
    arguments += ["--progress-fd", str(page.descriptor), "--stall-s", str(stall_s), "--hang-s", str(hang_s)]
    arguments += ["--log", log.format, "--log-requests", log.requests]
    arguments += ["--wait-for-load"] if wait_for_load else []
    arguments += ["--parser", parser] if parser else []
    arguments += ["--safety", safety.to_argument()] if safety != _UNGUARDED else []
    for listener in listeners:
        arguments += ["--listen-fd", str(listener.fileno())]
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            passed = [*(item.fileno() for item in listeners), page.descriptor]
            process = _spawn("edgekit_agent.worker", arguments, passed, theirs)
        except BaseException:
            ours.close()
            page.close()
            raise
    return Serving(process, Client(ours), page)


def probe(load: Load, fds: Sequence[int], *, timeout_s: float, memory_mib: int = 0) -> Loaded:
    """Load and golden-check a variant in a child process that may crash, hang or eat memory.

    Never raises for what the candidate does: that is an answer that is not ok. `memory_mib` bounds the
    child's private memory (0: no bound). Raises SystemFault when no child can be started.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            arguments = ["--memory-mib", str(memory_mib)]
            process = _spawn("edgekit_agent.probe", arguments, [], theirs)
        ours.settimeout(timeout_s)
        channel = Channel(ours)
        try:
            channel.send(load, fds)
            answer, _ = channel.receive()
            if not isinstance(answer, Loaded):
                raise SystemFault(f"answered {type(answer).__name__}")
            return answer
        except TimeoutError:
            return Loaded(load.id, False, "EngineError", f"the probe did not finish within {timeout_s:g} s")
        except Closed:
            return Loaded(load.id, False, "EngineError", f"the probe {_ending(process)}")
        except EdgekitError as exc:
            return Loaded(load.id, False, type(exc).__name__, f"the probe: {exc.message}", exc.hint)
        finally:
            process.kill()
            process.wait()
            channel.close()


def survey(engines: Sequence[str], *, timeout_s: float = SURVEY_S) -> dict[str, str]:
    """Those of `engines` that work here, with their versions. Asked in a child process: importing a library
    takes memory for good, and one that was built for another processor ends the process.

    Raises SystemFault when no child can be started.
    """
    found: dict[str, str] = {}
    left = list(engines)
    while left:
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn("edgekit_agent.probe", [], [], theirs)
        ours.settimeout(timeout_s)
        channel = Channel(ours)
        why = ""
        try:
            channel.send(Survey(1, tuple(left)))
            while left:
                answer, _ = channel.receive()
                if not isinstance(answer, Found) or answer.engine != left[0]:
                    raise SystemFault("answered something else")
                if answer.version:
                    found[answer.engine] = answer.version
                del left[0]
        except TimeoutError:
            why = f"was not done within {timeout_s:g} s"
        except Closed:
            why = _ending(process)
        except EdgekitError as exc:
            why = exc.message
        finally:
            process.kill()
            process.wait()
            channel.close()
        if left:
            log.warning("engine %s is left out: the process that looked for it %s", left.pop(0), why)
    return found


def _spawn(
    module: str, arguments: list[str], passed: Sequence[int], control: socket.socket
) -> subprocess.Popen[bytes]:
    # -P: the current folder is no place to import code from.
    command = [sys.executable, "-P", "-m", "edgekit_agent.child", str(os.getpid()), _FIRST_TO_DIE[module]]
    command += [module, "--control-fd", str(control.fileno()), *arguments]
    try:
        return _FORKER.submit(
            subprocess.Popen,
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[*passed, control.fileno()],
            env={_TUNABLES: _LARGE_PAGES, **os.environ},
            process_group=0,
        ).result()
    except OSError as exc:
        raise SystemFault(f"cannot start {module}: {exc.strerror}") from None


def _ending(process: subprocess.Popen[bytes]) -> str:
    try:
        status = process.wait(5)
    except subprocess.TimeoutExpired:
        return "closed its socket"
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
