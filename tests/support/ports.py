"""Ports for programs that have to be told one before they bind it."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _EACH = 20_000, 1500
"""Below what the kernel gives to others in the meantime (net.ipv4.ip_local_port_range, from 32768 on)."""
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
_next = itertools.cycle(range(_FIRST + _worker * _EACH, _FIRST + (_worker + 1) * _EACH))


def free_port() -> int:
    """Of loopback; no other test that runs beside this one gets the same. Raises RuntimeError."""
    for port in itertools.islice(_next, _EACH):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no port is free from {_FIRST} on")
