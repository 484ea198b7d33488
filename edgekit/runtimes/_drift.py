"""Whether values are distributed as a reference is: histograms on fixed bins, and what they differ by.

The builder makes the bins (edgekit.build.reference), the agent counts into them. Counts on equal bins add up:
of two samples, two windows or two devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from edgekit.bundle.model import Bins, Reference, VariantConfig
from edgekit.errors import FormatError
from edgekit.runtimes._base import Array

SMOOTHING = 0.5
"""Values that are added to every bin, so that an empty one does not make the index infinite."""
MOST_BINS, MOST_TABLES = 65, 64
"""Of one distribution, and distributions of a reference: more are refused."""


def is_signal(array: Array) -> bool:
    """Whether values have a range that they may leave: token numbers and the like have none."""
    return array.dtype.kind == "f" or (array.dtype.kind in "iu" and array.dtype.itemsize == 1)


def psi(expected: Array, seen: Array, real: Array | bool = True) -> Array:
    """Population stability index between counts (..., bins), over the last axis: the sum of
    (q - p) ln(q / p), p and q the shares of a bin (Siddiqi 2006, Credit Risk Scorecards, ch. 8: below 0.1
    nothing has changed, above 0.25 it is another distribution). `real`: False for bins that there are not.

    Two samples of n and m values of one distribution have (bins - 1)(1/n + 1/m) on average (Yurdakul 2018).
    """
    shares = []
    for counts in (expected, seen):
        padded = np.where(real, counts + SMOOTHING, 0.0)
        shares.append(np.where(real, padded / padded.sum(axis=-1, keepdims=True), 1.0))
    p, q = shares
    index: Array = np.sum((q - p) * np.log(q / p), axis=-1)
    return index


def edges(values: Array, bins: int) -> list[float]:
    """Ends of about `bins` bins of equal share, ascending, finite; none for no finite value.

    An edge lies between two values that occur, not on one, so that a device which rounds otherwise counts
    alike. A value that fills a bin by itself (the zeros of many pictures) gets one of its own, with an edge
    on either side, even where nothing lies beyond: a constant has a bin, and so has all that differs.
    """
    finite = np.asarray(values, np.float64).ravel()
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return []
    known, counts = np.unique(finite, return_counts=True)
    ends = np.cumsum(counts)
    ranks = np.linspace(0, len(finite), bins + 1)[1:-1]
    found: set[float] = set()
    for at in np.unique(np.searchsorted(ends, ranks)).tolist():
        value, alone = float(known[at]), counts[at] * bins >= len(finite)
        below = float(known[at - 1]) if at else None
        above = float(known[at + 1]) if at + 1 < len(known) else None
        far = _apart(value, below, above)
        if alone or below is not None:
            found.add(_between(value - far if below is None else below, value))
        if alone:
            found.add(_between(value, value + far if above is None else above))
    return sorted(edge for edge in found if math.isfinite(edge))


def _apart(value: float, below: float | None, above: float | None) -> float:
    """How far from `value` something else begins where no value is known."""
    if above is not None:
        return above - value
    return value - below if below is not None else max(1e-3 * abs(value), 1e-6)


def _between(low: float, high: float) -> float:
    """The number with fewest digits, two or more, that parts two."""
    middle = low / 2 + high / 2
    for digits in range(2, 17):
        short = float(f"{middle:.{digits}g}")
        if low < short < high:
            return short
    return high  # neighbours among the floating-point numbers


def histogram(ends: Sequence[float] | Array, values: Array) -> Array:
    """How many values lie in each bin between `ends`, which ascend; one more than these."""
    places = np.searchsorted(np.asarray(ends, np.float64), np.ravel(values), side="right")
    return np.bincount(places, minlength=len(ends) + 1)


@dataclass(frozen=True)
class Table:
    """A reference's bins of one tensor, by column."""

    tensor: str
    columns: tuple[int, ...]
    """Of a tensor (rows, columns); empty: all its values are one column."""
    edges: Array
    """(columns, bins - 1), filled up with infinity."""
    real: Array
    """(columns, bins): False for what is only filled up."""
    expected: Array
    """(columns, bins): values of the reference in each bin, as if it had one for each of its rows."""

    def count(self, values: Array) -> Array:
        """(rows, columns) to values per bin, (columns, bins). NaN counts as below everything."""
        places = (np.asarray(values, np.float64)[:, :, None] >= self.edges).sum(axis=2)
        columns, bins = self.real.shape
        flat = (places + np.arange(columns) * bins).ravel()
        return np.bincount(flat, minlength=columns * bins).reshape(columns, bins)

    def psi(self, counts: Array) -> Array:
        """Of each column."""
        return psi(self.expected, counts, self.real)


def tables(found: Sequence[Bins], rows: int) -> tuple[Table, ...]:
    """One per tensor. Raises FormatError for bins that are none."""
    if len(found) > MOST_TABLES:
        raise FormatError(f"reference: {len(found)} distributions, {MOST_TABLES} are allowed")
    for one in found:
        _check(one, rows)
    grouped = [(name, list(group)) for name, group in groupby(found, key=lambda one: one.tensor)]
    if len({name for name, _ in grouped}) < len(grouped):
        raise FormatError("reference: the distributions of a tensor do not stand together")
    return tuple(_table(name, group, rows) for name, group in grouped)


def _check(one: Bins, rows: int) -> None:
    ascending = all(a < b for a, b in pairwise(one.edges)) and all(map(math.isfinite, one.edges))
    shares = all(0 <= share <= 1 for share in one.shares) and abs(sum(one.shares) - 1) < 0.01
    fits = len(one.shares) == len(one.edges) + 1 <= MOST_BINS
    if not (ascending and shares and fits and rows > 0 and one.column >= -1):
        raise FormatError(f"reference: the bins of {one.tensor!r} are none")


def _table(name: str, group: Sequence[Bins], rows: int) -> Table:
    columns = tuple(one.column for one in group)
    if len(set(columns)) < len(columns) or (-1 in columns and len(columns) > 1):
        raise FormatError(f"reference: a column of {name!r} is there twice")
    width = max(len(one.shares) for one in group)
    ends = np.full((len(group), width - 1), np.inf)
    expected = np.zeros((len(group), width))
    for row, one in enumerate(group):
        ends[row, : len(one.edges)] = one.edges
        expected[row, : len(one.shares)] = np.array(one.shares) * rows
    real = np.arange(width) < np.array([[len(one.shares)] for one in group])
    return Table(name, () if columns == (-1,) else columns, ends, real, expected)


def check(reference: Reference, config: VariantConfig) -> None:
    """Raises FormatError where `reference` speaks of tensors or columns that the variant has not."""
    shapes = {
        "inputs": {spec.name: spec.shape for spec in config.inputs},
        "outputs": {spec.name: spec.shape for spec in config.outputs},
    }
    classes = (reference.classes,) if reference.classes is not None else ()
    for kind, found in (("inputs", reference.inputs), ("outputs", (*reference.outputs, *classes))):
        for one in found:
            shape = shapes[kind].get(one.tensor)
            if shape is None or (one.column >= 0 and (len(shape) != 2 or one.column >= shape[1] >= 0)):
                raise FormatError(f"reference: no such {kind}: {one.tensor!r}, column {one.column}")
