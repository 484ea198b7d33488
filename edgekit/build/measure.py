"""What the certificate says, measured through the very Runtime that the agent loads.

Runs inside a worker process. Order matters: the candidate alone first (answers and peak memory), the
fp32 baseline of the same engine afterwards, then both in turn, so that a busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import runtimes
from edgekit.backends import Recipe
from edgekit.build.stats import percentile
from edgekit.bundle.model import GoldenSpec, Latency
from edgekit.profile import Verify
from edgekit.runtimes import Session, _golden

WARM_UP_RUNS = 20
MIN_RUNS, MAX_RUNS = 50, 400
TIMING_BUDGET_S = 2.0
MIB = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """What to do besides running every row."""

    verify: Verify
    classify: bool
    """The first output scores classes; then golden samples carry the source model's class."""
    baseline_options: dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Measured:
    engine_version: str
    answers: tuple[int, ...]
    """Class per evaluation row."""
    latency: Latency
    baseline_latency: Latency
    peak_rss_mib: float
    """High-water mark of the process that loaded the model and answered every row: engine included,
    the evaluation rows themselves left out."""
    load_rss_mib: float
    """What loading and running added to a process that had the engine imported."""
    coverage: dict[str, int]
    golden: GoldenSpec


def measure(
    recipe: Recipe, plan: Plan, files: Mapping[str, bytes], arrays: Mapping[str, NDArray[Any]]
) -> tuple[Measured, dict[str, bytes]]:
    """Figures and golden files. `arrays`: engine inputs under "input/<name>", and the source model's
    classes as "reference" (rows,); without them the candidate is its own reference.

    Raises EngineError when the engine refuses the candidate.
    """
    runtime = runtimes.get(recipe.engine)
    version = runtime.version()
    inputs = {name[6:]: array for name, array in arrays.items() if name.startswith("input/")}
    # All rows lie in memory from here to the end; on a device they do not.
    rows_mib = sum(array.nbytes for array in arrays.values()) / MIB
    before = _peak_rss_mib()
    session = runtime.load(_part(files, "candidate/"), recipe.runtime_options)
    answers = answer(session, inputs)
    peak = _peak_rss_mib()
    golden, golden_files = _golden.make(
        session, inputs, arrays.get("reference", answers) if plan.classify else None, plan.verify
    )
    baseline = runtime.load(_part(files, "baseline/"), plan.baseline_options)
    latency, baseline_latency = _race(session, baseline, inputs)
    coverage = session.coverage()
    baseline.close()
    session.close()
    return Measured(
        engine_version=version,
        answers=tuple(int(value) for value in answers),
        latency=latency,
        baseline_latency=baseline_latency,
        peak_rss_mib=round(peak - rows_mib, 1),
        load_rss_mib=round(peak - before, 1),
        coverage=coverage,
        golden=golden,
    ), golden_files


def answer(session: Session, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The class of every row, (rows,), one row per run as on the device."""
    rows = len(next(iter(inputs.values())))
    classes = []
    for i in range(rows):
        outputs = session.run({name: array[i : i + 1] for name, array in inputs.items()})
        classes.append(_golden.classes(next(iter(outputs.values())))[0])
    return np.array(classes, np.int64)


def _race(
    candidate: Session, baseline: Session, inputs: Mapping[str, NDArray[Any]]
) -> tuple[Latency, Latency]:
    """Latency of both, run in turn on the same rows."""
    rows = len(next(iter(inputs.values())))
    both: tuple[tuple[Session, list[float]], ...] = ((candidate, []), (baseline, []))
    deadline = 0.0
    for i in range(WARM_UP_RUNS + MAX_RUNS):
        row = {name: array[i % rows : i % rows + 1] for name, array in inputs.items()}
        if i == WARM_UP_RUNS:
            deadline = time.perf_counter() + TIMING_BUDGET_S
        elif i > WARM_UP_RUNS + MIN_RUNS and time.perf_counter() > deadline:
            break
        for session, times in both:
            begin = time.perf_counter()
            session.run(row)
            times.append(time.perf_counter() - begin)
    first, second = (_latency(times[WARM_UP_RUNS:]) for _, times in both)
    return first, second


def _latency(seconds: list[float]) -> Latency:
    p50, p95, p99 = (round(percentile(seconds, share) * 1e3, 5) for share in (0.5, 0.95, 0.99))
    return Latency(p50, p95, p99, len(seconds))


def _part(files: Mapping[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


def _peak_rss_mib() -> float:
    """High-water mark of this program. Not `ru_maxrss`: that remembers the parent's memory across exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
