"""The agent beside other model servers, each in an environment of its own under .cache/peers.

    python -m benchmarks.peers [--peer NAME ...] [--quick] [--output benchmarks/results/peers.json]

The networks of benchmarks/nets.py on the same onnxruntime with one thread. Agent and peer are asked in turn,
round after round, over the same wire format with the same client (benchmarks/load.py; h2load for gRPC); the
servers have one core, the client another. CPU and memory are those of all processes of a server. The agent
serves what `edgekit build` made as `edgekit-agent serve` starts it: an encrypted bundle, golden check,
supervisor, spare process, metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from benchmarks import load, nets
from benchmarks.nets import Net
from benchmarks.peers import asks, grpc_load, tree
from benchmarks.peers.asks import Ask, Way
from benchmarks.peers.servers import AGENT_SERVER, PEERS, Server
from benchmarks.peers.tree import Tree
from benchmarks.serving import CONNECTIONS, Cell
from edgekit import files, host, runtimes
from edgekit.runtimes import Array

ROOT = Path(__file__).resolve().parents[2]
_START_S = 120.0
_PATIENCE = {"mlp": 1.0, "cnn": 2.0}
"""How much longer the large network is asked in each cell; its run lasts a hundred times as long."""
_QUIET_S = 15.0
_SETTLED_S = 4.0
"""After the first answer: what is still being started or measured is done."""


@dataclass
class Footprint:
    """What one server takes for one network. MiB: PSS of all its processes."""

    start_s: list[float] = field(default_factory=list)
    """From starting the process to the first right answer."""
    idle_mib: float = 0.0
    loaded_mib: float = 0.0
    later_mib: float = 0.0
    processes: int = 0


@dataclass
class Side:
    """A running server."""

    server: Server
    net: Net
    process: Tree
    http: str
    grpc: str
    foot: Footprint
    cells: dict[tuple[Way, int], Cell] = field(default_factory=dict)

    def measure(self, way: Way, connections: int, seconds: float) -> None:
        ask = self.server.ask(self.net, way)
        before = self.process.cpu_s()
        if ask.grpc:
            result = grpc_load.run(self.grpc, ask.message, connections, seconds)
        else:
            result = load.run(self.http, ask.message, connections, seconds)
        cell = self.cells.setdefault((way, connections), Cell())
        cell.cpu_ms.append((self.process.cpu_s() - before) * 1e3 / result.answered)
        cell.per_s.append(result.requests_per_s)
        cell.p50_ms.append(result.p50_ms)
        cell.p99_ms.append(result.p99_ms)
        self.foot.loaded_mib = max(self.foot.loaded_mib, self.process.pss_mib())


@contextlib.contextmanager
def running(server: Server, net: Net, expected: Array, foot: Footprint) -> Iterator[Side]:
    """The server, from the time of its first right answer."""
    python = server.python()
    with tempfile.TemporaryDirectory(prefix="edgekit-peer-", ignore_cleanup_errors=True) as name:
        setup = server.setup(Path(name), net, python)
        begin = time.perf_counter()
        with tree.started(setup.words, Path(name), setup.environment) as process:
            address = f"127.0.0.1:{setup.ports.http}"
            ask = next(ask for way in server.ways if not (ask := server.ask(net, way)).grpc)
            answer = _first_answer(process, address, ask)
            foot.start_s.append(time.perf_counter() - begin)
            _same(asks.numbers(net, answer), expected, server.name)
            yield Side(server, net, process, address, f"127.0.0.1:{setup.ports.grpc}", foot)


def _first_answer(process: Tree, address: str, ask: Ask) -> bytes:
    deadline = time.perf_counter() + _START_S
    while True:
        process.alive()
        try:
            with contextlib.closing(load.connect(address)) as sock:
                sock.settimeout(10)
                return load.ask(sock, ask.message)
        except (OSError, RuntimeError) as exc:
            if time.perf_counter() > deadline:
                log = process.log.read_text(errors="replace")[-1500:]
                raise RuntimeError(f"no answer after {_START_S:.0f} s: {exc}\n{log}") from None
            time.sleep(0.01)


def _same(found: Array, expected: Array, who: str) -> None:
    """No figure is worth anything unless the answer is the engine's."""
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(np.abs(expected).max()), err_msg=who)


def check(side: Side, expected: Array) -> None:
    for way in side.server.ways:
        ask = side.server.ask(side.net, way)
        if ask.grpc:
            client = triton.InferenceServerClient(side.grpc)
            sample = side.net.samples(1)
            tensor = triton.InferInput(nets.INPUT, list(sample.shape), "FP32")
            tensor.set_data_from_numpy(sample)
            found = client.infer(side.net.name, [tensor]).as_numpy(nets.OUTPUT).ravel()
            client.close()
        else:
            with contextlib.closing(load.connect(side.http)) as sock:
                found = asks.numbers(side.net, load.ask(sock, ask.message))
        _same(found, expected, f"{side.server.name}, {way}")


def pair(peer: Server, net: Net, rounds: int, seconds: float, starts: int) -> tuple[Side, Side]:
    """Agent and peer in turn, on every way that the peer has."""
    engine = runtimes.get("onnxruntime").load({"model.onnx": net.model}, {"intra_threads": 1})
    expected = engine.run({nets.INPUT: net.samples(1)})[nets.OUTPUT].ravel()
    engine.close()
    feet = {server.name: Footprint() for server in (AGENT_SERVER, peer)}
    for number in range(starts):
        for server in (AGENT_SERVER, peer):
            # The first start after an installation writes bytecode and is not counted.
            foot = feet[server.name] if number else Footprint()
            with running(server, net, expected, foot):
                pass
    with contextlib.ExitStack() as stack:
        sides = [
            stack.enter_context(running(one, net, expected, feet[one.name])) for one in (AGENT_SERVER, peer)
        ]
        time.sleep(_SETTLED_S)
        for side in sides:
            side.foot.idle_mib = side.process.pss_mib()
            side.foot.processes = len(side.process.processes())
            check(side, expected)
        for _ in range(rounds):
            for way in ways(peer, net):
                for connections in CONNECTIONS:
                    if net.name == "cnn" and way == "JSON" and connections == max(CONNECTIONS):
                        continue  # tens of megabytes of digits at once
                    for side in sides:
                        side.measure(way, connections, seconds * _PATIENCE[net.name])
        time.sleep(_QUIET_S)
        for side in sides:
            side.foot.later_mib = side.process.pss_mib()
    return sides[0], sides[1]


def ways(peer: Server, net: Net) -> tuple[Way, ...]:
    """A picture as JSON is asked for only of those that take nothing else."""
    return tuple(way for way in peer.ways if net.name == "mlp" or way != "JSON" or peer.ways == ("JSON",))


def summary(side: Side) -> dict[str, Any]:
    cells: dict[str, dict[str, Any]] = {}
    for (way, connections), cell in side.cells.items():
        cells.setdefault(way, {})[str(connections)] = cell.summary()
    foot = side.foot
    return {
        "version": side.server.version,
        "start_s": round(statistics.median(foot.start_s), 3),
        "idle_mib": round(foot.idle_mib, 1),
        "loaded_mib": round(foot.loaded_mib, 1),
        "later_mib": round(foot.later_mib, 1),
        "processes": foot.processes,
        "ways": cells,
    }


FOOT = ("start_s", "idle_mib", "loaded_mib", "later_mib")
Found = dict[str, dict[str, dict[str, Any]]]
"""Peer, network, "edgekit" or "peer": a summary."""


def table(found: Found, note: str) -> dict[str, Any]:
    columns = ["network, way", "server", "CPU ms, 1 conn.", "8", "32", "req/s, 1 conn.", "8", "32"]
    columns += ["p50 ms, 1 conn.", "p99 ms, 1 conn.", "p50 ms, 32 conn.", "p99 ms, 32 conn."]
    rows = []
    for name, by_net in found.items():
        for net, sides in by_net.items():
            for way in sides["peer"]["ways"]:
                for who in ("edgekit", "peer"):
                    cells = sides[who]["ways"][way]
                    server = "edgekit" if who == "edgekit" else PEERS[name].name
                    row = [f"{net}, {way}", server]
                    for key, digits in (("cpu_ms_per_request", 3), ("requests_per_s", 0)):
                        row += [_cell(cells, count, key, digits) for count in CONNECTIONS]
                    for count in (1, 32):
                        row += [_cell(cells, count, key, 2) for key in ("p50_ms", "p99_ms")]
                    rows.append(row)
    return {"columns": columns, "rows": rows, "note": note}


def _cell(cells: dict[str, Any], connections: int, key: str, digits: int) -> str:
    found = cells.get(str(connections))
    return f"{found[key]:.{digits}f}" if found else ""


def footprint(found: Found) -> dict[str, Any]:
    """One row for each server; the agent's is the median of what it took beside each peer."""
    columns = ["server"]
    for net in ("mlp", "cnn"):
        columns += [f"{net}: start s", "idle MiB", "under load MiB", "15 s later MiB"]
    columns.append("processes")
    rows = []
    own = {net: [by_net[net]["edgekit"] for by_net in found.values()] for net in ("mlp", "cnn")}
    for name, by_net in [
        ("", own),
        *((name, {n: [s["peer"]] for n, s in one.items()}) for name, one in found.items()),
    ]:
        row = [f"{PEERS[name].name} {PEERS[name].version}" if name else f"edgekit {AGENT_SERVER.version}"]
        for net in ("mlp", "cnn"):
            for key in FOOT:
                digits = 2 if key == "start_s" else 0
                row.append(f"{statistics.median(one[key] for one in by_net[net]):.{digits}f}")
        rows.append([*row, str(by_net["mlp"][0]["processes"])])
    note = "Start: from starting the process to its first right answer. MiB: PSS of all its processes."
    return {"columns": columns, "rows": rows, "note": note}


def behind(found: Found) -> Iterator[str]:
    """Where a peer has the better figure by more than a twentieth."""
    for name, by_net in found.items():
        for net, sides in by_net.items():
            ours, theirs = sides["edgekit"], sides["peer"]
            pairs = [(key, key, ours[key], theirs[key]) for key in FOOT]
            for way, cells in theirs["ways"].items():
                for count, cell in cells.items():
                    own = ours["ways"][way][count]
                    pairs += [(f"{way}, {count} conn.: {key}", key, own[key], cell[key]) for key in cell]
            for text, key, own, other in pairs:
                if (own * 1.05 < other) if key == "requests_per_s" else (own > 1.05 * other):
                    yield f"{PEERS[name].name}, {net}: {text} {other} against {own}"


def report(found: Found) -> dict[str, Any]:
    machine = host.read()
    quick = any(
        side["quick"] for by_net in found.values() for sides in by_net.values() for side in sides.values()
    )
    note = (
        f"fp32, onnxruntime {runtimes.get('onnxruntime').version()} with one thread, servers on one core and"
        f" a closed-loop client on the other ({machine.cpu}); medians of rounds in which the agent and one"
        " peer were asked in turn (`benchmarks/peers`). CPU ms: of all processes of the server, per request."
        f"{' A quick run.' if quick else ''}"
    )
    return {
        "benchmark": "peers",
        "machine": dataclasses.asdict(machine) | {"kernel": platform.release()},
        "results": found,
        "behind": list(behind(found)),
        "table": table(found, note),
        "footprint": footprint(found),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--quick", action="store_true", help="some minutes instead of twenty")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "peers.json")
    options = parser.parse_args()
    rounds, seconds, starts = (2, 0.4, 1) if options.quick else (3, 0.8, 2)
    if lacking := [name for name in ("taskset", "h2load") if not shutil.which(name)]:
        raise SystemExit(f"missing programs: {', '.join(lacking)} (apt: util-linux, nghttp2-client)")
    os.sched_setaffinity(0, {tree.CLIENT_CORE})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server outlives this program
    previous = json.loads(options.output.read_text())["results"] if options.output.exists() else {}
    found: Found = {name: previous[name] for name in PEERS if name in previous and name not in options.peer}
    document: dict[str, Any] = {}
    for name in options.peer:
        peer = PEERS[name]
        if lacking := [one for one in peer.needs if not shutil.which(one)]:
            print(
                f"{peer.name} is left out: {', '.join(lacking)} is missing (apt: default-jre-headless, gcc)"
            )
            continue
        for net in (nets.mlp(), nets.cnn()):
            print(f"{peer.name}, {net.name}", flush=True)
            ours, theirs = pair(peer, net, rounds, seconds, starts)
            sides = {"edgekit": summary(ours), "peer": summary(theirs)}
            found.setdefault(name, {})[net.name] = {
                who: {**one, "quick": options.quick} for who, one in sides.items()
            }
        document = report({one: found[one] for one in PEERS if one in found})
        options.output.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(options.output, json.dumps(document, indent=1).encode() + b"\n")
    if not document:
        return 1
    for part in (document["table"], document["footprint"]):
        for row in [part["columns"], *part["rows"]]:
            print("  ".join(f"{cell:>14}" for cell in row))
    for line in document["behind"]:
        print(f"a peer is better: {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
