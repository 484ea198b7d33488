"""Hours of mixed requests at a fixed rate: does the agent's memory stay what it was?

    python -m benchmarks.soak [--rate 500] [--seconds 3600] [--output benchmarks/results/soak.json]

`edgekit-agent serve` (supervisor, serving process, spare) with the keyword spotter, and one client that
sends whatever the answers do (open loop): binary and JSON of the Open Inference Protocol, TensorFlow
Serving's REST, gRPC, over TCP and the Unix socket, one request in twenty a mistake, and two connections a
second that come and go, every other one with broken HTTP. Every answer's status is checked, and the numbers
of every tenth.
Every 10 s memory, descriptors and threads of each process are read. What came before `--warm`
seconds does not count: by then every path has been taken and heaps have their size.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import random
import select
import sys
import tempfile
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.soak_lanes import MIX, Failed, Lane, lanes, visit
from edgekit import files, host, runtimes
from tests.support.serving import keyword_spotter
from tests.support.started import Started, started

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_S = 10.0
MINUTE = 60.0
VISITS_PER_S = 2.0
BURST = 50
FLAT_PERCENT = 2.0
READINGS = {
    "rss_mib": "RSS MiB", "anonymous_mib": "its own MiB", "pss_mib": "PSS MiB", "fds": "descriptors",
    "threads": "threads",
}  # fmt: skip
"""Judged is RSS. PSS is told: other programs that map the same libraries change it. So is what is the
process's own and not of files: half of RSS, of which a step of the heap is twice the percents."""
JUDGED = ("rss_mib",)


@dataclass
class Watched:
    """Readings of one process, one row per sample."""

    process: psutil.Process
    rows: list[tuple[float, ...]] = field(default_factory=list)
    """Seconds since the start, then READINGS."""

    def read(self, now: float) -> None:
        folder = Path(f"/proc/{self.process.pid}")
        sizes = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
        names = ("Rss", "Anonymous", "Pss")
        rss, own, pss = (int(sizes[name].split()[0]) / 1024 for name in names)
        fds = sum(1 for _ in (folder / "fd").iterdir())
        self.rows.append((now, rss, own, pss, fds, self.process.num_threads()))


@dataclass
class Load:
    """What became of the requests."""

    sent: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    latency_ms: array[float] = field(default_factory=lambda: array("f"))
    """Of every answer on a kept connection, in the order of arrival, counted from when it was due."""
    minutes: list[int] = field(default_factory=list)
    """How many there were at the end of each minute."""
    late_ms: array[float] = field(default_factory=lambda: array("f"))
    """The client's own lateness."""
    visits: int = 0
    refused: int = 0
    """For too many at once, after the machine stood still: 429 and its like."""


def offer(agent: Started, rate: float, seconds: float, watched: list[Watched]) -> Load:
    """Send `rate` requests per second for `seconds`."""
    load, chance = Load(), random.Random(1)
    order = [kind for kind, share in MIX.items() for _ in range(share)]
    chance.shuffle(order)
    open_lanes = lanes(agent)
    poller = select.epoll()
    by_number: dict[int, Lane] = {}
    for group in open_lanes.values():
        for lane in group:
            poller.register(lane.number, select.EPOLLIN)
            by_number[lane.number] = lane

    def renew(lane: Lane, exc: Exception) -> None:
        """The requests on this connection failed; go on with another."""
        load.failed[f"{lane.kind}: {str(exc)[:120]}"] += max(1, len(lane.waiting))
        poller.unregister(lane.number)
        del by_number[lane.number]
        lane.reconnect()
        poller.register(lane.number, select.EPOLLIN)
        by_number[lane.number] = lane

    clock = time.perf_counter
    begin = clock()
    total, number = int(rate * seconds), 0
    sample_at = visit_at = begin
    minute_at = begin + MINUTE
    while number < total or any(lane.waiting for lane in by_number.values()):
        now = clock()
        for _ in range(BURST):  # after a standstill; answers are to be read meanwhile
            if number >= total or begin + number / rate > now:
                break
            due = begin + number / rate
            kind = order[number % len(order)]
            group = open_lanes[kind]
            load.sent[kind] += 1
            lane = group[number // len(order) % len(group)]
            try:
                lane.send(due)
            except OSError as exc:
                renew(lane, exc)
            load.late_ms.append((now - due) * 1e3)
            number += 1
        if now >= sample_at:
            sample_at += SAMPLE_S
            for one in watched:
                one.read(now - begin)
        if now >= visit_at and number < total:
            visit_at += 1 / VISITS_PER_S
            _count(load, "visit", visit, agent, load.visits)
            load.visits += 1
        if now >= minute_at:
            minute_at += MINUTE
            load.minutes.append(len(load.latency_ms))
        if number >= total and now > begin + seconds + 30:
            load.failed["no answer within 30 s"] += sum(len(lane.waiting) for lane in by_number.values())
            break
        stuck = [lane for lane in by_number.values() if lane.unsent]
        for lane in stuck:
            try:
                lane.flush()
            except OSError as exc:
                renew(lane, exc)
        wait = max(0.0, min(begin + number / rate, sample_at) - clock())
        for ready, _ in poller.poll(min(wait, 0.01) if stuck else wait):
            if ready not in by_number:
                continue
            lane = by_number[ready]
            try:
                lane.receive(load.latency_ms)
            except (OSError, Failed) as exc:
                renew(lane, exc)
    load.minutes.append(len(load.latency_ms))
    for lane in by_number.values():
        load.refused += lane.refused
        lane.close()
    return load


def _count(load: Load, name: str, call: Any, *arguments: Any) -> None:
    try:
        call(*arguments)
    except (OSError, Failed) as exc:
        load.failed[f"{name}: {str(exc)[:120]}"] += 1


def trend(rows: list[tuple[float, ...]], column: int, warm_s: float) -> dict[str, float]:
    """Of one reading after the warm-up: medians of the first and last five minutes, the spread of medians by
    minute, and what a straight line through all of it gains from end to end. Percentages are of the first."""
    times = np.array([row[0] for row in rows])
    values = np.array([row[column] for row in rows])
    kept = times >= warm_s if np.any(times >= warm_s) else times >= 0
    times, values = times[kept], values[kept]
    part = min(5 * MINUTE, (times[-1] - times[0]) / 2)
    first = float(np.median(values[times <= times[0] + part]))
    last = float(np.median(values[times >= times[-1] - part]))
    minute = (times // MINUTE).astype(int)
    medians = [float(np.median(values[minute == one])) for one in np.unique(minute)]
    slope = float(np.polyfit(times, values, 1)[0]) if len(times) > 1 else 0.0
    return {
        "first": round(first, 2),
        "last": round(last, 2),
        "lowest": round(min(medians), 2),
        "highest": round(max(medians), 2),
        "change_percent": round(100 * (last / first - 1), 3),
        "spread_percent": round(100 * (max(medians) - min(medians)) / first, 3),
        "fit_percent": round(100 * slope * float(times[-1] - times[0]) / first, 3),
    }


def latencies(load: Load) -> dict[str, Any]:
    values = np.frombuffer(load.latency_ms, np.float32)
    marks = [0, *load.minutes]
    minutes = [values[a:b] for a, b in itertools.pairwise(marks) if b - a > 100]
    p50, p99, p999, worst = (round(float(v), 3) for v in np.percentile(values, (50, 99, 99.9, 100)))
    return {
        "answers": len(values),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99.9_ms": p999,
        "worst_ms": worst,
        "p50_ms_by_minute": [round(float(np.median(one)), 3) for one in minutes],
        "p99_ms_by_minute": [round(float(np.percentile(one, 99)), 3) for one in minutes],
        "client_late_ms_p99": round(float(np.percentile(np.frombuffer(load.late_ms, np.float32), 99)), 3),
    }


def table(trends: dict[str, dict[str, dict[str, float]]], note: str) -> dict[str, Any]:
    rows = [
        [f"{name}, {READINGS[kind]}", f"{one['first']:g}", f"{one['last']:g}",
         f"{one['lowest']:g} to {one['highest']:g}", f"{one['fit_percent']:+.2f} %"]
        for name, kinds in trends.items() for kind, one in kinds.items()
    ]  # fmt: skip
    columns = ["", "first 5 minutes", "last 5 minutes", "medians by minute", "straight line, end to end"]
    return {"columns": columns, "rows": rows, "note": note}


def thin(rows: list[tuple[float, ...]]) -> list[list[float]]:
    """About sixty readings, for the record."""
    return [[round(value, 2) for value in row] for row in rows[:: max(1, len(rows) // 60)]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--warm", type=float, default=300.0, help="seconds that do not count")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "soak.json")
    options = parser.parse_args()
    machine = host.read()
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), keyword_spotter("1.2.3")) as agent:
        watched = {"serving process": Watched(agent.serving), "supervisor": Watched(agent.supervisor)}
        busy = agent.serving.cpu_times()
        load = offer(agent, options.rate, options.seconds, list(watched.values()))
        same, complaints = agent.same(), agent.complaints()
        cpu = agent.serving.cpu_times() if same else busy
    trends = {
        name: {kind: trend(one.rows, column, options.warm) for column, kind in enumerate(READINGS, 1)}
        for name, one in watched.items()
    }
    sent, failed = sum(load.sent.values()) + load.visits, sum(load.failed.values())
    memory = [kinds[kind] for kinds in trends.values() for kind in JUDGED]
    worst = max(max(one["fit_percent"], one["change_percent"], one["spread_percent"]) for one in memory)
    flat = worst <= FLAT_PERCENT
    times = latencies(load)
    cpu_ms = (cpu.user + cpu.system - busy.user - busy.system) * 1e3 / max(1, sent)
    note = (
        f"{sent} requests in {options.seconds:g} s, {options.rate:g} a second, {failed} without their answer,"
        f" {load.refused} refused because too many came at once after a standstill of the machine;"
        f" p50 {times['p50_ms']:.2f} ms, p99 {times['p99_ms']:.2f} ms, {cpu_ms:.2f} ms CPU for each;"
        f" without the first {options.warm:g} s. Keyword spotter, fp32, onnxruntime with one thread"
        f" ({machine.cpu}, {machine.cores} cores, busy with other work). `benchmarks/soak.py`."
    )
    document = {
        "benchmark": "soak",
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "rate_per_s": options.rate,
        "seconds": options.seconds,
        "warm_s": options.warm,
        "sent": {**load.sent, "visits": load.visits},
        "failed": dict(load.failed),
        "refused": load.refused,
        "same_process": same,
        "complaints": complaints[:5],
        "latency": times,
        "cpu_ms_per_request": round(cpu_ms, 4),
        "flat": flat,
        "memory": trends,
        "series": {"columns": ["s", *READINGS], **{name: thin(one.rows) for name, one in watched.items()}},
        "table": table(trends, note),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=2).encode() + b"\n")
    for row in [document["table"]["columns"], *document["table"]["rows"]]:
        print("  ".join(f"{cell:>26}" for cell in row))
    print(f"{note}\nflat: {flat}, worst {worst} %, same process: {same}, failed: {dict(load.failed)}")
    print("\n".join(complaints[:5]), sep="\n")
    return 0 if flat and same and not failed and not complaints else 1


if __name__ == "__main__":
    sys.exit(main())
