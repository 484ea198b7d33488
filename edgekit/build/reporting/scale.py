"""Axes: a domain, ticks that people like, and positions on a drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LOG_ABOVE = 8.0
"""Largest over smallest value from which an axis counts in powers."""


@dataclass(frozen=True)
class Axis:
    """Maps `low`..`high` to `start`..`stop` (drawing units, may run backwards)."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def at(self, value: float) -> float:
        """The position of `value`, rounded; values outside are put on the edge."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.start + share * (self.stop - self.start), 2)

    def ticks(self, wanted: int = 5) -> list[float]:
        if self.log and self.high / self.low >= LOG_ABOVE:
            low, high = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            every = [m * 10.0**p for p in range(low, high + 1) for m in (1, 2, 5)]
            inside = [t for t in every if self.low <= t <= self.high]
            return inside[:: math.ceil(len(inside) / 6)] if len(inside) > 6 else inside
        step = _step(self.high - self.low, wanted)
        count = math.floor(self.high / step + 1e-9) - math.ceil(self.low / step - 1e-9) + 1
        first = math.ceil(self.low / step - 1e-9) * step
        return [round(first + i * step, 12) for i in range(max(0, count))]


def axis(values: Iterable[float], start: float, stop: float, *, log: bool = False, pad: float = 0.08) -> Axis:
    """An axis around finite `values` with room at both ends; logarithmic when wanted and worth it."""
    known = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if log and low > 0 and high / low > LOG_ABOVE:
        room = (high / low) ** pad
        return Axis(low / room, high * room, start, stop, log=True)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return Axis(low - room if low < 0 or low - room > 0 else 0.0, high + room, start, stop)


def _step(span: float, wanted: int) -> float:
    """1, 2 or 5 times a power of ten, about `wanted` times in `span`."""
    if span <= 0:
        return 1.0
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return next((m * power for m in (1, 2, 5) if m * power >= rough), 10 * power)
