"""TensorRT on a real GPU: build, check and time the engines of two models, by both ways to TensorRT.

For a machine with an NVIDIA GPU and TensorRT; elsewhere it says in one line what is missing and exits with 2.
Everything is done by the code that serves: `edgekit.backends` makes graph and plan, `edgekit.runtimes` the
engine. Per model, precision and way: answers held against ONNX Runtime on the CPU, time of the first load
(the engine is built) and of the second (it is fetched), latency beside fp32 in turn, nodes per unit; then the
faults: a damaged engine, an operator TensorRT refuses, a fallback. Writes results/tensorrt_gpu.json.

    python benchmarks/tensorrt_gpu.py [--model FILE.onnx]... [--rows N] [--runs N]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import backends, runtimes
from edgekit.backends import SourceModel
from edgekit.build import sources
from edgekit.errors import EdgekitError, EngineError
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import Array, Session, _cuda, _trt_cache, _trt_provider, tensorrt

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "tensorrt_gpu.json"
MODELS = (HERE.parent / "examples" / "kws" / "kws_fp32.onnx",)
PRECISIONS = ("fp32", "fp16", "int8")
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-2, "int8": 5e-2}
"""Of the largest output: another order of sums, half precision, ties that are rounded the other way."""
BATCHES = (1, 3, 8, 11)
"""One, some, the plan's most, and more than that."""


def ways() -> list[str]:
    """The installed ways to TensorRT."""
    found = ["onnxruntime"] if _trt_provider.offered() else []
    return [*found, *(["tensorrt"] if tensorrt._package() is not None else [])]


def rows_for(model: SourceModel, count: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    return {
        item.name: generator.normal(size=(count, *item.shape[1:])).astype(np.float32) for item in model.inputs
    }


def timed_load(files: dict[str, bytes], options: dict[str, Any]) -> tuple[Session, float]:
    begin = time.perf_counter()
    session = runtimes.get("tensorrt").load(files, options)
    return session, round(time.perf_counter() - begin, 2)


def race(sessions: dict[str, Session], row: dict[str, Array], runs: int) -> dict[str, float]:
    """Median ms of each, run in turn."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for i in range(runs + 20):
        for name, session in sessions.items():
            begin = time.perf_counter()
            session.run(row)
            if i >= 20:
                times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: round(float(np.median(one)), 4) for name, one in times.items()}


def one_model(path: Path, rows: int, runs: int) -> Iterator[dict[str, Any]]:
    model = sources.load(path)
    inputs = rows_for(model, max(rows, max(BATCHES)))
    backend = backends.get("tensorrt")
    cpu = runtimes.get("onnxruntime")
    target = Target("tensorrt", ("fp32", "fp16", "int8"))
    built = {}
    for precision in PRECISIONS:
        recipe = next(iter(backend.recipes(precision, target, CalibrationPolicy())))
        built[precision] = backend.build(model, recipe, inputs)
    for way in ways():
        sessions: dict[str, Session] = {}
        for precision, files in built.items():
            options = {"via": way, "fallback": "", "cache": "disk"}
            session, first_s = timed_load(files, options)
            session.close()
            session, again_s = timed_load(files, options)
            want = cpu.load({"model.onnx": files["model.onnx"]}, {})
            gaps = {}
            for batch in BATCHES:
                part = {name: array[:batch] for name, array in inputs.items()}
                ours, theirs = session.run(part), want.run(part)
                scale = max(float(np.abs(array).max()) for array in theirs.values())
                gaps[batch] = max(float(np.abs(ours[n] - theirs[n]).max()) for n in theirs) / scale
            sessions[precision] = session
            yield {
                "model": path.name, "precision": precision, "way": way, "first_load_s": first_s,
                "second_load_s": again_s, "relative_gap": gaps, "coverage": session.coverage(),
                "right": max(gaps.values()) <= TOLERANCE[precision] and again_s < first_s,
            }  # fmt: skip
        row = {name: array[:1] for name, array in inputs.items()}
        yield {"model": path.name, "way": way, "p50_ms": race(sessions, row, runs)}
        for session in sessions.values():
            session.close()


def faults(path: Path) -> Iterator[dict[str, Any]]:
    """What must happen when something is wrong, for each way."""
    model = sources.load(path)
    backend = backends.get("tensorrt")
    recipe = next(iter(backend.recipes("fp32", Target("tensorrt", ("fp32",)), CalibrationPolicy())))
    files = backend.build(model, recipe, {})
    for way in ways():
        options = {"via": way, "fallback": "", "cache": "disk"}
        timed_load(files, options)[0].close()
        for engine in _trt_cache.root("disk").glob("*/*.engine"):
            engine.write_bytes(engine.read_bytes()[: engine.stat().st_size // 2])
        for engine in _trt_cache.root("disk").glob("*/engine.plan"):
            engine.write_bytes(b"damaged")
        session, seconds = timed_load(files, options)
        session.close()
        yield {"way": way, "fault": "damaged engine", "right": True, "built_again_s": seconds}
        try:
            runtimes.get("tensorrt").load({**files, "model.onnx": b"\0\xff"}, options)
            refused = False
        except EngineError:
            refused = True
        yield {"way": way, "fault": "not a model", "right": refused}
        session = runtimes.get("tensorrt").load(
            files, {"via": way, "fallback": "cpu", "cache": "none", "min_coverage": 0.9}
        )
        yield {"way": way, "fault": "none, with a fallback", "right": True, "coverage": session.coverage()}
        session.close()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument(
        "--model", type=Path, action="append", default=[], help="fp32 ONNX; may be repeated"
    )
    arguments.add_argument("--rows", type=int, default=64, help="rows to calibrate on")
    arguments.add_argument("--runs", type=int, default=300, help="timed runs of each engine")
    options = arguments.parse_args()
    try:
        version = runtimes.get("tensorrt").version()
    except EdgekitError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="edgekit-trt-") as folder:
        os.environ[runtimes.ENGINE_CACHE] = f"{folder}/engines"
        paths = options.model or [path for path in MODELS if path.exists()]
        found = [line for path in paths for line in one_model(path, options.rows, options.runs)]
        found += list(faults(paths[0]))
    report = {
        "gpu": dataclasses.asdict(_cuda.identify(0)),
        "tensorrt": version,
        "ways": ways(),
        "found": found,
    }
    for line in found:
        print(json.dumps(line))
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(line.get("right", True) for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
