"""Closed-loop gRPC load with h2load (apt: nghttp2-client), one stream on each connection."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.load import Result
from benchmarks.peers.asks import GRPC_PATH

_FEW = 8
"""Requests of each connection from which the number for the wanted time is told."""


def run(address: str, message: bytes, connections: int, seconds: float) -> Result:
    """Raises RuntimeError when an answer's HTTP status is not 200; h2load reads no grpc-status."""
    few = _FEW * connections
    tried = _count(address, message, connections, few)
    result = _count(address, message, connections, max(few, round(tried.requests_per_s * seconds)))
    return Result(
        result.requests_per_s, result.p50_ms, result.p99_ms, result.worst_ms, tried.answered + result.answered
    )


def _count(address: str, message: bytes, connections: int, requests: int) -> Result:
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name, "body"), Path(name, "log")
        body.write_bytes(message)
        words = [
            "h2load",
            "-t1",
            f"-c{connections}",
            "-m1",
            f"-n{requests}",
            f"-d{body}",
            f"--log-file={log}",
        ]
        words += [
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            f"http://{address}{GRPC_PATH}",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", done.stdout)
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    if done.returncode or rate is None or len(lines) != requests or any(line[1] != "200" for line in lines):
        raise RuntimeError(f"h2load: {(done.stdout + done.stderr)[-400:]}")
    times = np.array([int(line[2]) for line in lines]) / 1e3
    p50, p99 = (round(float(value), 4) for value in np.percentile(times, (50, 99)))
    return Result(float(rate[1]), p50, p99, round(float(times.max()), 3), requests)
