"""The serving process beside a bare `session.run`: CPU per request, requests per second, latency, memory.

    python -m benchmarks.serving [--quick] [--output benchmarks/results/serving.json]

Two networks (benchmarks/nets.py) on onnxruntime with one thread, each in a serving process of its own, asked
by a closed-loop client in a third process (benchmarks/load.py and load_grpc.py) with 1, 8 and 32 requests at
once, each on a connection of its own where nothing else is said. Rows are
measured in turn, round after round, so that a busy moment of the machine hits all of them. CPU is that of the
serving process alone, and the figure to compare: the rest depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import load, load_grpc, nets
from benchmarks.nets import Net
from edgekit import files, host, runtimes
from edgekit.bundle.model import TensorSpec
from edgekit.runtimes import Array
from edgekit_agent.serve.grpc import oip_messages, wire
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.quiet import QUIET_S
from tests.support.serving import Candidate, Stand, candidate, config, stand
from tests.support.started import started

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = (1, 8, 32)
PATH = "/v2/models/{}/infer"
INFER = "/inference.GRPCInferenceService/ModelInfer"
_COLD_STARTS = 5
_MEASURED_S = 8.0
"""By then the serving process has measured the model beside its first requests."""


@dataclass
class Cell:
    """One way to ask with one number of connections: a figure per round."""

    cpu_ms: list[float] = field(default_factory=list)
    per_s: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians over the rounds."""
        return {
            "cpu_ms_per_request": round(statistics.median(self.cpu_ms), 4),
            "requests_per_s": round(statistics.median(self.per_s), 1),
            "p50_ms": round(statistics.median(self.p50_ms), 4),
            "p99_ms": round(statistics.median(self.p99_ms), 4),
        }


@dataclass
class Bare:
    """A loop around `session.run` in this process."""

    net: str
    session: runtimes.Session
    inputs: dict[str, Array]
    cells: dict[int, Cell] = field(default_factory=lambda: {1: Cell()})
    name: str = "bare session.run"

    def measure(self, seconds: float) -> None:
        times: list[float] = []
        cpu, begin = time.process_time(), time.perf_counter()
        while (now := time.perf_counter()) < begin + seconds:
            self.session.run(self.inputs)
            times.append((time.perf_counter() - now) * 1e3)
        cell = self.cells[1]
        cell.cpu_ms.append((time.process_time() - cpu) * 1e3 / len(times))
        cell.per_s.append(len(times) / (time.perf_counter() - begin))
        cell.p50_ms.append(float(np.percentile(times, 50)))
        cell.p99_ms.append(float(np.percentile(times, 99)))


@dataclass
class Way:
    """A server's process, how to reach it and what to send."""

    net: str
    name: str
    pid: int
    address: str
    message: bytes
    cells: dict[int, Cell] = field(default_factory=lambda: {count: Cell() for count in CONNECTIONS})

    def load(self, count: int, seconds: float) -> load.Result:
        return load.run(self.address, self.message, count, seconds)

    def measure(self, seconds: float) -> None:
        for count, cell in self.cells.items():
            before = cpu_s(self.pid)
            result = self.load(count, seconds)
            cell.cpu_ms.append((cpu_s(self.pid) - before) * 1e3 / result.answered)
            cell.per_s.append(result.requests_per_s)
            cell.p50_ms.append(result.p50_ms)
            cell.p99_ms.append(result.p99_ms)


@dataclass
class GrpcWay(Way):
    """ModelInfer; `message` is a ModelInferRequest."""

    shared: bool = False
    """All calls on one connection, as clients of gRPC do it, instead of each on its own."""

    def load(self, count: int, seconds: float) -> load.Result:
        connections, streams = (1, count) if self.shared else (count, 1)
        return load_grpc.run(self.address, INFER, self.message, connections, streams, seconds)


def cpu_s(pid: int) -> float:
    """Time on a CPU so far, of all threads that live (to the nanosecond, unlike /proc/PID/stat)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def pss_mib(pid: int) -> float:
    """Proportional set size: what is shared with other processes counts by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss in smaps_rollup")


class Highest:
    """The most memory that a process has inside the `with`, looked at twenty times a second."""

    def __init__(self, pid: int) -> None:
        self.mib = 0.0
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Highest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.mib = max(self.mib, pss_mib(self._pid))


def post(path: str, body: bytes, json_size: int = 0) -> bytes:
    """A whole HTTP request."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"Inference-Header-Content-Length: {json_size}"] if json_size else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def binary(net: Net, sample: Array) -> bytes:
    raw = sample.tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": nets.INPUT, "datatype": "FP32", "shape": list(sample.shape), "parameters": parameters}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return post(PATH.format(net.name), head + raw, len(head))


def text(net: Net, sample: Array) -> bytes:
    data = sample.ravel().tolist()
    tensor = {"name": nets.INPUT, "datatype": "FP32", "shape": list(sample.shape), "data": data}
    return post(PATH.format(net.name), json.dumps({"inputs": [tensor]}).encode())


def protobuf(net: Net, sample: Array) -> bytes:
    """A ModelInferRequest."""
    tensor = {"name": nets.INPUT, "datatype": "FP32", "shape": list(sample.shape)}
    request = {"model_name": net.name, "inputs": [tensor], "raw_input_contents": [sample.tobytes()]}
    return wire.encode(oip_messages.INFER_REQUEST, request)


def release(net: Net) -> Candidate:
    """The network as the agent gets it, golden samples included."""
    inputs = (TensorSpec(nets.INPUT, "FP32", (-1, *net.shape)),)
    outputs = (TensorSpec(nets.OUTPUT, "FP32", (-1, net.classes)),)
    made = config("onnxruntime", inputs, outputs, ("model.onnx",), options={"intra_threads": 1})
    return candidate(made, {"model.onnx": net.model}, {nets.INPUT: net.samples(4)}).changed(name=net.name)


@contextlib.contextmanager
def served(made: Candidate, limits: Limits | None = None) -> Iterator[Stand]:
    """A serving process with this release."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder), limits) as serving:
        loaded = made.into(serving.serving)
        if not loaded.ok:
            raise RuntimeError(f"the model does not load: {loaded.message}")
        yield serving


def check(address: str, net: Net, session: runtimes.Session, ask: bytes, sample: Array) -> None:
    """The server answers what the engine answers, or no figure is worth anything."""
    if ask.startswith(b"POST"):
        with contextlib.closing(load.connect(address)) as sock:
            answer = load.ask(sock, ask)
    else:
        answer = load_grpc.ask(load_grpc.Client(address, INFER, ask))
    wanted = session.run({nets.INPUT: sample})[nets.OUTPUT].ravel()
    scale = float(np.abs(wanted).max())
    if b"application/json" in answer.partition(b"\r\n\r\n")[0]:
        served_values = np.array(json.loads(answer.partition(b"\r\n\r\n")[2])["outputs"][0]["data"])
    else:
        served_values = np.frombuffer(answer[-4 * net.classes :], "<f4")
    np.testing.assert_allclose(served_values, wanted, atol=1e-4 * scale)


def cold_start_s(made: Candidate, message: bytes) -> float:
    """From starting the serving process to its first answer, the release loaded and golden-checked."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with stand(Path(folder), wait_for_load=True) as serving:
            made.into(serving.serving)
            with contextlib.closing(load.connect(serving.address)) as sock:
                load.ask(sock, message)
            return time.perf_counter() - begin


def memory(made: Candidate, message: bytes, seconds: float) -> dict[str, float]:
    """PSS of a fresh serving process: without a model, with it and measured, after 32 connections asked, and
    when that has been over for a while."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder)) as serving:
        pid = serving.serving.process.pid
        serving.serving.ping(timeout_s=30)
        empty = pss_mib(pid)
        if not made.into(serving.serving).ok:
            raise RuntimeError("the model does not load")
        time.sleep(_MEASURED_S)
        idle = pss_mib(pid)
        load.run(serving.address, message, 32, seconds)
        after = pss_mib(pid)
        time.sleep(QUIET_S + 2)
        later = pss_mib(pid)
    found = {"empty_mib": empty, "idle_mib": idle, "after_load_mib": after, "later_mib": later}
    return {name: round(value, 1) for name, value in found.items()}


def together(first: Candidate, second: Candidate, message: bytes, seconds: float) -> dict[str, float]:
    """PSS of one process that serves both: idle, while 32 connections ask the second, when that has been
    over for two seconds, and for a while."""
    with tempfile.TemporaryDirectory() as folder, stand(Path(folder)) as serving:
        pid = serving.serving.process.pid
        for made in (first.changed(slot=1), second):
            if not made.into(serving.serving).ok:
                raise RuntimeError("a model does not load")
        time.sleep(_MEASURED_S)
        idle = pss_mib(pid)
        with Highest(pid) as highest:
            load.run(serving.address, message, 32, seconds)
        time.sleep(2)
        after = pss_mib(pid)
        time.sleep(QUIET_S)
        later = pss_mib(pid)
    found = {"idle_mib": idle, "under_load_mib": highest.mib, "after_load_mib": after, "later_mib": later}
    return {name: round(value, 1) for name, value in found.items()}


def whole_agent(first: Candidate, second: Candidate) -> dict[str, float]:
    """PSS of each process of `edgekit-agent serve` with both, idle."""
    with tempfile.TemporaryDirectory() as folder, started(Path(folder), second, beside=[first]) as agent:
        time.sleep(_MEASURED_S)
        found = {"supervisor_mib": agent.supervisor.pid, "serving_mib": agent.serving.pid}
        spares = [one.pid for one in agent.supervisor.children() if one.pid != agent.serving.pid]
        if spares:
            found["spare_mib"] = spares[0]
        return {name: round(pss_mib(pid), 1) for name, pid in found.items()}


def table(ways: list[Bare | Way], machine: str) -> dict[str, Any]:
    """What docs/check.py turns into Markdown."""
    columns = ["network, way", "CPU ms, 1 conn.", "8", "32", "req/s, 1 conn.", "8", "32"]
    columns += ["p50 ms, 1 conn.", "p99 ms, 1 conn.", "p50 ms, 32 conn.", "p99 ms, 32 conn."]
    rows = []
    for way in ways:
        found = {count: cell.summary() for count, cell in way.cells.items()}
        row = [f"{way.net}, {way.name}"]
        row += [f"{found[c]['cpu_ms_per_request']:.3f}" if c in found else "" for c in CONNECTIONS]
        row += [f"{found[c]['requests_per_s']:.0f}" if c in found else "" for c in CONNECTIONS]
        for count in (1, 32):
            for key in ("p50_ms", "p99_ms"):
                row.append(f"{found[count][key]:.2f}" if count in found else "")
        rows.append(row)
    note = (
        f"fp32, onnxruntime with one thread, closed-loop client on the same machine ({machine}); medians of"
        " rounds measured in turn by `benchmarks/serving.py`. CPU ms: of the serving process, per request."
    )
    return {"columns": columns, "rows": rows, "note": note}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="half a minute instead of some minutes")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "serving.json")
    options = parser.parse_args()
    rounds, seconds = (2, 0.5) if options.quick else (7, 1.5)
    machine = host.read()
    # As installed by pip, which compiles: without its bytecode Python compiles 0.3 s at every start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    ways: list[Bare | Way] = []
    starts: dict[str, float] = {}
    memories: dict[str, dict[str, float]] = {}
    small, large = nets.mlp(), nets.cnn()
    asked_large = binary(large, large.samples(1))
    memories["both"] = together(release(small), release(large), asked_large, 2 * seconds)
    memories["both, all processes"] = whole_agent(release(small), release(large))
    for net in (small, large):
        with contextlib.ExitStack() as stack:
            first = len(ways)
            made, sample = release(net), net.samples(1)
            session = runtimes.get("onnxruntime").load({"model.onnx": net.model}, {"intra_threads": 1})
            stack.callback(session.close)
            asked = {"binary": binary(net, sample), "JSON": text(net, sample)}
            starts[net.name] = min(cold_start_s(made, asked["binary"]) for _ in range(_COLD_STARTS))
            memories[net.name] = memory(made, asked["binary"], 2 * seconds)
            ways.append(Bare(net.name, session, {nets.INPUT: sample}))
            serving = stack.enter_context(served(made))
            alone = stack.enter_context(served(made, Limits(max_joined=1)))
            called = protobuf(net, sample)
            check(serving.address, net, session, called, sample)
            time.sleep(_MEASURED_S)
            for name, message in asked.items():
                check(serving.address, net, session, message, sample)
                made_way = Way(net.name, name, serving.serving.process.pid, serving.address, message)
                if len(message) * max(CONNECTIONS) > Limits().max_buffered_bytes:
                    del made_way.cells[max(CONNECTIONS)]  # the agent would refuse to hold so many at once
                ways.append(made_way)
            for name, shared in (("gRPC", False), ("gRPC, one connection", True)):
                pid = serving.serving.process.pid
                ways.append(GrpcWay(net.name, name, pid, serving.address, called, shared=shared))
            message = asked["binary"]
            ways.append(
                Way(net.name, "binary, one by one", alone.serving.process.pid, alone.address, message)
            )
            for _ in range(rounds):
                for way in ways[first:]:
                    way.measure(seconds)
    document = {
        "benchmark": "serving",
        "quick": options.quick,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "fast": {name: bool(importlib.util.find_spec(name)) for name in ("uvloop", "httptools", "orjson")},
        "cold_start_s": {name: round(value, 3) for name, value in starts.items()},
        "memory": memories,
        "results": {
            f"{way.net}, {way.name}": {str(count): cell.summary() for count, cell in way.cells.items()}
            for way in ways
        },
        "table": table(ways, f"{machine.cpu}, {machine.cores} cores"),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=2).encode() + b"\n")
    for row in [document["table"]["columns"], *document["table"]["rows"]]:
        print("  ".join(f"{cell:>16}" for cell in row))
    print(json.dumps({"cold_start_s": document["cold_start_s"], "memory": memories}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
