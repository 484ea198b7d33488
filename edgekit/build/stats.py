"""The statistics behind a certificate: intervals and paired tests for a share of right answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekit.bundle.model import Interval

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
