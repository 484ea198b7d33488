"""Load a variant and prove it: the same steps in a probe and in the serving process."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit import runtimes
from edgekit.bundle.model import GoldenSpec
from edgekit.errors import EdgekitError, EngineError
from edgekit.runtimes import Session
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._golden import GoldenReport, check
from edgekit.runtimes._pipeline import Processor, engine_files
from edgekit_agent import memfd, process
from edgekit_agent.messages import Load, Loaded, Measured, Pacing
from edgekit_agent.serve.pace import Pace, measure

_TIMED_RUNS, _TIMED_S = 20, 1.0
_HURRIED_RUNS, _HURRIED_S = 3, 0.1
_CERTIFIED_RUNS, _CERTIFIED_S = 300, 3.0


@dataclass(frozen=True)
class Proven:
    """A session that gave the certified answers on this device."""

    session: Session
    report: GoldenReport
    pace: Pace
    load_ms: float
    measured: Measured | None
    processor: Processor | None = None
    """The variant's pipeline, where it has one."""


def load(request: Load, fds: Sequence[int], *, most: int = 1) -> Proven:
    """Load, warm up with the golden samples, compare, time. Blocks; releases the GIL inside the engine.

    `most`: samples of the largest joined run that is tried; a probe tries none, for its peak memory counts.
    `fds` stay the caller's. Raises EdgekitError; a stranger's engine that raises anything else is an
    EngineError, because a bad engine must not take the serving process down.
    """
    begin = time.perf_counter()
    views = [memfd.read(fd) for fd in fds]
    files = dict(zip(request.files, views, strict=False))
    golden = dict(zip(request.golden_files, views[len(request.files) :], strict=True))
    session: Session | None = None
    measured = None
    try:
        runtime = runtimes.get(request.config.engine.name)
        session = runtime.load(engine_files(request.config, files), request.config.options)
        again = request.proven is not None
        report = check(session, *(_first(request.golden, golden) if again else (request.golden, golden)))
        steps = request.config.pipeline
        processor = Processor(request.config, steps, files) if steps else None
        pace = _pace(request, session, golden, most)
        load_ms = (time.perf_counter() - begin) * 1e3
        if request.certify:
            times = _times_ms(session, request.golden, golden, _CERTIFIED_RUNS, _CERTIFIED_S)
            peak, coverage = round(process.peak_rss_mib(), 1), session.coverage()
            measured = Measured(runtime.version(), *_percentiles(times), len(times), peak, coverage)
    except Exception as exc:
        if session is not None:
            session.close()
        if isinstance(exc, EdgekitError):
            raise
        raise EngineError(f"{request.config.engine.name}: {type(exc).__name__}: {exc}") from exc
    return Proven(session, report, pace, load_ms, measured, processor)


def _pace(request: Load, session: Session, golden: dict[str, memoryview], most: int) -> Pace:
    """Measured now, or known from an earlier load."""
    if request.proven is not None:
        return Pace(request.proven.run_ms, request.proven.batch, request.proven.batch_ms)
    runs, limit_s = (_HURRIED_RUNS, _HURRIED_S) if request.hurry else (_TIMED_RUNS, _TIMED_S)
    run_ms = _percentiles(_times_ms(session, request.golden, golden, runs, limit_s))[0]
    most = 1 if request.hurry else most
    return measure(session, request.config, request.golden, golden, run_ms, most)


def warm(name: str) -> bool:
    """Import an engine's library; False when it is not there or does not work."""
    try:
        runtimes.get(name).version()
    except Exception:  # a stranger's engine may raise anything; `load` will say what
        return False
    return True


def _first(spec: GoldenSpec, files: dict[str, memoryview]) -> tuple[GoldenSpec, dict[str, memoryview]]:
    """The golden check of the first sample alone; its class is not asked, one sample has no share."""
    one = dataclasses.replace(
        spec,
        samples=1,
        inputs=tuple(dataclasses.replace(item, shape=(1, *item.shape[1:])) for item in spec.inputs),
        outputs=tuple(dataclasses.replace(item, shape=(1, *item.shape[1:])) for item in spec.outputs),
        min_reference_agreement=0.0,
    )
    return one, {name: data[: len(data) // max(1, spec.samples)] for name, data in files.items()}


def success(request: Load, proven: Proven) -> Loaded:
    difference = proven.report.max_abs_difference
    return Loaded(
        id=request.id,
        ok=True,
        samples=proven.report.samples,
        max_abs_difference=difference if math.isfinite(difference) else -1.0,
        reference_agreement=proven.report.reference_agreement,
        run_ms=proven.pace.run_ms,
        pacing=Pacing(proven.pace.run_ms, proven.pace.batch, proven.pace.batch_ms),
        load_ms=proven.load_ms,
        rss_mib=process.rss_mib(),
        measured=proven.measured,
    )


def failure(request: Load, exc: EdgekitError) -> Loaded:
    return Loaded(request.id, False, type(exc).__name__, exc.message, exc.hint, rss_mib=process.rss_mib())


def _times_ms(
    session: Session, spec: GoldenSpec, files: dict[str, memoryview], runs: int, limit_s: float
) -> list[float]:
    """Of single golden samples, warm; `check` has run them all before."""
    tensors = {
        item.name: np.frombuffer(files[f"inputs/{item.name}"], DTYPES[item.datatype]).reshape(item.shape)
        for item in spec.inputs
    }
    times: list[float] = []
    while len(times) < runs and sum(times) < limit_s * 1e3:
        row = len(times) % spec.samples
        sample = {name: array[row : row + 1] for name, array in tensors.items()}
        begin = time.perf_counter()
        session.run(sample)
        times.append((time.perf_counter() - begin) * 1e3)
    return times


def _percentiles(times_ms: list[float]) -> tuple[float, float, float]:
    """p50, p95, p99."""
    p50, p95, p99 = (round(float(np.quantile(times_ms, share)), 5) for share in (0.5, 0.95, 0.99))
    return p50, p95, p99
