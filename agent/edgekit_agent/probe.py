"""The probe: load and golden-check one candidate, answer, end. Started by launch.probe through child.py.

Reads one Load from the control socket, answers with one Loaded. Whatever else happens (a crash, a hang,
no memory) happens here and not where requests are served; see launch.probe.
"""

from __future__ import annotations

import argparse
import socket

from edgekit.errors import EdgekitError
from edgekit_agent import process
from edgekit_agent.ipc import Channel, Closed
from edgekit_agent.messages import Load


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
    if not isinstance(request, Load):
        return 1
    from edgekit_agent.serve import engine  # NumPy comes in here, under the memory limit

    try:
        answer = engine.success(request, engine.load(request, fds))
    except EdgekitError as exc:
        answer = engine.failure(request, exc)
    channel.send(answer)
    return 0 if answer.ok else 3
