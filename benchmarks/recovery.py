"""How soon a release answers again after its serving process crashed or hung, with and without a spare.

    python -m benchmarks.recovery [--quick] [--output benchmarks/results/recovery.json]

A real supervisor with the keyword spotter (fp32, onnxruntime, one thread), or with an engine of
tests/support/stranger.py that hangs on a certain input. The time counts from the crash (from when the
inference is overdue, for a hang) to the first right answer on a new connection.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgekit import bundle, files, host, runtimes
from edgekit.bundle.model import Variant
from edgekit_agent.config import ServeSection
from edgekit_agent.prepare import into_memory
from edgekit_agent.supervisor import LOAD_S, Supervisor
from tests.support import stranger
from tests.support.bundles import Keys, make_variant
from tests.support.devices import NAME, Client, poison, release, strange, wait_for
from tests.support.serving import keyword_spotter
from tests.unit.runtimes import kws

ROOT = Path(__file__).resolve().parent.parent
STALL_S = 0.5
Mode = Literal["auto", "always", "never"]


def spotter() -> Variant:
    """examples/kws as a variant of a bundle."""
    found = keyword_spotter()
    return make_variant(
        found.load.config, files=dict(found.files), golden=found.load.golden, golden_files=dict(found.golden)
    )


@contextlib.contextmanager
def serving(folder: Path, one: Variant, spare: Mode) -> Iterator[tuple[Supervisor, Client]]:
    """A supervisor that serves the variant, its spare ready where it is to have one."""
    keys = Keys()
    opened = bundle.open(release(folder, "1.0.0", one, keys=keys), [keys.signer.public()])
    made = Supervisor(
        ServeSection(port=0, unix=str(folder / "s.sock"), spare=spare, stall_s=STALL_S, crash_limit=0)
    )
    made.start()
    try:
        made.swap(into_memory(opened, opened.variants[0], opened.content_key(keys.recipient)), LOAD_S)
        yield made, Client(unix=folder / "s.sock")
    finally:
        made.stop()


def answered(client: Client, body: dict[str, Any]) -> bool:
    return client.request("POST", f"/v2/models/{NAME}/infer", body)[0] == 200


def seconds_until(ready: Callable[[], bool], since: float) -> float:
    """Ask again and again, every 2 ms; each try is a connection of its own."""
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return time.perf_counter() - since
        time.sleep(0.002)


def crashes(folder: Path, spare: Mode, rounds: int) -> list[float]:
    x = kws.data()[0][:1].astype(np.float32)
    tensor = {"name": kws.INPUT, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    body = {"inputs": [tensor]}
    took = []
    with serving(folder, spotter(), spare) as (supervisor, client):
        for _ in range(rounds):
            wait_for("a spare", lambda: spare == "never" or supervisor.spare_ready)
            wait_for("an answer", lambda: answered(client, body))
            time.sleep(0.5)
            assert supervisor.process_id is not None
            begin = time.perf_counter()
            os.kill(supervisor.process_id, signal.SIGSEGV)
            took.append(seconds_until(lambda: answered(client, body), begin))
    return took


def hangs(folder: Path, spare: Mode, rounds: int) -> list[float]:
    os.environ["PYTHONPATH"] = str(stranger.install(folder))
    took = []
    with serving(folder, strange(2.0, "run-hang"), spare) as (supervisor, client):
        for _ in range(rounds):
            wait_for("a spare", lambda: spare == "never" or supervisor.spare_ready)
            wait_for("an answer", lambda: client.served_weight() == 2.0)
            time.sleep(0.5)
            hanging = threading.Thread(target=_hang, args=(client,))
            begin = time.perf_counter()
            hanging.start()
            time.sleep(0.1)
            took.append(seconds_until(lambda: client.served_weight() == 2.0, begin + STALL_S))
            hanging.join()
    return took


def _hang(client: Client) -> None:
    with contextlib.suppress(OSError, AssertionError):
        client.infer(poison())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "recovery.json")
    options = parser.parse_args()
    # A supervisor answers five crashes in a minute at once, so each has no more than that.
    supervisors, rounds = (1, 2) if options.quick else (2, 5)
    machine = host.read()
    results: dict[str, list[float]] = {}
    kinds: tuple[tuple[str, Callable[[Path, Mode, int], list[float]]], ...] = (
        ("keyword spotter, crash", crashes), ("an engine that hangs", hangs),
    )  # fmt: skip
    spares: tuple[tuple[str, Mode], ...] = (("spare", "always"), ("no spare", "never"))
    for name, one in kinds:
        for words, spare in spares:
            for _ in range(supervisors):
                with tempfile.TemporaryDirectory() as folder:
                    results.setdefault(f"{name}, {words}", []).extend(one(Path(folder), spare, rounds))
    rows = [
        [name, str(len(took)), f"{np.median(took):.3f}", f"{max(took):.3f}"] for name, took in results.items()
    ]
    note = (
        f"Seconds to the first right answer on a new connection, from the crash or from when the inference"
        f" was overdue ({machine.cpu}, {machine.cores} cores). `benchmarks/recovery.py`."
    )
    columns = ["", "times", "median s", "worst s"]
    document = {
        "benchmark": "recovery",
        "quick": options.quick,
        "machine": {"cpu": machine.cpu, "cores": machine.cores, "kernel": platform.release()},
        "python": platform.python_version(),
        "onnxruntime": runtimes.get("onnxruntime").version(),
        "seconds": {name: [round(one, 4) for one in took] for name, took in results.items()},
        "table": {"columns": columns, "rows": rows, "note": note},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(options.output, json.dumps(document, indent=2).encode() + b"\n")
    for row in [columns, *rows]:
        print("  ".join(f"{cell:>30}" for cell in row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
