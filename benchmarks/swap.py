"""Releases that are swapped under load: failed requests, latency and memory.

    python -m benchmarks.swap [--quick] [--rate 200] [--swaps 20] [--output benchmarks/results/swap.json]

The real serving process with the keyword spotter (fp32, onnxruntime, one thread). Clients on kept
connections send at a fixed rate whatever the answers do (open loop): a request's latency counts from when it
was due, so that a stall is not hidden by clients that wait. Stretches without and with swaps take turns.
Memory is the process's own after the first stretch and after the last, when it has given back what it can.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import platform
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.agent_latency import ask, binary_request
from edgekit import files, host, runtimes
from edgekit.runtimes._preprocess import apply
from edgekit_agent import board
from tests.support.serving import Stand, keyword_spotter, stand
from tests.unit.runtimes import kws

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = 16
"""Enough that one is always free to send on time."""
SETTLE_S = 2.0
STRETCH_S = 3.0
PER_STRETCH = 2


@dataclass
class Stretch:
    """What happened to the requests of one stretch."""

    latency_ms: list[float] = field(default_factory=list)
    late_ms: float = 0.0
    """The clients' own lateness, at worst: this much of a latency may be theirs."""
    failed: list[str] = field(default_factory=list)
    rss_mib: float = 0.0

    def summary(self) -> dict[str, Any]:
        p50, p99, worst = np.percentile(self.latency_ms, (50, 99, 100))
        return {
            "requests": len(self.latency_ms) + len(self.failed),
            "failed": len(self.failed),
            "reasons": sorted(set(self.failed))[:5],
            "p50_ms": round(float(p50), 3),
            "p99_ms": round(float(p99), 3),
            "worst_ms": round(float(worst), 3),
            "clients_late_ms": round(self.late_ms, 3),
            "rss_mib": round(self.rss_mib, 1),
        }


def offer(made: Stand, messages: list[bytes], rate: float, seconds: float, result: Stretch) -> None:
    """Send `rate` requests per second for `seconds`; every answer must be 200."""
    count = int(rate * seconds)
    numbers, lock = itertools.count(), threading.Lock()
    begin = time.perf_counter() + 0.1

    def client() -> None:
        with contextlib.closing(made.connect()) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while (number := next(numbers)) < count:
                due = begin + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                late = time.perf_counter() - due
                try:
                    ask(sock, messages[number % len(messages)])
                except (OSError, RuntimeError) as exc:
                    with lock:
                        result.failed.append(str(exc)[:100])
                    return
                took = time.perf_counter() - due
                with lock:
                    result.latency_ms.append(took * 1e3)
                    result.late_ms = max(result.late_ms, late * 1e3)

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(rate: float, swaps: int) -> dict[str, Any]:
    """Stretches without and with swaps in turn, so that a busy moment of the machine hits either."""
    samples = apply(kws.SCALE.affine[0], kws.data()[0][:64])
    messages = [binary_request(sample[None]) for sample in samples]
    model = keyword_spotter("0")
    versions = itertools.count(1)
    took_ms: list[float] = []
    plain, swapping = Stretch(), Stretch()

    def swap() -> None:
        for _ in range(PER_STRETCH):
            time.sleep(STRETCH_S / (PER_STRETCH + 1))
            begin = time.perf_counter()
            answer = model.changed(version=str(next(versions))).into(made.serving)
            took_ms.append((time.perf_counter() - begin) * 1e3)
            if not answer.ok:
                swapping.failed.append(answer.message)

    with tempfile.TemporaryDirectory() as folder, stand(Path(folder)) as made:
        if not model.into(made.serving).ok:
            raise RuntimeError("the model does not load")
        offer(made, messages, rate, 2.0, Stretch())  # warm
        # One swap before memory is read: what a second release ever costs (code, heap) has been paid then.
        model.changed(version=str(next(versions))).into(made.serving)
        pid = made.serving.process.pid
        while len(took_ms) < swaps:
            offer(made, messages, rate, STRETCH_S, plain)
            if not plain.rss_mib:
                time.sleep(SETTLE_S)
                plain.rss_mib = board.resident_mib(pid)
            thread = threading.Thread(target=swap)
            thread.start()
            offer(made, messages, rate, STRETCH_S, swapping)
            thread.join()
        time.sleep(SETTLE_S)
        swapping.rss_mib = board.resident_mib(pid)
    before, after = plain.summary(), swapping.summary()
    return {
        "plain": before,
        "swapping": after,
        "swaps": len(took_ms),
        "swap_ms": {"p50": round(float(np.median(took_ms)), 1), "worst": round(max(took_ms), 1)},
        "worst_over_baseline_ms": round(after["worst_ms"] - before["worst_ms"], 3),
        "memory_ratio": round(swapping.rss_mib / plain.rss_mib, 4),
    }


def table(found: dict[str, Any], rate: float, machine: str) -> dict[str, Any]:
    """What docs/check.py turns into Markdown."""
    rows = [
        [name, str(one["requests"]), str(one["failed"]), f"{one['p50_ms']:.2f}", f"{one['p99_ms']:.2f}",
         f"{one['worst_ms']:.1f}", f"{one['rss_mib']:.1f}"]
        for name, one in (("no swap", found["plain"]), (f"{found['swaps']} swaps", found["swapping"]))
    ]  # fmt: skip
    note = (
        f"keyword spotter, fp32, onnxruntime with one thread; {rate:g} requests/s, open loop, {CLIENTS} kept"
        f" connections, on the same machine ({machine}). A swap loads, warms, repeats the golden samples and"
        f" takes {found['swap_ms']['p50']:.0f} ms (median). `benchmarks/swap.py`."
    )
    return {
        "columns": ["", "requests", "failed", "p50 ms", "p99 ms", "worst ms", "memory MiB"],
        "rows": rows,
        "note": note,
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 swaps")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "swap.json")
    options = parser.parse_args()
    swaps = 4 if options.quick else options.swaps
    machine = host.read()
    found = measure(options.rate, swaps)
    document = {
        "benchmark": "swap",
        "quick": options.quick,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "rate_per_s": options.rate,
        **found,
        "table": table(found, options.rate, f"{machine.cpu}, {machine.cores} cores"),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=2).encode() + b"\n")
    for row in [document["table"]["columns"], *document["table"]["rows"]]:
        print("  ".join(f"{cell:>10}" for cell in row))
    print(f"worst over baseline {found['worst_over_baseline_ms']} ms, memory x {found['memory_ratio']}")
    return 1 if found["swapping"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
