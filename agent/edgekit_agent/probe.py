"""The probe: load and golden-check one candidate, or look which engines there are. Started by launch.py
through child.py.

Reads one Load from the control socket and answers with one Loaded, or a Survey and answers with a Found for
each engine, and ends. Whatever else happens (a crash, a hang, no memory) happens here and neither where
requests are served nor in the supervisor.
"""

from __future__ import annotations

import argparse
import logging
import socket

from edgekit import runtimes
from edgekit.errors import EdgekitError
from edgekit_agent import process
from edgekit_agent.ipc import Channel, Closed
from edgekit_agent.messages import Found, Load, Survey

log = logging.getLogger("edgekit.agent.probe")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m edgekit_agent.probe")
    parser.add_argument("--control-fd", type=int, required=True)
    parser.add_argument("--memory-mib", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.memory_mib:
        process.limit_memory(options.memory_mib)
    channel = Channel(socket.socket(fileno=options.control_fd))
    try:
        request, fds = channel.receive()
    except Closed:
        return 1
    if isinstance(request, Survey):
        return _survey(request, channel)
    if not isinstance(request, Load):
        return 1
    from edgekit_agent.serve import engine  # NumPy comes in here, under the memory limit

    try:
        answer = engine.success(request, engine.load(request, fds))
    except EdgekitError as exc:
        answer = engine.failure(request, exc)
    channel.send(answer)
    return 0 if answer.ok else 3


def _survey(request: Survey, channel: Channel) -> int:
    for name in request.engines:
        try:
            version = runtimes.get(name).version()
        except EdgekitError:
            version = ""
        except Exception as exc:  # a stranger's engine may raise anything
            log.warning("engine %s is left out: %s: %s", name, type(exc).__name__, exc)
            version = ""
        channel.send(Found(request.id, name, version))
    return 0
