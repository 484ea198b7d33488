"""How long runs take on this device, and whether requests may share one: measured when a release is loaded.

Batching pays where weights are read once for many rows (a perceptron: ten times the samples per second)
and costs memory where they are not (a convolutional network on a CPU gains nothing), so nobody is asked
to guess. And it must not change answers: an engine that scales activations by the whole batch would make
one client's answer depend on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.model import GoldenSpec, VariantConfig
from edgekit.errors import EngineError
from edgekit.runtimes import Array, Session
from edgekit.runtimes._base import DTYPES

_GAIN = 1.1
"""A size must bring so many times the samples per second of the best smaller one. Where 2 do not, nothing
will; later one size may miss, for kernels like some sizes better than others."""
_RUNS, _SIZE_S, _TOTAL_S = 7, 0.1, 1.0
_COMPARED = 4
_SAME = 1e-4
"""Largest difference between a row's answers alone and in company, relative to the largest answer. Float32
sums in another order differ by 1e-6 or so, a scale that depends on the neighbours by 1e-3 and more."""


@dataclass(frozen=True)
class Pace:
    """Milliseconds of engine runs on this device."""

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


def measure(
    session: Session,
    config: VariantConfig,
    golden: GoldenSpec,
    files: Mapping[str, bytes | memoryview],
    run_ms: float,
    most: int,
) -> Pace:
    """Try joined runs of 2, 4, 8, ... golden samples, up to `most`, while they pay and answer the same.

    Blocks for up to a second, or one doubling more. An engine that cannot run a batch is no error.
    """
    pace = Pace(run_ms)
    if not joinable(config):
        return pace
    rows = {
        item.name: np.frombuffer(files[f"inputs/{item.name}"], DTYPES[item.datatype]).reshape(item.shape)
        for item in golden.inputs
    }
    count = min(golden.samples, _COMPARED)
    begin = time.perf_counter()
    try:
        alone = [session.run({name: array[i : i + 1] for name, array in rows.items()}) for i in range(count)]
        size, misses = 2, 0
        while size <= most and time.perf_counter() - begin < _TOTAL_S:
            joined = {name: _repeat(array, size) for name, array in rows.items()}
            if not _same(alone, session.run(joined), size, golden.samples):
                return Pace(run_ms)
            fastest_ms = _fastest_ms(session, joined)
            before = pace.estimate_ms(pace.batch) / pace.batch
            if before / (fastest_ms / size) >= _GAIN:
                pace, misses = Pace(run_ms, size, fastest_ms), 0
            elif misses or pace.batch == 1:
                break
            else:
                misses = 1
            size *= 2
    except EngineError:
        return Pace(run_ms)
    return pace


def joinable(config: VariantConfig) -> bool:
    """Whether every input and output has a free first dimension."""
    return bool(config.inputs) and all(spec.shape[:1] == (-1,) for spec in (*config.inputs, *config.outputs))


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


def _fastest_ms(session: Session, inputs: dict[str, Array]) -> float:
    """The shortest of a few runs: on a busy machine the others tell about the neighbours."""
    times: list[float] = []
    while len(times) < _RUNS and sum(times) < _SIZE_S * 1e3:
        begin = time.perf_counter()
        session.run(inputs)
        times.append((time.perf_counter() - begin) * 1e3)
    return min(times)
