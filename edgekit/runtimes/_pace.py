"""How long runs take, and whether requests may share one: measured, where a variant is built or served.

Batching pays where weights are read once for many rows (a perceptron: ten times the samples per second)
and costs memory where they are not (a convolutional network on a CPU gains nothing), so nobody is asked
to guess. And it must not change answers: an engine that scales activations by the whole batch would make
one client's answer depend on its neighbours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.bundle.model import GoldenSpec, TensorSpec
from edgekit.errors import EngineError
from edgekit.runtimes._base import DTYPES, Array, Session

MOST = 64
"""Samples of the largest joined run that is worth trying."""
_GAIN = 1.1
"""A size must bring so many times the samples per second of the best smaller one. Where 2 do not, nothing
will; later one size may miss, for kernels like some sizes better than others."""
_RUNS, _SIZE_MS, _TOTAL_MS = 7, 100.0, 1000.0
_ROUNDS = 3
_COMPARED = 4
_SAME = 1e-4
"""Largest difference between a row's answers alone and in company, relative to the largest answer. Float32
sums in another order differ by 1e-6 or so, a scale that depends on the neighbours by 1e-3 and more."""


@dataclass(frozen=True)
class Pace:
    """Milliseconds of engine runs on this machine."""

    run_ms: float
    """Median of one sample."""
    batch: int = 1
    """Requests are joined up to so many samples; 1: never."""
    batch_ms: float = 0.0
    """Of a run with `batch` samples, when that is more than 1."""

    def estimate_ms(self, samples: int) -> float:
        """Of a run with `samples` samples; between the measured sizes on a straight line."""
        if self.batch == 1:
            return self.run_ms * samples
        if samples > self.batch:
            return self.batch_ms * samples / self.batch
        return self.run_ms + (self.batch_ms - self.run_ms) * (samples - 1) / (self.batch - 1)


@dataclass(frozen=True)
class Ran:
    """One run, as `trials` is told of it."""

    outputs: dict[str, Array]
    ms: float


Trials = Generator[dict[str, Array], Ran, Pace]
"""Yields inputs of the next run, is sent what came of it or an EngineError is thrown in; returns the pace."""


def trials(
    golden: GoldenSpec,
    files: Mapping[str, bytes | memoryview],
    most: int = MOST,
    longest_ms: float = math.inf,
) -> Trials:
    """Single golden samples first, then joined runs of 2, 4, 8, ... up to `most`, while they pay and answer
    the same: runs of about a second in all. No joined run is tried that should take more than `longest_ms`,
    and none for a model that is not `joinable`: then `most` is 1.

    An engine that cannot run a batch is no error; one that cannot run a single sample is.
    """
    rows = {
        item.name: np.frombuffer(files[f"inputs/{item.name}"], DTYPES[item.datatype]).reshape(item.shape)
        for item in golden.inputs
    }
    alone: list[dict[str, Array]] = []
    times: list[float] = []
    while len(times) < _RUNS and (len(times) < min(golden.samples, _COMPARED) or sum(times) < _SIZE_MS):
        row = len(times) % golden.samples
        ran = yield _row(rows, row)
        times.append(ran.ms)
        if len(alone) < min(golden.samples, _COMPARED):
            alone.append(ran.outputs)
    pace = Pace(round(float(np.median(times)), 5))
    spent_ms, best_ms, size, misses = sum(times), min(times), 2, 0
    try:
        while size <= most and spent_ms < _TOTAL_MS and pace.estimate_ms(size) <= longest_ms:
            joined = {name: _repeat(array, size) for name, array in rows.items()}
            ran = yield joined
            if not _same(alone, ran.outputs, size, golden.samples):
                return Pace(pace.run_ms)
            # The shortest of a few, and of a few more where that does not pay: on a busy machine the others
            # tell about the neighbours. (One load in sixteen of a perceptron was never batched without.)
            shortest_ms, spent_ms, pays = math.inf, spent_ms + ran.ms, False
            for _ in range(_ROUNDS):
                times = []
                while len(times) < _RUNS and sum(times) < _SIZE_MS:
                    times.append((yield joined).ms)
                shortest_ms, spent_ms = min(shortest_ms, *times), spent_ms + sum(times)
                pays = best_ms / (shortest_ms / size) >= _GAIN
                if pays:
                    break
            if pays and size == 2:  # or were the single runs disturbed?
                times = []
                while len(times) < _RUNS and sum(times) < _SIZE_MS:
                    row = len(times) % golden.samples
                    times.append((yield _row(rows, row)).ms)
                best_ms, spent_ms = min(best_ms, *times), spent_ms + sum(times)
                pays = best_ms / (shortest_ms / size) >= _GAIN
            if pays:
                best_ms, misses = shortest_ms / size, 0
                pace = replace(pace, batch=size, batch_ms=round(shortest_ms, 5))
            elif misses or pace.batch == 1:
                break
            else:
                misses = 1
            size *= 2
    except EngineError:
        return Pace(pace.run_ms)
    return pace


def measure(session: Session, made: Trials) -> Pace:
    """Make all the runs of `trials` now. Raises EngineError when not even one sample runs."""
    inputs = next(made)
    while True:
        begin = time.perf_counter()
        try:
            outputs = session.run(inputs)
        except EngineError as exc:
            step = Step.failed(made, exc)
        else:
            step = Step.ran(made, Ran(outputs, (time.perf_counter() - begin) * 1e3))
        if step.pace is not None:
            return step.pace
        inputs = step.inputs


@dataclass(frozen=True)
class Step:
    """What follows a run of `trials`: another one, or the pace."""

    inputs: dict[str, Array]
    pace: Pace | None = None

    @staticmethod
    def ran(made: Trials, ran: Ran) -> Step:
        try:
            return Step(made.send(ran))
        except StopIteration as end:
            return Step({}, end.value)

    @staticmethod
    def failed(made: Trials, exc: EngineError) -> Step:
        """Raises `exc` where that is no answer."""
        try:
            return Step(made.throw(exc))
        except StopIteration as end:
            return Step({}, end.value)


def joinable(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> bool:
    """Whether every one of them has a free first dimension."""
    return bool(inputs) and all(spec.shape[:1] == (-1,) for spec in (*inputs, *outputs))


def _row(rows: dict[str, Array], row: int) -> dict[str, Array]:
    return {name: array[row : row + 1] for name, array in rows.items()}


def _repeat(array: Array, size: int) -> Array:
    return np.ascontiguousarray(np.resize(array, (size, *array.shape[1:])))


def _same(alone: list[dict[str, Array]], joined: dict[str, Array], size: int, samples: int) -> bool:
    """Whether the rows of a joined run are the answers that they were alone."""
    for name, array in joined.items():
        if array.shape[:1] != (size,):
            return False
        for row in range(size):
            if row % samples >= len(alone):
                continue
            single = alone[row % samples][name][0]
            if array[row].shape != single.shape:
                return False
            gap = np.abs(array[row].astype(np.float64) - single.astype(np.float64))
            allowed = _SAME * np.max(np.abs(single.astype(np.float64)), initial=0.0)
            if array.dtype.kind != "f":
                allowed = 0.0
            if not bool(np.all(gap <= allowed)):
                return False
    return True
