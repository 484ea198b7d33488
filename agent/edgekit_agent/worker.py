"""The serving process: started by launch.start through child.py, led by messages.

It holds no keys and no state: when it dies, the supervisor starts another on the same listening sockets
and loads the release again from its own memory. It dies when the supervisor does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

from edgekit.errors import ConfigError, EdgekitError
from edgekit.runtimes import Session
from edgekit.runtimes._pace import Pace
from edgekit_agent import logs, memfd, process
from edgekit_agent.ipc import Closed
from edgekit_agent.ipc_async import AsyncChannel
from edgekit_agent.messages import (
    Drain,
    Drained,
    Load,
    Loaded,
    Message,
    Pacing,
    Ping,
    Pong,
    Shutdown,
    Stats,
    StatsRequest,
    Unload,
    Unloaded,
    Warm,
    Warmed,
)
from edgekit_agent.progress import Page, Watched
from edgekit_agent.serve import engine
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.protocols import ALL
from edgekit_agent.serve.quiet import Quiet
from edgekit_agent.serve.resident import Memory, Resident
from edgekit_agent.serve.router import Router
from edgekit_agent.serve.safety import Safety
from edgekit_agent.serve.server import PARSERS, Server
from edgekit_agent.serve.sketch import sketch
from edgekit_agent.serve.trace import traced

if TYPE_CHECKING:
    from edgekit_agent.serve.grpc.service import Registry

_log = logging.getLogger(__name__)

_LOOK_S = 1.0
_ALWAYS_MIB = 16.0
"""Growth that is let through even over the budget: answering errors needs some memory too."""


@dataclass(frozen=True)
class Watch:
    """Where running inferences are shown, and when they are overdue; see progress.py."""

    page: Page
    stall_s: float
    hang_s: float

    def over(self, session: Session, run_ms: float) -> Watched:
        return Watched(session, self.page, run_ms, self.stall_s, self.hang_s)


class Worker:
    """Carries out the supervisor's messages, loads one after the other, the rest at once."""

    def __init__(self, channel: AsyncChannel, core: Core, server: Server, watch: Watch) -> None:
        self.channel = channel
        self.core = core
        self.server = server
        self.watch = watch
        self.first_load = asyncio.Event()
        """Of the device's release; what stands beside it comes before."""
        self.memory = Memory()
        self._begin = time.monotonic()
        self._loading = asyncio.Lock()
        self._worked = 0  # counts what is worth large pages, beside answers
        self._tasks: set[asyncio.Task[None]] = set()

    async def obey(self) -> None:
        """Until Shutdown or until the supervisor is gone."""
        while True:
            try:
                message, fds = await self.channel.receive()
            except Closed:
                return
            if isinstance(message, Shutdown):
                return
            self._later(self._carry_out(message, fds))

    async def tend(self) -> None:
        """Give back what load has left, when it is over. For ever."""
        quiet = Quiet(time.monotonic())
        while True:
            await asyncio.sleep(_LOOK_S)
            now, connections = time.monotonic(), self.server.connections
            self._worked += self.core.measuring
            over = quiet.look(now, self._answered() + self._worked, connections)
            process.allow_large_pages(not quiet.tidy)
            if over and not self.core.in_flight and not self._loading.locked():
                await asyncio.to_thread(process.give_back_memory)
            if len(self.core.models) > 1:
                await asyncio.to_thread(self.memory.make_room)

    def _answered(self) -> int:
        return sum(counters.requests for counters in self.core.ledger)

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, message: Message, fds: list[int]) -> None:
        with contextlib.suppress(Closed):
            match message:
                case Load():
                    await self.channel.send(await self._load(message, fds))
                    if not message.slot:
                        self.first_load.set()
                case Warm():
                    ok = await asyncio.to_thread(engine.warm, message.engine)
                    await self.channel.send(Warmed(message.id, ok))
                case Unload():
                    async with self._loading:
                        self.core.swap(None)
                        await self.core.retired()
                    await self.channel.send(Unloaded(message.id))
                case StatsRequest():
                    await self.channel.send(self._stats(message.id))
                case Ping():
                    in_flight, age = self.core.in_flight, self.core.oldest_run_s()
                    await self.channel.send(Pong(message.id, in_flight, age, self._answered()))
                case Drain():
                    if message.abandon:
                        self.server.draining = True
                        self.core.abandon()
                    clean = await self.server.drain(message.timeout_s, message.grace_s, last=message.last)
                    await self.channel.send(Drained(message.id, clean))
                case _:
                    _log.error("unexpected message %s", type(message).__name__)

    async def _load(self, message: Load, fds: list[int]) -> Loaded:
        """Beside the old release; the swap itself is one assignment on the loop."""
        async with self._loading, self._large_pages():
            self.core.restarts = max(self.core.restarts, message.restarts)
            try:
                if message.replace:
                    self.core.leaving = self.core.model is not None
                    await asyncio.sleep(message.announce_s)
                    self.core.swap(None)
                    await self.core.retired()
                process.limit_growth(math.inf)  # two releases live side by side for a moment
                self.memory.budget_mib = message.memory_mib
                made, proven = await self._make(message, fds)
            except EdgekitError as exc:
                await asyncio.to_thread(process.give_back_memory)
                self._bound_memory()
                return engine.failure(message, exc)
            finally:
                self.core.leaving = False
                memfd.close_all(fds)
            self.core.swap(made, message.slot)
            if proven is not None and proven.trials is not None:
                made.lane.measure(proven.trials, self._settled)
            self.core.memory_budget_mib = message.memory_mib
            answer = engine.success(message, proven) if proven else engine.put_off(message)
        self._later(self._bound_when_alone())
        return answer

    @contextlib.asynccontextmanager
    async def _large_pages(self) -> AsyncIterator[None]:
        """For what a load takes, some of which stays; `tend` looks after it."""
        process.allow_large_pages(True)
        self._worked += 1
        try:
            yield
        finally:
            self._worked += 1

    async def _make(self, message: Load, fds: list[int]) -> tuple[Model, engine.Proven | None]:
        """What is to be served, and what was proven of it; None: it is loaded later. Raises EdgekitError."""
        core, beside = self.core, self.core.beside(message.slot)
        shared = bool(message.slot or beside)
        if shared and not message.lazy:
            await asyncio.to_thread(self.memory.make_room, memfd.forecast_mib(fds))
        session: Session | None = None
        proven = None
        before_mib, needs_mib = process.rss_mib(), memfd.forecast_mib(fds)
        if message.lazy and message.proven is not None:
            pace = engine.pace_of(message.proven)
            pipeline = await asyncio.to_thread(engine.pipeline, message, fds)
        else:
            proven = await asyncio.to_thread(engine.load, message, fds, most=core.limits.max_joined)
            pace, pipeline = proven.pace, proven.processor
            session = self.watch.over(proven.session, pace.run_ms)
            needs_mib = max(1.0, process.rss_mib() - before_mib)
        resident = self._resident(message, fds, session, pace, needs_mib) if shared else None
        serves = resident or session
        assert serves is not None  # noqa: S101 - only what is shared is loaded later
        counters = core.ledger.open(message.name, message.version, beside)
        counters.sketch = sketch(message.reference, message.config, counters.sketch)
        gate = Gate(core.limits.concurrency if serves.thread_safe else 1)
        made = Model(
            message.name, message.version, message.config, serves, pace, gate, counters,
            resident=resident, processor=pipeline,
        )  # fmt: skip
        return made, proven

    def _resident(
        self, message: Load, fds: list[int], session: Session | None, pace: Pace, needs_mib: float
    ) -> Resident:
        """A model that shares the memory with others, and can be loaded again for as long as it is served."""
        told = Pacing(pace.run_ms, pace.batch, pace.batch_ms)
        again = dataclasses.replace(message, proven=told)
        kept = [os.dup(fd) for fd in fds]

        def load() -> Session:
            return self.watch.over(engine.load(again, kept).session, pace.run_ms)

        forget = partial(memfd.close_all, kept)
        return Resident(self.memory, load, needs_mib, session, forget)

    async def _bound_when_alone(self) -> None:
        """Bound the memory once the release before is gone: its own no longer counts then."""
        await self.core.retired()
        async with self._loading:
            await asyncio.to_thread(process.give_back_memory)  # what loading took
            self._bound_memory()

    def _settled(self, pace: Pace) -> None:
        """The release has been measured while it served."""
        _log.info("a run takes %.3g ms; joined up to %d samples", pace.run_ms, pace.batch)
        self._later(asyncio.to_thread(process.give_back_memory))

    def _bound_memory(self) -> None:
        """Let private memory grow to the budget and a quarter; the supervisor acts before that."""
        budget = self.core.memory_budget_mib
        left = 1.25 * budget - process.rss_mib()
        process.limit_growth(max(_ALWAYS_MIB, left) if budget else math.inf)

    def _stats(self, number: int) -> Stats:
        core = self.core
        return Stats(
            id=number,
            serving=core.model.release if core.model else "",
            rss_mib=process.rss_mib(),
            in_flight=core.in_flight,
            connections=self.server.connections,
            uptime_s=time.monotonic() - self._begin,
            releases=tuple(counters.stats() for counters in core.ledger),
        )


async def serve(
    control: socket.socket,
    listeners: Sequence[socket.socket],
    limits: Limits,
    *,
    protocols: Sequence[str],
    watch: Watch,
    restarts: int,
    wait_for_load: bool,
    parser: str,
    safety: Safety,
    log_requests: logs.Requests,
) -> None:
    """Serve until told to stop, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    core = Core(limits, restarts=restarts)
    handle = traced(Router(core, protocols).handle, log_requests)
    server = Server(
        handle, limits, parser, safety,
        waiting=lambda: core.waiting, turns=core.turns, grpc=lambda: _grpc(core, protocols, log_requests),
        least_ahead=core.least_ahead,
    )  # fmt: skip
    core.connections = lambda: server.connections
    core.lone = server.lone
    worker = Worker(AsyncChannel(control), core, server, watch)
    obeying = asyncio.create_task(worker.obey())
    tending = asyncio.create_task(worker.tend())
    loop.add_signal_handler(signal.SIGTERM, obeying.cancel)
    if wait_for_load:
        waiting = asyncio.create_task(worker.first_load.wait())
        await asyncio.wait((obeying, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    if not obeying.done():
        await server.listen(listeners)
    with contextlib.suppress(asyncio.CancelledError):
        await obeying
    tending.cancel()
    server.close()


def _grpc(core: Core, protocols: Sequence[str], log_requests: logs.Requests) -> Registry:
    from edgekit_agent.serve.grpc import services  # when the first one asks

    return services.registry(core, protocols, log_requests)


def new_loop(name: str = "") -> asyncio.AbstractEventLoop:
    """An event loop by name; uvloop (half the time per request) where it is installed, when empty."""
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name:
                raise
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgekit_agent.worker")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, action="append", default=[], dest="listen")
    parser.add_argument("--limits", type=Limits.from_argument, default=Limits())
    parser.add_argument("--protocol", action="append", default=[], dest="protocols", help="all by default")
    parser.add_argument("--progress-fd", type=int, required=True)
    parser.add_argument("--stall-s", type=float, required=True)
    parser.add_argument("--hang-s", type=float, required=True)
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--wait-for-load", action="store_true")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="")
    parser.add_argument("--log", choices=get_args(logs.Format), default="text")
    parser.add_argument("--log-requests", choices=get_args(logs.Requests), default="none")
    parser.add_argument("--parser", choices=PARSERS, default="")
    parser.add_argument("--safety", type=Safety.from_argument, default=Safety())
    options = parser.parse_args(arguments)
    process.share_heap()
    logs.setup(options.log, logging.WARNING, "serving")
    logging.getLogger("edgekit.agent.requests").setLevel(logging.INFO)
    control = socket.socket(fileno=options.control_fd)
    listeners = [socket.socket(fileno=number) for number in options.listen]
    serving = serve(
        control,
        listeners,
        options.limits,
        protocols=options.protocols or (ALL,),
        watch=Watch(Page.attach(options.progress_fd), options.stall_s, options.hang_s),
        restarts=options.restarts,
        wait_for_load=options.wait_for_load,
        parser=options.parser,
        safety=options.safety,
        log_requests=options.log_requests,
    )
    try:
        # Not asyncio.run: at the end it waits for threads, and an engine may hang in one.
        new_loop(options.loop).run_until_complete(serving)
    except ConfigError as exc:  # the supervisor speaks another version: only a restart helps
        _log.error("%s", exc)
        return 2
    return 0
