"""From HTTP paths to protocols, and the pages that belong to none of them."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Sequence
from typing import Protocol as Interface

from edgekit_agent.board import Meter
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import protocols
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.message import Request, Response, error

_KEPT, _MAX_KEPT_BYTES = 256, 256
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class Protocol(Interface):
    """A protocol over HTTP: the class `Protocol` of a module `serve/<name>.py`, made with the core."""

    name: str
    """In the agent's configuration."""

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        """Answer through `respond`, or return False: not one of this protocol's paths, ask the next.

        `parts`: the path without its leading slash, split at slashes and percent-decoded; at least one.
        """
        ...


class Router:
    """Lives on the event loop."""

    def __init__(self, core: Core, names: Sequence[str] = (protocols.ALL,)) -> None:
        """`names`: as in the configuration. Raises ConfigError for one that is unknown."""
        self._core = core
        self._parts: dict[bytes, list[str]] = {}
        self._meter = Meter()
        self._protocols = [load(name, core) for name in protocols.chosen(names)]

    def handle(self, request: Request, respond: Respond) -> None:
        """Answer `request` through `respond`. Never raises."""
        memo = request.memo
        try:
            if memo is not None and memo.again is not None and memo.again(request, respond):
                return
            parts = self._parts.get(request.target)
            if parts is None:
                parts = self._split(request.target)
            for protocol in self._protocols:
                if protocol.handle(parts, request, respond):
                    return
            if parts != ["metrics"]:
                respond(error(404, "Not Found"))
            elif http.allowed(b"GET", request, respond):
                self._metrics(respond)
        except Exception as exc:  # a bug of ours: the client gets an answer, the log a traceback
            self._core.complain("answering a request", exc)
            respond(error(500, "internal error; see the agent's log"))

    def _split(self, target: bytes) -> list[str]:
        parts = http.parts_of(target)
        if len(target) <= _MAX_KEPT_BYTES:
            if len(self._parts) >= _KEPT:
                self._parts.clear()
            self._parts[target] = parts
        return parts

    def _metrics(self, respond: Respond) -> None:
        """The board is read on a thread: a temperature may take milliseconds."""
        reading = asyncio.get_running_loop().run_in_executor(None, self._meter.read)
        reading.add_done_callback(
            lambda done: respond(Response(200, self._core.exposition(done.result()), _PROMETHEUS))
        )


def load(name: str, core: Core) -> Protocol:
    """The protocol that protocols.HTTP knows by this name."""
    made: Protocol = importlib.import_module(protocols.HTTP[name]).Protocol(core)
    return made
