"""The statistics behind a certificate: intervals and paired tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.model import Interval
from edgekit.runtimes import _drift

Rows = NDArray[np.float64]
Z_95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def wilson(right: int, total: int, z: float = Z_95) -> Interval:
    """Share `right / total` with Wilson's score interval (Wilson 1927; Brown, Cai & DasGupta 2001).

    Raises ValueError when `total` is not positive or `right` is outside 0..total.
    """
    if not 0 <= right <= total or total == 0:
        raise ValueError(f"{right} right of {total}")
    share = right / total
    spread = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / spread
    half = z / spread * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the bounds are 0 and 1 exactly; arithmetic may miss them by an ulp.
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p-value of McNemar's test (McNemar 1947): binomial, p = 1/2.

    `lost`: right before and wrong now; `gained`: the other way round. 1.0 when no answer differs.
    """
    changed = lost + gained
    if changed == 0:
        return 1.0
    tail = sum(math.comb(changed, k) for k in range(min(lost, gained) + 1))
    return float(min(1.0, 2 * tail / 2**changed))


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile, `share` in 0..1 (Hyndman & Fan 1996, definition 1)."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


RESAMPLES = 1000


def bootstrap(rows: Rows, value: Callable[[Rows], float], seed: int = 0) -> Interval:
    """`value(rows)` with its percentile bootstrap interval (Efron 1979), `rows` (samples, k) resampled.

    The same rows give the same interval: the generator is seeded.
    """
    generator = np.random.default_rng(seed)
    centre = value(rows)
    draws = [value(rows[generator.integers(0, len(rows), len(rows))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(centre, min(centre, float(low)), max(centre, float(high)))


def paired_bootstrap(now: Rows, before: Rows, value: Callable[[Rows], float], seed: int = 0) -> float:
    """Two-sided p-value for value(now) != value(before): both resampled at the same places, and the share
    of resamples in which the difference has the other sign, doubled (Efron & Tibshirani 1993, ch. 16)."""
    if np.array_equal(now, before):
        return 1.0
    generator = np.random.default_rng(seed)
    below = above = 0
    for _ in range(RESAMPLES):
        places = generator.integers(0, len(now), len(now))
        difference = value(now[places]) - value(before[places])
        below += difference <= 0
        above += difference >= 0
    return float(min(1.0, 2 * (min(below, above) + 1) / (RESAMPLES + 1)))


def excess_loss(
    now: tuple[Rows, Rows], before: tuple[Rows, Rows], goodness: Callable[[Rows], float], seed: int = 0
) -> float:
    """One-sided p-value that a variant loses no more than fp32 does between two conditions.

    `now`, `before`: (undisturbed, disturbed) figures of variant and fp32, the same samples in all four, which
    are resampled together; the share of resamples in which the variant loses less (as in `paired_bootstrap`).
    """
    generator = np.random.default_rng(seed)
    less = 0
    for _ in range(RESAMPLES):
        places = generator.integers(0, len(now[0]), len(now[0]))
        lost, usual = (goodness(clean[places]) - goodness(hurt[places]) for clean, hurt in (now, before))
        less += lost <= usual
    return (less + 1) / (RESAMPLES + 1)


def thinned(array: NDArray[Any], most: int) -> NDArray[Any]:
    """About `most` values of all, evenly spread; an odd step, so that it does not fall into step with rows
    and channels of even sizes."""
    flat = array.reshape(-1)
    return flat[:: max(1, flat.size // most) | 1]


def psi(expected: NDArray[Any], seen: NDArray[Any], bins: int = 10) -> float:
    """Population stability index of two samples over bins of equal share of `expected`; see _drift.psi."""
    edges = np.unique(np.quantile(expected, np.linspace(0, 1, bins + 1)[1:-1]))
    return float(_drift.psi(_drift.histogram(edges, expected), _drift.histogram(edges, seen)))


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 for the smallest; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[inverse], np.float64)


def edit_distance(left: str, right: str) -> int:
    """Fewest insertions, deletions and substitutions from one to the other (Levenshtein 1966)."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
