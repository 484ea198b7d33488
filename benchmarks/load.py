"""Closed-loop HTTP load from one thread: every connection waits for its answer before it asks again.

    python -m benchmarks.load 127.0.0.1:8000 8 2.0 < request     prints {"requests_per_s": ..., "p50_ms": ...}

A process of its own, so that neither the benchmark nor the server shares an interpreter with it; select.epoll
and plain sockets, so that one core asks as fast as a server of this kind can answer.
"""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

_CHUNK = 1 << 18
_WARM = 3
"""Requests of each connection before the clock starts."""


@dataclass(frozen=True)
class Result:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    worst_ms: float
    answered: int
    """All requests, those before and after the measured time included: what CPU time is divided by."""


def run(address: str, message: bytes, connections: int, seconds: float) -> Result:
    """In a process of its own. Raises RuntimeError with the first answer that is not 200."""
    command = [sys.executable, "-m", "benchmarks.load", address, str(connections), str(seconds)]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, input=message, capture_output=True, cwd=root, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.decode(errors="replace").strip()[-400:])
    return Result(**json.loads(done.stdout))


def connect(address: str) -> socket.socket:
    """`host:port`, or the path of a Unix socket."""
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address)
        return sock
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=60)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(None)  # with a timeout each call would poll first
    return sock


def missing(data: bytes) -> int:
    """Bytes that the answer in `data` still lacks; at least 1 while its header is incomplete."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return 1
    if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
        raise RuntimeError(data[:400].decode(errors="replace"))
    head = data[:end].lower()
    start = head.index(b"content-length:") + 15
    stop = head.find(b"\r\n", start)
    return end + 4 + int(head[start : stop if stop > 0 else end]) - len(data)


def ask(sock: socket.socket, message: bytes) -> bytes:
    """One request and its whole answer."""
    sock.sendall(message)
    data = sock.recv(_CHUNK)
    while missing(data) > 0:
        more = sock.recv(_CHUNK)
        if not more:
            raise RuntimeError("the server hung up")
        data += more
    return data


def measure(address: str, message: bytes, connections: int, seconds: float) -> Result:
    """In this process."""
    socks = [connect(address) for _ in range(connections)]
    for sock in socks:
        for _ in range(_WARM):
            ask(sock, message)
    poller = select.epoll()
    by_number = {sock.fileno(): sock for sock in socks}
    begun: dict[int, float] = {}
    partial: dict[int, bytes] = {}
    times: list[float] = []
    clock = time.perf_counter
    start = clock()
    stop = start + seconds
    for number, sock in by_number.items():
        poller.register(number, select.EPOLLIN)
        begun[number] = clock()
        sock.sendall(message)
    answered = (_WARM + 1) * connections
    while begun:
        for number, _ in poller.poll(30):
            sock = by_number[number]
            data = sock.recv(_CHUNK)
            if not data:
                raise RuntimeError("the server hung up")
            if number in partial:
                data = partial.pop(number) + data
            if missing(data) > 0:
                partial[number] = data
                continue
            now = clock()
            if now > stop:
                del begun[number]
                continue
            times.append(now - begun[number])
            begun[number] = now
            sock.sendall(message)
    for sock in socks:
        sock.close()
    p50, p99 = (round(float(value) * 1e3, 4) for value in np.percentile(times, (50, 99)))
    return Result(round(len(times) / seconds, 1), p50, p99, round(max(times) * 1e3, 3), answered + len(times))


def main() -> int:
    address, connections, seconds = sys.argv[1:]
    message = sys.stdin.buffer.read()
    print(json.dumps(asdict(measure(address, message, int(connections), float(seconds)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
