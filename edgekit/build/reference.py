"""What goes into a certificate for the device to hold its requests against: see runtimes/_drift.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.build import stats
from edgekit.bundle.model import Bins, Reference
from edgekit.runtimes import _drift as drift
from edgekit.runtimes._golden import classes

Array = NDArray[Any]

MOST_BINS, ROWS_PER_BIN = 10, 50
"""Deciles, where there are rows enough: m rows and a window of n have (bins - 1)(1/m + 1/n) by chance, below
0.04 then, and the worst of two dozen columns stays below 0.1 (24 is the 99.6 % quantile of chi-squared with 9
degrees of freedom)."""
FEWEST_ROWS = 2 * ROWS_PER_BIN
MOST_CLASSES, ROWS_PER_CLASS = 32, 20
MOST_TENSORS, MOST_COLUMNS = 8, 24
"""Of inputs, and of outputs: some kilobytes at most."""
WIDEST = 1024
"""Columns of a table; wider rows are signals, whose values are taken together."""
MOST_VALUES = 1_000_000


def of(inputs: Mapping[str, Array], outputs: Mapping[str, Array], *, classifies: bool) -> Reference | None:
    """From evaluation rows as the engine gets them, (rows, ...), and the variant's raw answers to all or some
    of them. None where there are too few rows, or nothing with a range.

    `classifies`: the answer is the class with the largest score of the first output.
    """
    rows = min((len(array) for array in (*inputs.values(), *outputs.values())), default=0)
    if rows < FEWEST_ROWS:
        return None
    predicted = _classes(*next(iter(outputs.items())), rows) if classifies and outputs else None
    found = Reference(
        rows, tuple(_bins(inputs, rows)), () if predicted else tuple(_bins(outputs, rows)), predicted
    )
    return found if found.inputs or found.outputs or found.classes else None


def _bins(arrays: Mapping[str, Array], rows: int) -> Iterator[Bins]:
    """By column where the rows are a table's, of all values together elsewhere."""
    signals = {name: array for name, array in arrays.items() if array.size and drift.is_signal(array)}
    chosen = list(signals.items())[:MOST_TENSORS]
    bins = min(MOST_BINS, rows // ROWS_PER_BIN)
    for name, array in chosen:
        if array.ndim == 2 and 1 < array.shape[1] <= WIDEST:
            width = array.shape[1]
            most = min(width, MOST_COLUMNS // len(chosen))
            for column in np.linspace(0, width - 1, most).astype(int).tolist():
                yield _one(name, array[:, column], bins, column)
        else:
            yield _one(name, stats.thinned(array, MOST_VALUES), bins)


def _one(name: str, values: Array, bins: int, column: int = -1) -> Bins:
    values = values.astype(np.float64)
    return _counted(name, drift.edges(values, bins), values[~np.isnan(values)], column)


def _classes(name: str, scores: Array, rows: int) -> Bins:
    """A bin for each class; where there are too many for the rows, neighbours share one."""
    number = scores[0].size
    predicted = classes(scores)
    most = min(MOST_CLASSES, rows // ROWS_PER_CLASS)
    ends = [at - 0.5 for at in range(1, number)] if number <= most else drift.edges(predicted, most)
    return _counted(name, ends, predicted)


def _counted(name: str, ends: list[float], values: Array, column: int = -1) -> Bins:
    counts = drift.histogram(ends, values)
    shares = tuple(round(float(share), 6) for share in counts / max(1, counts.sum()))
    return Bins(name, tuple(ends), shares if values.size else (1.0,), column)
