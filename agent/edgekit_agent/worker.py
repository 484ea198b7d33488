"""`python -m edgekit_agent.worker`: the serving process, started by launch.start, led by messages.

It holds no keys and no state: when it dies, the supervisor starts another on the same listening sockets
and loads the release again from its own memory. It dies when the supervisor does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence

from edgekit.errors import ConfigError, EdgekitError
from edgekit_agent import memfd, process
from edgekit_agent.ipc import AsyncChannel, Closed
from edgekit_agent.messages import (
    Drain,
    Drained,
    Load,
    Loaded,
    Message,
    Ping,
    Pong,
    Shutdown,
    Stats,
    StatsRequest,
    Unload,
    Unloaded,
)
from edgekit_agent.serve import engine
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.protocols import ALL
from edgekit_agent.serve.router import Router
from edgekit_agent.serve.safety import Safety
from edgekit_agent.serve.server import PARSERS, Server

_log = logging.getLogger(__name__)


class Worker:
    """Carries out the supervisor's messages, loads one after the other, the rest at once."""

    def __init__(self, channel: AsyncChannel, core: Core, server: Server) -> None:
        self.channel = channel
        self.core = core
        self.server = server
        self.first_load = asyncio.Event()
        self._begin = time.monotonic()
        self._loading = asyncio.Lock()
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
            task = asyncio.create_task(self._carry_out(message, fds))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, message: Message, fds: list[int]) -> None:
        with contextlib.suppress(Closed):
            match message:
                case Load():
                    await self.channel.send(await self._load(message, fds))
                    self.first_load.set()
                case Unload():
                    async with self._loading:
                        self.core.swap(None)
                        await self.core.retired()
                    await self.channel.send(Unloaded(message.id))
                case StatsRequest():
                    await self.channel.send(self._stats(message.id))
                case Ping():
                    in_flight, age = self.core.in_flight, self.core.oldest_run_s()
                    await self.channel.send(Pong(message.id, in_flight, age))
                case Drain():
                    clean = await self.server.drain(message.timeout_s)
                    await self.channel.send(Drained(message.id, clean))
                case _:
                    _log.error("unexpected message %s", type(message).__name__)

    async def _load(self, message: Load, fds: list[int]) -> Loaded:
        """Beside the old release; the swap itself is one assignment on the loop."""
        async with self._loading:
            try:
                if message.replace:
                    self.core.swap(None)
                    await self.core.retired()
                most = self.core.limits.max_joined
                proven = await asyncio.to_thread(engine.load, message, fds, most=most)
            except EdgekitError as exc:
                await asyncio.to_thread(process.give_back_memory)
                return engine.failure(message, exc)
            finally:
                memfd.close_all(fds)
            await asyncio.to_thread(process.give_back_memory)  # what loading and measuring took
            width = self.core.limits.concurrency if proven.session.thread_safe else 1
            counters = self.core.ledger.open(message.name, message.version)
            self.core.swap(
                Model(
                    message.name,
                    message.version,
                    message.config,
                    proven.session,
                    proven.pace,
                    Gate(width),
                    counters,
                    proven.processor,
                )
            )
            return engine.success(message, proven)

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
    restarts: int,
    wait_for_load: bool,
    parser: str,
    safety: Safety,
) -> None:
    """Serve until told to stop, or until the supervisor is gone."""
    loop = asyncio.get_running_loop()
    core = Core(limits, version=importlib.metadata.version("edgekit-agent"), restarts=restarts)
    server = Server(Router(core, protocols).handle, limits, parser, safety)
    worker = Worker(AsyncChannel(control), core, server)
    obeying = asyncio.create_task(worker.obey())
    loop.add_signal_handler(signal.SIGTERM, obeying.cancel)
    if wait_for_load:
        waiting = asyncio.create_task(worker.first_load.wait())
        await asyncio.wait((obeying, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    if not obeying.done():
        await server.listen(listeners)
    with contextlib.suppress(asyncio.CancelledError):
        await obeying
    server.close()


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
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, action="append", default=[], dest="listen")
    parser.add_argument("--limits", type=Limits.from_argument, default=Limits())
    parser.add_argument("--protocol", action="append", default=[], dest="protocols", help="all by default")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--wait-for-load", action="store_true")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="")
    parser.add_argument("--parser", choices=PARSERS, default="")
    parser.add_argument("--safety", type=Safety.from_argument, default=Safety())
    options = parser.parse_args(arguments)
    process.harden(options.parent)
    process.share_heap()
    logging.basicConfig(level=logging.WARNING, format="edgekit-serving: %(levelname)s %(message)s")
    control = socket.socket(fileno=options.control_fd)
    listeners = [socket.socket(fileno=number) for number in options.listen]
    serving = serve(
        control,
        listeners,
        options.limits,
        protocols=options.protocols or (ALL,),
        restarts=options.restarts,
        wait_for_load=options.wait_for_load,
        parser=options.parser,
        safety=options.safety,
    )
    try:
        # Not asyncio.run: at the end it waits for threads, and an engine may hang in one.
        new_loop(options.loop).run_until_complete(serving)
    except ConfigError as exc:  # the supervisor speaks another version: only a restart helps
        _log.error("%s", exc)
        return 2
    return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # engines' threads and destructors have nothing to add
