"""What edgekit's build costs over the raw library: one int8 candidate per engine, side by side in one run.

    python benchmarks/build_time.py [--quick] [--output benchmarks/results/build_time.json]

By hand: a script in a fresh Python process that calls the quantizer as its manual says. edgekit: the same
candidate from the same model and calibration rows through the worker process, as `edgekit build` makes it.
Rounds are interleaved, so that a busy moment of the machine hits both; both quantize the same weights to the
same bits, or the run fails. Also measured: the whole command, from an empty cache and from a full one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit import backends, files, host, profile
from edgekit.backends import _ort_quantizer
from edgekit.build import sources, worker

ROOT = Path(__file__).resolve().parent.parent
KWS = ROOT / "examples" / "kws"
MODEL, DATA = KWS / "kws_fp32.onnx", KWS / "kws01_eval.npz"
SCALE, OFFSET = 0.5847029089927673, 83
CALIBRATION_ROWS = 200

BY_HAND = {
    "onnxruntime": """
import sys
import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader, QuantFormat, QuantType, quantize_static)
from onnxruntime.quantization.shape_inference import quant_pre_process

class Rows(CalibrationDataReader):
    def __init__(self, name, rows):
        self.rows = iter([{name: rows[i:i + 1]} for i in range(len(rows))])
    def get_next(self):
        return next(self.rows, None)

model, rows, out = sys.argv[1:]
with np.load(rows) as file:
    (name,) = file.files
    rows = file[name]
quant_pre_process(model, out + ".prepared", skip_symbolic_shape=True)
quantize_static(out + ".prepared", out, Rows(name, rows), quant_format=QuantFormat.QDQ, per_channel=True,
    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
""",
    "openvino": """
import sys
import numpy as np
import nncf, openvino

model, rows, out = sys.argv[1:]
with np.load(rows) as file:
    (name,) = file.files
    rows = file[name]
dataset = nncf.Dataset([{name: rows[i:i + 1]} for i in range(len(rows))])
graph = nncf.quantize(openvino.Core().read_model(model), dataset, preset=nncf.QuantizationPreset.MIXED,
    subset_size=len(rows), advanced_parameters=nncf.AdvancedQuantizationParameters(
        overflow_fix=nncf.OverflowFix.DISABLE))
openvino.save_model(graph, out + ".xml", compress_to_fp16=False)
""",
}

T = TypeVar("T")


@dataclass
class Series:
    """Seconds of one way to build, over all rounds."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], T]) -> T:
        """Run `work` once; processes that it waits for count."""
        wall, cpu = time.perf_counter(), _cpu()
        result = work()
        self.wall_s.append(time.perf_counter() - wall)
        self.cpu_s.append(_cpu() - cpu)
        return result

    def summary(self) -> dict[str, Any]:
        return {
            "wall_s": [round(value, 3) for value in self.wall_s],
            "cpu_s": [round(value, 3) for value in self.cpu_s],
            "median_wall_s": round(statistics.median(self.wall_s), 3),
            "median_cpu_s": round(statistics.median(self.cpu_s), 3),
        }


def _cpu() -> float:
    """User and system seconds of this process and of its finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def by_hand(engine: str, model: Path, rows: Path, out: Path) -> None:
    command = [sys.executable, "-c", BY_HAND[engine], str(model), str(rows), str(out)]
    subprocess.run(command, check=True, capture_output=True)


def same_weights(engine: str, made: dict[str, bytes], out: Path) -> bool:
    """Both ways quantize to the same bits, or the comparison is worth nothing."""
    if engine == "onnxruntime":
        return made["model.onnx"] == _ort_quantizer.lean(out.read_bytes())
    return made["model.bin"] == out.with_name(out.name + ".bin").read_bytes()


def candidates(rounds: int, folder: Path) -> dict[str, dict[str, Series]]:
    """Both engines, both ways, interleaved."""
    model = sources.load(MODEL)
    (folder / "model.onnx").write_bytes(model.onnx)
    with np.load(DATA) as archive:
        stored = archive["x"][:CALIBRATION_ROWS]
    name = model.inputs[0].name
    real = (stored.astype(np.float32) - np.float32(OFFSET)) * np.float32(SCALE)
    np.savez(folder / "rows.npz", **{name: real})
    nuc = profile.get("intel-nuc")
    results = {engine: {"by hand": Series(), "edgekit": Series()} for engine in BY_HAND}
    for number in range(rounds):
        for engine, series in results.items():
            target = next(one for one in nuc.target if one.runtime == engine)
            backend = backends.get(engine)
            offered = backend.recipes("int8", target, nuc.calibration)
            if isinstance(backend, backends.Selective):
                offered = [one for one in offered if not backend.worth(model, one)]
            recipe = next(iter(offered))
            job = worker.Job("build", recipe, model=model, arrays={name: real})
            out = folder / f"{engine}.out"
            series["by hand"].time(partial(by_hand, engine, folder / "model.onnx", folder / "rows.npz", out))
            _, made = series["edgekit"].time(partial(worker.run, job))
            if not same_weights(engine, made, out):
                raise SystemExit(f"{engine}: edgekit's weights are not those made by hand")
            ways = ", ".join(f"{way} {one.wall_s[-1]:.1f} s" for way, one in series.items())
            say(f"round {number + 1} of {rounds}: {engine} int8: {ways}")
    return results


def commands(rounds: int, folder: Path) -> dict[str, Series]:
    """`edgekit build` for three profiles: once from an empty cache, then from a full one."""
    environment = {**os.environ, "EDGEKIT_KEYS": str(folder / "keys"), "EDGEKIT_CACHE": str(folder / "cache")}
    command = [str(Path(sys.executable).parent / "edgekit"), "build", str(MODEL), "--quiet", "--labels", "y"]
    for name in ("jetson", "raspberry-pi-5", "intel-nuc"):
        command += ["--profile", name]
    command += ["--calibration", f"{DATA}[0:200]", "--evaluate", f"{DATA}[200:1000]"]
    command += ["--affine", f"{SCALE},{OFFSET}", "--precision", "int8", "--objective", "size"]
    command += ["-o", str(folder / "kws.edgekit")]
    results = {"empty cache": Series(), "full cache": Series()}
    for name, count in (("empty cache", 1), ("full cache", rounds)):
        for _ in range(count):
            results[name].time(
                lambda: subprocess.run(command, env=environment, check=True, capture_output=True)
            )
        say(f"edgekit build, three profiles, {name}: {results[name].wall_s[-1]:.1f} s")
    return results


def table(results: dict[str, dict[str, Series]], whole: dict[str, Series], machine: str) -> dict[str, Any]:
    """What docs/check.py turns into Markdown."""
    rows = []
    for engine, series in results.items():
        hand, own = series["by hand"].summary(), series["edgekit"].summary()
        ratio = own["median_cpu_s"] / hand["median_cpu_s"]
        rows.append(
            [f"{engine} int8, one candidate"]
            + [f"{one['median_wall_s']:.2f} s / {one['median_cpu_s']:.2f} s" for one in (hand, own)]
            + [f"{ratio:.2f}"]
        )
    for name, one in whole.items():
        seen = one.summary()
        cell = f"{seen['median_wall_s']:.2f} s / {seen['median_cpu_s']:.2f} s"
        rows.append([f"three profiles, built and measured, {name}", "", cell, ""])
    note = (
        f"Keyword spotter, {CALIBRATION_ROWS} calibration rows; medians of elapsed / CPU seconds, ratio of "
        f"CPU seconds; fresh processes, interleaved. {machine}."
    )
    return {"columns": ["Build", "library by hand", "edgekit", "ratio"], "rows": rows, "note": note}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--quick", action="store_true", help="two rounds instead of seven")
    arguments.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "build_time.json")
    chosen = arguments.parse_args()
    rounds = 2 if chosen.quick else 7
    here = host.read()
    machine = f"{here.cpu}, {here.cores} threads"
    with tempfile.TemporaryDirectory(prefix="edgekit-bench-") as name:
        results = candidates(rounds, Path(name))
        whole = commands(rounds, Path(name))
    packages = ("onnxruntime", "onnx", "openvino", "nncf", "onnxslim", "numpy")
    answer = {
        "table": table(results, whole, machine),
        "candidates": {
            engine: {way: one.summary() for way, one in series.items()} for engine, series in results.items()
        },
        "commands": {way: one.summary() for way, one in whole.items()},
        "rounds": rounds,
        "machine": {"cpu": here.cpu, "threads": here.cores, "ram_mib": here.ram_mib, "isa": here.isa},
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
    }
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(chosen.output, json.dumps(answer, indent=1).encode() + b"\n")
    say(f"wrote {chosen.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
