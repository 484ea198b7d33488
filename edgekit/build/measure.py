"""What the certificate says, measured through the very Runtime that the agent loads.

Runs inside a worker process. Order matters: the candidate alone first (answers and peak memory), then how
many threads serve it best, and with these the fp32 baseline of the same engine and both in turn, so that a
busy machine slows both.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import host, runtimes
from edgekit.backends import Recipe
from edgekit.build.stats import percentile
from edgekit.bundle.model import GoldenSpec, Latency, Serving
from edgekit.errors import EngineError
from edgekit.profile import Verify
from edgekit.runtimes import Files, Options, Runtime, Session, _golden, _pace
from edgekit.runtimes._answers import MIB, answer, pack_outputs

WARM_UP_RUNS = 20
MIN_RUNS, MAX_RUNS = 50, 400
TIMING_BUDGET_S = 2.0
GLANCE_RUNS = 10
THREADS = "intra_threads"
OWN_THREADS = ("inter_threads", "streams")
"""Options of a recipe that has decided on threads itself, beside more than one of THREADS."""
THREADS_RUNS, MIN_TRIES, THREADS_BUDGET_S = 30, 3, 1.0
WORTH = 0.5
"""So much of itself must each further core bring: threads that wait for each other burn power, and others
want a core as well."""
BINS = 24


@dataclass(frozen=True)
class Plan:
    """What to do besides running every row."""

    verify: Verify
    classify: bool
    """The first output scores classes; then golden samples carry the source model's class."""
    baseline_options: dict[str, str | int | float | bool]
    engine: str = ""
    """The runtime to measure on, when the recipe's own cannot be had here (its stand-in)."""
    cores: int = 0
    """Threads that are tried beside one, where engine and recipe leave their number open. 0: how requests are
    best served is not asked."""
    joins: bool = False
    """Whether requests may share a run, as far as shapes tell."""
    give_up_ms: float = 0.0
    """A first look slower than this ends the measurement: something smaller is that much faster."""


@dataclass(frozen=True)
class Histogram:
    """Runs per latency bin, `edges_ms` (bins + 1,), candidate and baseline on the same bins."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]
    baseline_counts: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    engine_version: str
    outputs: tuple[str, ...]
    """Names, in the model's order; the arrays are the files "answers/0.npy" ..."""
    latency: Latency
    baseline_latency: Latency
    histogram: Histogram
    cpu_ms: float
    """CPU time of one run over all threads, median: what a run costs in energy, up to the device's watts."""
    baseline_cpu_ms: float
    peak_rss_mib: float
    """High-water mark of the process that loaded the model and answered every row: engine included,
    the evaluation rows and answers themselves left out."""
    load_rss_mib: float
    """What loading and running added to a process that had the engine imported."""
    coverage: dict[str, int]
    golden: GoldenSpec
    serving: Serving | None = None


def measure(
    recipe: Recipe, plan: Plan, files: Mapping[str, bytes], arrays: Mapping[str, NDArray[Any]]
) -> tuple[Measured, dict[str, bytes]]:
    """Figures, golden files and "answers/<i>.npy". `arrays`: engine inputs under "input/<name>", and the
    source model's classes as "reference" (rows,); without them the candidate is its own reference.

    Raises EngineError when the engine refuses the candidate, or it is hopelessly slow (`plan.give_up_ms`).
    """
    runtime = runtimes.get(plan.engine or recipe.engine)
    version = runtime.version()
    inputs = {name[6:]: array for name, array in arrays.items() if name.startswith("input/")}
    # All rows lie in memory from here to the end; on a device they do not.
    held_mib = sum(array.nbytes for array in arrays.values()) / MIB
    before = _peak_rss_mib()
    session = runtime.load(_part(files, "candidate/"), recipe.runtime_options)
    _glance(session, inputs, plan.give_up_ms)
    outputs = answer(session, inputs)
    held_mib += sum(array.nbytes for array in outputs.values()) / MIB
    peak = _peak_rss_mib()
    reference = None
    if plan.classify:
        reference = arrays.get("reference", _golden.classes(next(iter(outputs.values()))))
    golden, golden_files = _golden.make(session, inputs, reference, plan.verify)
    threads = _threads(runtime, _part(files, "candidate/"), recipe.runtime_options, inputs, plan.cores)
    if threads:
        session.close()
        session = runtime.load(_part(files, "candidate/"), {**recipe.runtime_options, THREADS: threads})
    theirs = {**plan.baseline_options, **({THREADS: threads} if threads else {})}
    baseline = runtime.load(_part(files, "baseline/"), theirs)
    candidate_times, baseline_times = _race(session, baseline, inputs)
    coverage = session.coverage()
    serving = None
    if plan.cores:
        most = _pace.MOST if plan.joins else 1
        serving = _serving(session, golden, golden_files, threads, most)
    baseline.close()
    session.close()
    measured = Measured(
        engine_version=version,
        outputs=tuple(outputs),
        latency=_latency(candidate_times.wall_s),
        baseline_latency=_latency(baseline_times.wall_s),
        histogram=_histogram(candidate_times.wall_s, baseline_times.wall_s),
        cpu_ms=round(percentile(candidate_times.cpu_s, 0.5) * 1e3, 5),
        baseline_cpu_ms=round(percentile(baseline_times.cpu_s, 0.5) * 1e3, 5),
        peak_rss_mib=round(max(peak - held_mib, 0.0), 1),
        load_rss_mib=round(peak - before, 1),
        coverage=coverage,
        golden=golden,
        serving=serving,
    )
    return measured, {**golden_files, **pack_outputs(outputs)}


def answers(
    recipe: Recipe, plan: Plan, files: Mapping[str, bytes], arrays: Mapping[str, NDArray[Any]]
) -> tuple[tuple[str, ...], dict[str, bytes]]:
    """Output names, and what candidate and baseline answer to other rows: "candidate/answers/<i>.npy" and
    "baseline/answers/<i>.npy". `arrays` as for `measure`. No figures."""
    runtime = runtimes.get(plan.engine or recipe.engine)
    inputs = {name[6:]: array for name, array in arrays.items()}
    packed: dict[str, bytes] = {}
    names: tuple[str, ...] = ()
    for who, options in (("candidate/", recipe.runtime_options), ("baseline/", plan.baseline_options)):
        session = runtime.load(_part(files, who), options)
        outputs = answer(session, inputs)
        session.close()
        names = tuple(outputs)
        packed |= {who + name: data for name, data in pack_outputs(outputs).items()}
    return names, packed


def _glance(session: Session, inputs: Mapping[str, NDArray[Any]], give_up_ms: float) -> None:
    if not give_up_ms:
        return
    row = {name: array[:1] for name, array in inputs.items()}
    times = []
    for _ in range(GLANCE_RUNS):
        begin = time.perf_counter()
        session.run(row)
        times.append((time.perf_counter() - begin) * 1e3)
    if min(times) > give_up_ms:
        raise EngineError(
            f"dominated: {min(times):.2f} ms at best, while a smaller candidate needs {give_up_ms / 2:.2f}"
        )


def _threads(
    runtime: Runtime, files: Files, options: Options, inputs: Mapping[str, NDArray[Any]], cores: int
) -> int:
    """1, or `cores` where that is worth it. 0: the recipe decides, or the engine knows no such option."""
    if cores < 2 or options.get(THREADS, 1) != 1 or any(name in options for name in OWN_THREADS):
        return 0
    found: list[tuple[int, Session, list[float]]] = []
    try:
        for count in (1, cores):
            found += [(count, runtime.load(files, {**options, THREADS: count}), [])]
        deadline = time.perf_counter() + THREADS_BUDGET_S
        for i in range(WARM_UP_RUNS + THREADS_RUNS):
            if i > 2 * MIN_TRIES and time.perf_counter() > deadline:
                break
            row = {name: array[i % len(array) : i % len(array) + 1] for name, array in inputs.items()}
            for _, session, times in found:
                begin = time.perf_counter()
                session.run(row)
                times.append(time.perf_counter() - begin)
    except EngineError:
        return 0
    finally:
        for _, session, _ in found:
            session.close()
    one, many = (percentile(times[MIN_TRIES:], 0.5) for _, _, times in found)
    return cores if one >= many * (1 + WORTH * (cores - 1)) else 1


def _serving(
    session: Session, golden: GoldenSpec, files: Mapping[str, bytes], threads: int, most: int
) -> Serving | None:
    """None where the engine fails on what it has answered before."""
    try:
        pace = _pace.measure(session, _pace.trials(golden, files, most))
    except EngineError:
        return None
    return Serving(host.read().cores, threads, pace.run_ms, pace.batch, pace.batch_ms)


@dataclass(frozen=True)
class _Times:
    wall_s: list[float]
    cpu_s: list[float]


def _race(candidate: Session, baseline: Session, inputs: Mapping[str, NDArray[Any]]) -> tuple[_Times, _Times]:
    """Times of both, run in turn on the same rows."""
    rows = len(next(iter(inputs.values())))
    both = ((candidate, _Times([], [])), (baseline, _Times([], [])))
    deadline = 0.0
    for i in range(WARM_UP_RUNS + MAX_RUNS):
        row = {name: array[i % rows : i % rows + 1] for name, array in inputs.items()}
        if i == WARM_UP_RUNS:
            deadline = time.perf_counter() + TIMING_BUDGET_S
        elif i > WARM_UP_RUNS + MIN_RUNS and time.perf_counter() > deadline:
            break
        for session, times in both:
            begin, cpu = time.perf_counter(), time.process_time()
            session.run(row)
            times.wall_s.append(time.perf_counter() - begin)
            times.cpu_s.append(time.process_time() - cpu)
    first, second = (_Times(times.wall_s[WARM_UP_RUNS:], times.cpu_s[WARM_UP_RUNS:]) for _, times in both)
    return first, second


def _latency(seconds: list[float]) -> Latency:
    p50, p95, p99 = (round(percentile(seconds, share) * 1e3, 5) for share in (0.5, 0.95, 0.99))
    return Latency(p50, p95, p99, len(seconds))


def _histogram(candidate: list[float], baseline: list[float]) -> Histogram:
    """Bins of equal ratio from the fastest run to the 99th percentile; slower runs fall into the last."""
    both = np.array([candidate, baseline]) * 1e3
    top = max(float(np.quantile(both, 0.99)), float(both.min()) * 1.01)
    edges = np.geomspace(float(both.min()) * 0.999, top, BINS + 1)
    counts = [np.histogram(np.minimum(times, top), edges)[0] for times in both]
    rounded = tuple(round(float(edge), 5) for edge in edges)
    return Histogram(rounded, tuple(map(int, counts[0])), tuple(map(int, counts[1])))


def _part(files: Mapping[str, bytes], prefix: str) -> dict[str, bytes]:
    return {name.removeprefix(prefix): data for name, data in files.items() if name.startswith(prefix)}


def _peak_rss_mib() -> float:
    """High-water mark of this program. Not `ru_maxrss`: that remembers the parent's memory across exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
