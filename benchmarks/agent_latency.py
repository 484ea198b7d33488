"""What serving costs over the bare engine: latency, throughput and CPU, side by side in one run.

    python benchmarks/agent_latency.py [--quick] [--output benchmarks/results/agent_latency.json]

The same model (examples/kws, fp32, onnxruntime, one thread) and the same samples: a bare loop around
`session.run` in this process, and the real serving process over TCP as binary and JSON and over its Unix
socket. Rounds are interleaved, so that a busy moment of the machine hits all of them. Clients are threads
with raw sockets and prepared bytes; they wait for each answer before they send the next request.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgekit import files, host, runtimes  # noqa: E402
from edgekit_agent.serve.limits import Limits  # noqa: E402
from tests.support.serving import Stand, keyword_spotter, stand  # noqa: E402
from tests.unit.runtimes import kws  # noqa: E402

CONNECTIONS = (1, 4, 16)
SAMPLES = 64


@dataclass
class Measured:
    """Of one way to ask, over all rounds."""

    latency_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    requests: int = 0
    per_second: dict[int, list[float]] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        p50, p95, p99 = np.percentile(self.latency_ms, (50, 95, 99))
        rates = {str(count): round(float(np.median(values))) for count, values in self.per_second.items()}
        return {
            "p50_ms": round(float(p50), 4),
            "p95_ms": round(float(p95), 4),
            "p99_ms": round(float(p99), 4),
            "cpu_ms_per_request": round(self.cpu_s * 1e3 / self.requests, 4),
            "requests_per_s": rates,
            "requests": self.requests,
        }


def request(body: bytes, json_size: int = 0) -> bytes:
    """A whole HTTP request."""
    lines = ["POST /v2/models/kws/infer HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    if json_size:
        lines.append(f"Inference-Header-Content-Length: {json_size}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def binary_request(sample: runtimes.Array) -> bytes:
    raw = sample.tobytes()
    tensor = {
        "name": kws.INPUT,
        "datatype": "FP32",
        "shape": list(sample.shape),
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return request(head + raw, len(head))


def json_request(sample: runtimes.Array) -> bytes:
    data = sample.ravel().tolist()
    tensor = {"name": kws.INPUT, "datatype": "FP32", "shape": list(sample.shape), "data": data}
    return request(json.dumps({"inputs": [tensor]}).encode())


def ask(sock: socket.socket, message: bytes) -> bytes:
    """Send one request and read its answer's body. Raises RuntimeError unless it is 200."""
    sock.sendall(message)
    data = sock.recv(65536)
    while (end := data.find(b"\r\n\r\n")) < 0:
        data += sock.recv(65536)
    head = data[:end]
    size = int(head[head.index(b"Content-Length: ") + 16 :].split(b"\r\n")[0])
    while len(data) < end + 4 + size:
        data += sock.recv(65536)
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(data.decode(errors="replace"))
    return data[end + 4 :]


def _ask_nth(sock: socket.socket, messages: list[bytes], number: int) -> bytes:
    return ask(sock, messages[number % len(messages)])


def cpu_s(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serial(call: Callable[[int], object], seconds: float) -> list[float]:
    """Milliseconds of each call, one after the other."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        call(len(times))
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def parallel(
    connect: Callable[[], socket.socket], messages: list[bytes], count: int, seconds: float
) -> float:
    """Requests per second of `count` connections that each wait for their answers."""
    done = [0] * count
    start, stop = threading.Barrier(count + 1), threading.Event()

    def client(number: int) -> None:
        with contextlib.closing(connect()) as sock:
            ask(sock, messages[0])
            start.wait()
            while not stop.is_set():
                ask(sock, messages[(number + done[number]) % len(messages)])
                done[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    stop.set()
    elapsed = time.perf_counter() - begin
    total = sum(done)
    for thread in threads:
        thread.join()
    return total / elapsed


def unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock


def check(made: Stand, session: runtimes.Session, samples: runtimes.Array) -> None:
    """The server answers what the engine answers, or no figure is worth anything."""
    with contextlib.closing(made.connect()) as sock:
        for sample in samples:
            body = ask(sock, binary_request(sample[None]))
            served = np.frombuffer(body[-48:], "<f4")
            np.testing.assert_allclose(
                served, session.run({kws.INPUT: sample[None]})[kws.OUTPUT][0], atol=1e-6
            )


def measure(made: Stand, threaded: Stand, rounds: int, seconds: float) -> dict[str, Measured]:
    """Every way to ask, `rounds` times in turn. `threaded` is a server that never runs inline."""
    samples = (kws.data()[0][:SAMPLES].astype(np.float32) - np.float32(83.0)) * np.float32(
        kws.SCALE.affine[0].scale
    )
    session = kws.session("onnxruntime", intra_threads=1)
    check(made, session, samples)
    binary = [binary_request(sample[None]) for sample in samples]
    text = [json_request(sample[None]) for sample in samples]
    asks: dict[str, tuple[Stand, Callable[[], socket.socket], list[bytes]]] = {
        "TCP, binary": (made, made.connect, binary),
        "TCP, JSON": (made, made.connect, text),
        "Unix socket, binary": (made, lambda: unix(made.path), binary),
        "TCP, binary, engine in a thread": (threaded, threaded.connect, binary),
    }
    results = {name: Measured() for name in ("bare engine", *asks)}
    singles = [{kws.INPUT: sample[None]} for sample in samples]
    for _ in range(rounds):
        bare = results["bare engine"]
        begin = time.process_time()
        times = serial(lambda i: session.run(singles[i % SAMPLES]), seconds)
        bare.cpu_s += time.process_time() - begin
        bare.requests += len(times)
        bare.latency_ms += times
        bare.per_second.setdefault(1, []).append(len(times) / (sum(times) / 1e3))
        for name, (server, connect, messages) in asks.items():
            result, pid = results[name], server.serving.process.pid
            with contextlib.closing(connect()) as sock:
                begin = cpu_s(pid)
                times = serial(partial(_ask_nth, sock, messages), seconds)
                result.cpu_s += cpu_s(pid) - begin
                result.requests += len(times)
                result.latency_ms += times
            for count in CONNECTIONS:
                result.per_second.setdefault(count, []).append(parallel(connect, messages, count, seconds))
    return results


def table(results: dict[str, Measured], machine: str) -> dict[str, Any]:
    """What docs/check.py turns into Markdown."""
    rows = []
    base = results["bare engine"].summary()
    for name, measured in results.items():
        found = measured.summary()
        rates = found["requests_per_s"]
        ratio = found["p50_ms"] / base["p50_ms"]
        rows.append(
            [
                name,
                f"{found['p50_ms']:.3f}",
                f"{found['p95_ms']:.3f}",
                f"{found['p99_ms']:.3f}",
                f"{ratio:.1f}x",
                f"{found['cpu_ms_per_request']:.3f}",
                *(str(rates.get(str(count), "")) for count in CONNECTIONS),
            ]
        )
    columns = ["keyword spotter, batch 1", "p50 ms", "p95 ms", "p99 ms", "p50 / bare", "CPU ms"]
    columns += [f"req/s, {count} conn." for count in CONNECTIONS]
    note = (
        f"fp32, onnxruntime with one thread, closed-loop clients on the same machine ({machine}); all rows"
        " measured interleaved in one run by `benchmarks/agent_latency.py`. CPU ms: of the serving process"
        " (of the whole loop for the bare engine)."
    )
    return {"columns": columns, "rows": rows, "note": note}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of a minute")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "agent_latency.json")
    options = parser.parse_args()
    rounds, seconds = (2, 0.3) if options.quick else (6, 0.8)
    machine = host.read()
    described = f"{machine.cpu}, {machine.cores} cores"
    with contextlib.ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        made = stack.enter_context(stand(folders[0]))
        threaded = stack.enter_context(stand(folders[1], Limits(inline_ms=0)))
        model = keyword_spotter()
        loaded = model.into(made.serving)
        if not (loaded.ok and model.into(threaded.serving).ok):
            raise RuntimeError(f"the model does not load: {loaded.message}")
        results = measure(made, threaded, rounds, seconds)
        rss = made.serving.stats().rss_mib
    document = {
        "benchmark": "agent_latency",
        "quick": options.quick,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "serving_rss_mib": round(rss, 1),
        "run_ms_on_load": round(loaded.run_ms, 4),
        "results": {name: measured.summary() for name, measured in results.items()},
        "table": table(results, described),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=2).encode() + b"\n")
    for row in [document["table"]["columns"], *document["table"]["rows"]]:
        print("  ".join(f"{cell:>18}" for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
