"""A million broken requests to started agents: nothing may crash, hang, blame itself or grow.

    python -m benchmarks.fuzz [--requests 1000000] [--seed 1] [--output benchmarks/results/fuzz.json]
    python -m benchmarks.fuzz --only 1234 --target sound [--seed 1]      one case again, to look at

Agents one after the other (`edgekit-agent serve`, tests/fuzz/targets.py), every protocol: four over TCP and
the Unix socket in turns, one over TLS, one whose port wants tokens. Valid requests are mutated
(tests/fuzz/cases.py): case N of a seed is always the same bytes. tests/fuzz/judge.py says what an answer must
be. Every thousand requests, and after every tenth connection on which TLS was broken, a valid one must get
the right numbers on another connection. Memory of the serving process is read once a second.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import multiprocessing
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import files, host, runtimes
from edgekit_agent import board
from tests.fuzz import guards, targets
from tests.fuzz.case import GROUP
from tests.fuzz.cases import Source
from tests.fuzz.client import Client, cases
from tests.fuzz.guards import Door
from tests.fuzz.seeds import REGION, REGION_BYTES
from tests.fuzz.work import Failure, Found
from tests.support.started import Started, started

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"tensors": 0.34, "sound": 0.26, "picture": 0.14, "words": 0.14, "tls": 0.06, "tokens": 0.06}
GROWTH_PERCENT = 5.0
"""What the process keeps when the load is over may be so much above what it had after the first tenth. What
it has under load is told: rare large requests leave a heap with holes until it gives them back."""
REST_S = 15.0
"""After so long without requests it has given back what it can."""
KEPT_FAILURES = 100
FAMILIES = {
    "oip": "Open Inference Protocol", "generate": "Triton's extensions",
    "triton-settings": "Triton's extensions", "metrics": "Open Inference Protocol",
    "tfs": "TensorFlow Serving, KServe v1", "torchserve": "TorchServe",
    "pipeline": "pictures, recordings, texts", "grpc": "gRPC", "h2": "HTTP over HTTP/2",
}  # fmt: skip
GUARDED = {
    "tls": "any of these over TLS", "BELOW": "no TLS on TLS's port", "SPOILT": "TLS with broken records",
    "tokens": "any of these with a token", "denied": "without a right token",
}  # fmt: skip


@dataclass
class Part:
    """What happened to one agent."""

    target: str
    requests: int
    found: Found
    seconds: float = 0.0
    cpu_s: float = 0.0
    same: bool = True
    complaints: list[str] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Requests so far, RSS in MiB; one a second."""
    rested_mib: float = 0.0

    def growth(self) -> dict[str, float]:
        """RSS: after a tenth of the requests, the largest of the last half, and when the load was over."""
        begin = next((mib for done, mib in self.memory if done >= self.requests / 10), self.memory[-1][1])
        late = [mib for done, mib in self.memory if done >= self.requests / 2] or [self.memory[-1][1]]
        return {
            "first_mib": round(self.memory[0][1], 2),
            "after_a_tenth_mib": round(begin, 2),
            "last_half_largest_mib": round(max(late), 2),
            "rested_mib": round(self.rested_mib, 2),
            "growth_percent": round(100 * (self.rested_mib / begin - 1), 2),
        }


@contextlib.contextmanager
def region() -> Iterator[None]:
    """The shared memory object that requests name."""
    made = Path("/dev/shm") / REGION
    made.write_bytes(bytes(REGION_BYTES))
    try:
        yield
    finally:
        made.unlink(missing_ok=True)


@contextlib.contextmanager
def agent_of(target: str) -> Iterator[tuple[Started, list[Door]]]:
    """An agent, and the ways to it."""
    made = targets.ALL[target]()
    with tempfile.TemporaryDirectory() as name, region():
        folder = Path(name)
        options = guards.options(folder, made.guard)
        with started(folder, made.model, *options, beside=[targets.beside()]) as agent:
            yield agent, guards.doors(agent, folder, made.guard)


def numbers(requests: int, client: int, clients: int) -> Iterator[int]:
    """Whole groups in turns."""
    for number in range(requests):
        if number // GROUP % clients == client:
            yield number


def _ask(pipe: Any, done: Any, doors: list[Door], target: str, seed: int, mine: tuple[int, int, int]) -> None:
    """In a process of its own."""
    client = Client(doors, targets.ALL[target]())
    crashed = ""

    def seen(count: int) -> None:
        done.value = count

    try:
        client.run(cases(target, seed, numbers(*mine)), seen)
    except (OSError, AssertionError) as exc:
        crashed = f"{type(exc).__name__}: {exc}"[:400]
    pipe.send((client.found, crashed))
    pipe.close()


def fuzz(agent: Started, doors: list[Door], target: str, requests: int, seed: int, clients: int) -> Part:
    """Send `requests` cases to an agent, by `clients` processes at once."""
    context = multiprocessing.get_context("fork")  # importing everything again takes many seconds
    part = Part(target, requests, Found())
    counts, pipes, processes = [], [], []
    begin, busy = time.perf_counter(), agent.serving.cpu_times()
    for client in range(clients):
        ours, theirs = context.Pipe(duplex=False)
        done = context.Value("q", 0, lock=False)
        mine = (requests, client, clients)
        process = context.Process(target=_ask, args=(theirs, done, doors, target, seed, mine), daemon=True)
        process.start()
        theirs.close()
        counts.append(done)
        pipes.append(ours)
        processes.append(process)
    while any(not pipe.poll() for pipe in pipes) and all(process.is_alive() for process in processes):
        if agent.same():
            part.memory.append((sum(int(one.value) for one in counts), board.resident_mib(agent.serving.pid)))
        time.sleep(1.0)
    for pipe, process in zip(pipes, processes, strict=True):
        found, crashed = pipe.recv()
        _add(part.found, found)
        if crashed:
            part.complaints.append(f"a client gave up: {crashed}")
        process.join()
    part.seconds = time.perf_counter() - begin
    part.same = agent.same()
    part.complaints += agent.complaints()
    if part.same:
        now = agent.serving.cpu_times()
        part.cpu_s = now.user + now.system - busy.user - busy.system
        part.memory.append((requests, board.resident_mib(agent.serving.pid)))
        time.sleep(REST_S)
        part.rested_mib = board.resident_mib(agent.serving.pid)
    return part


def _add(to: Found, more: Found) -> None:
    to.statuses.update(more.statuses)
    to.failures += more.failures
    to.checks += more.checks
    to.alone += more.alone
    to.slowest_s = max(to.slowest_s, more.slowest_s)


def family(target: str, key: str) -> str:
    """What a count of Found.statuses belongs to."""
    wire, _, protocol = key.partition(" ")
    if wire in ("BELOW", "SPOILT") or protocol.startswith("denied "):
        return GUARDED[wire if wire in GUARDED else "denied"]
    if target in GUARDED:
        return GUARDED[target]
    if wire == "RAW":
        return "HTTP/1.1, any bytes"
    if wire == "FRAMES":
        return "HTTP/2, any frames"
    return FAMILIES[
        protocol.partition("-")[0].partition(" ")[0] if protocol[:6] != "triton" else "triton-settings"
    ]


def kind(status: str) -> str:
    """Of an answer: a column of the table."""
    if status in ("200", "grpc 0", "answered"):
        return "done"
    if (status[:1] == "5" and status.isdigit()) or status == "grpc 13":
        return "5xx"
    return "refused" if status.isdigit() or status.startswith("grpc ") else "connection ended"


def counted(parts: list[Part]) -> dict[str, Counter[str]]:
    rows: dict[str, Counter[str]] = {}
    for part in parts:
        for key, count in part.found.statuses.items():
            name, _, status = key.rpartition(": ")
            rows.setdefault(family(part.target, name), Counter())[kind(status)] += count
    return rows


def table(parts: list[Part], note: str) -> dict[str, Any]:
    rows = []
    found = counted(parts)
    wrong = Counter(
        family(part.target, f"{one.case.wire.name} {one.case.protocol}")
        for part in parts
        for one in part.found.failures
    )
    plain = [*dict.fromkeys(FAMILIES.values()), "HTTP/1.1, any bytes", "HTTP/2, any frames"]
    for name in [*plain, *GUARDED.values()]:
        one = found.get(name, Counter())
        numbers = [one[column] for column in ("done", "refused", "5xx", "connection ended")]
        rows.append([name, *map(str, [sum(one.values()), *numbers, wrong[name]])])
    columns = ["", "requests", "answered", "refused", "5xx as documented", "connection ended", "wrong"]
    return {"columns": columns, "rows": rows, "note": note}


def memory_table(parts: list[Part]) -> dict[str, Any]:
    rows = []
    for part in parts:
        one = part.growth()
        names = ("first_mib", "after_a_tenth_mib", "last_half_largest_mib", "rested_mib")
        mib = [f"{one[name]:.1f}" for name in names]
        rows.append([part.target, str(part.requests), *mib, f"{one['growth_percent']:+.1f} %"])
    columns = [
        "model",
        "requests",
        "MiB at first",
        "after a tenth",
        "most of the last half",
        "at rest",
        "growth",
    ]
    return {"columns": columns, "rows": rows, "note": ""}


def problems(parts: list[Part]) -> list[str]:
    """Why the run has failed; empty when it has not."""
    found = []
    for part in parts:
        if not part.same:
            found.append(f"{part.target}: the serving process is another one")
        found += [f"{part.target}: {text[:300]}" for text in part.complaints[:5]]
        if part.found.failures:
            found.append(f"{part.target}: {len(part.found.failures)} wrong answers")
        if part.memory and part.growth()["growth_percent"] > GROWTH_PERCENT:
            found.append(f"{part.target}: memory grows: {part.growth()}")
    return found


def keep(folder: Path, target: str, seed: int, failures: list[Failure]) -> list[dict[str, Any]]:
    """Write the bytes of each failing case into `folder`; their descriptions."""
    told = []
    for one in failures[:KEPT_FAILURES]:
        case = one.case
        about = {"target": target, "seed": seed, "number": case.number, "wire": case.wire.name,
                 "protocol": case.protocol, "reason": one.reason[:600]}  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        whole = {**about, "base64": base64.b64encode(case.data).decode()}
        (folder / f"{target}-{seed}-{case.number}.json").write_text(json.dumps(whole, indent=1))
        told.append(about)
    return told


def again(target: str, seed: int, number: int) -> int:
    """One case alone, for looking at."""
    case = Source.of(target, seed).case(number)
    made = targets.ALL[target]()
    with agent_of(target) as (agent, doors):
        client = Client(doors, made)
        found = client.run([case])
        client.close()
        print(f"{case.wire}, {case.protocol}, {len(case.data)} bytes\n{case.data[:4000]!r}")
        print(dict(found.statuses), *(one.reason for one in found.failures), *agent.complaints(), sep="\n")
        return 1 if found.failures or agent.complaints() or not agent.same() else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=2, help="processes that ask at once")
    parser.add_argument("--target", choices=list(SHARES), help="only this model")
    parser.add_argument("--only", type=int, metavar="N", help="this case of --target alone")
    parser.add_argument(
        "--failures", type=Path, default=Path("fuzz-failures"), help="folder for failing cases"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "fuzz.json")
    options = parser.parse_args()
    if options.only is not None:
        return again(options.target or "tensors", options.seed, options.only)
    shares = {options.target: 1.0} if options.target else SHARES
    parts, told = [], []
    for name, share in shares.items():
        with agent_of(name) as (agent, doors):
            part = fuzz(agent, doors, name, round(options.requests * share), options.seed, options.clients)
        parts.append(part)
        told += keep(options.failures, name, options.seed, part.found.failures)
        print(f"{name}: {part.requests} in {part.seconds:.0f} s, {part.growth()}", flush=True)
    wrong = problems(parts)
    machine = host.read()
    total, seconds = sum(part.requests for part in parts), sum(part.seconds for part in parts)
    checks = sum(part.found.checks for part in parts)
    note = (
        f"{total} requests, seed {options.seed}, in {seconds:.0f} s with the clients on the same machine"
        f" ({machine.cpu}, {machine.cores} cores); {checks} valid ones in between, all answered right."
        " `benchmarks/fuzz.py`."
    )
    document = {
        "benchmark": "fuzz",
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "requests": total,
        "seed": options.seed,
        "seconds": round(seconds, 1),
        "problems": wrong,
        "failures": told,
        "valid_in_between": checks,
        "sent_again_alone": sum(part.found.alone for part in parts),
        "slowest_s": round(max(part.found.slowest_s for part in parts), 3),
        "server_cpu_ms_per_request": round(sum(part.cpu_s for part in parts) * 1e3 / max(1, total), 4),
        "memory": {part.target: part.growth() for part in parts},
        "memory_series": {
            part.target: [
                [done, round(mib, 2)] for done, mib in part.memory[:: max(1, len(part.memory) // 40)]
            ]
            for part in parts
        },
        "statuses": {part.target: dict(sorted(part.found.statuses.items())) for part in parts},
        "table": table(parts, note),
        "memory_table": memory_table(parts),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=1).encode() + b"\n")
    for row in [document["table"]["columns"], *document["table"]["rows"]]:
        print("  ".join(f"{cell:>24}" for cell in row))
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
