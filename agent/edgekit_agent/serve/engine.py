"""Load a variant and prove it: the same steps in a probe and in the serving process."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit import runtimes
from edgekit.bundle.model import GoldenSpec, VariantConfig
from edgekit.errors import EdgekitError, EngineError
from edgekit.runtimes import Files, Session
from edgekit.runtimes._base import DTYPES, engine_files
from edgekit.runtimes._golden import GoldenReport, check
from edgekit.runtimes._pace import Pace, Trials, joinable, trials
from edgekit_agent import memfd, process
from edgekit_agent.messages import Load, Loaded, Measured, Pacing
from edgekit_agent.serve.tryout import LONGEST_MS

if TYPE_CHECKING:
    from edgekit.runtimes._pipeline import Processor

_BELIEVED = 2.0
"""Times that the golden samples may take longer or shorter than the builder measured."""
_CERTIFIED_RUNS, _CERTIFIED_S = 300, 3.0


@dataclass(frozen=True)
class Proven:
    """A session that gave the certified answers on this device."""

    session: Session
    report: GoldenReport
    pace: Pace
    """As far as it is known."""
    load_ms: float
    measured: Measured | None
    processor: Processor | None = None
    """The variant's pipeline, where it has one."""
    trials: Trials | None = None
    """Runs that are worth making later, to know the pace; None: it is known."""


def load(request: Load, fds: Sequence[int], *, most: int = 1) -> Proven:
    """Load, warm up with the golden samples, compare, time. Blocks; releases the GIL inside the engine.

    `most`: samples of the largest joined run that may be tried later. Nothing is tried here: clients wait,
    and a probe's peak memory counts. `fds` stay the caller's. Raises EdgekitError; a stranger's engine that
    raises anything else is an EngineError, because a bad engine must not take the serving process down.
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
        made = processor(request.config, files)
        pace, known = _pace(request, report.run_ms, runtime.version())
        wanted = None
        joins = most > 1 and joinable(request.config.inputs, request.config.outputs)
        if joins and not known and 2 * pace.run_ms <= LONGEST_MS:
            wanted = trials(request.golden, golden, most, LONGEST_MS)
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
    return Proven(session, report, pace, load_ms, measured, made, wanted)


def processor(config: VariantConfig, files: Files) -> Processor | None:
    """The variant's pipeline, where it has one."""
    if config.pipeline is None:
        return None
    from edgekit.runtimes._pipeline import Processor  # most variants need none of it

    return Processor(config, config.pipeline, files)


def _pace(request: Load, run_ms: float, version: str) -> tuple[Pace, bool]:
    """From an earlier load, or from the builder where that fits what the golden samples took, else that; and
    whether it is all there is to know."""
    before, told = request.proven, request.advice
    if before is not None:
        return pace_of(before), before.settled
    fits = told is not None and told.engine_version == version
    if told is not None and fits and told.run_ms / _BELIEVED <= run_ms <= told.run_ms * _BELIEVED:
        return Pace(told.run_ms, told.batch, told.batch_ms), True
    return Pace(run_ms), False


def pace_of(told: Pacing) -> Pace:
    return Pace(told.run_ms, told.batch, told.batch_ms)


def pipeline(request: Load, fds: Sequence[int]) -> Processor | None:
    """The variant's pipeline alone, of a model that is loaded later. Raises EdgekitError."""
    return processor(request.config, dict(zip(request.files, map(memfd.read, fds), strict=False)))


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
        pacing=Pacing(
            proven.pace.run_ms, proven.pace.batch, proven.pace.batch_ms, settled=proven.trials is None
        ),
        load_ms=proven.load_ms,
        rss_mib=process.rss_mib(),
        measured=proven.measured,
    )


def put_off(request: Load) -> Loaded:
    """The answer to a Load that the first request carries out."""
    run_ms = request.proven.run_ms if request.proven is not None else 0.0
    return Loaded(request.id, True, run_ms=run_ms, pacing=request.proven, rss_mib=process.rss_mib())


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
