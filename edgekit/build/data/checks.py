"""What makes rows less worth than they look: warnings that go into certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from edgekit.build import stats
from edgekit.build.data._base import Array, Stored
from edgekit.bundle.model import Drift
from edgekit.runtimes._drift import is_signal

FEW_ROWS = 32
MAX_CHANNELS = 16
MAX_COLUMNS = 1024
MAX_VALUES = 1_000_000
OUTSIDE = 0.01
CHANCE = 0.01
SHIFTED = 0.25
Inputs = Mapping[str, Array]


class Named(Protocol):
    """What a line names: data with a number of rows."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...


def calibration(text: str, inputs: Mapping[str, Array]) -> tuple[str, ...]:
    """What makes ranges worthless. Measured: a keyword spotter calibrated on zeros fell from .91 to .09."""
    return tuple(line for name, array in inputs.items() for line in _calibration(text, name, array))


def _calibration(text: str, name: str, array: Array) -> Iterator[str]:
    if len(array) < FEW_ROWS:
        yield f"{text}: {len(array)} calibration rows for {name!r}; {FEW_ROWS} or more are usual"
    if np.ptp(array) == 0:
        yield f"{text}: every value of {name!r} is {array.flat[0]:g}; ranges learnt from it are wrong"
        return
    constant = [(i, value) for i, value in _constant_channels(array)]
    if constant:
        number, value = constant[0]
        more = f" (and {len(constant) - 1} more)" if len(constant) > 1 else ""
        yield (
            f"{text}: channel {number}{more} of {name!r} is {value:g} everywhere; ranges learnt from it are "
            "wrong"
        )


def _constant_channels(array: Array) -> Iterator[tuple[int, float]]:
    """Channels of an image-like input (rows, C, H, W) or (rows, H, W, C) that hold one value only."""
    if array.ndim != 4:
        return
    axis = 1 if array.shape[1] <= array.shape[3] else 3
    if not 1 < array.shape[axis] <= MAX_CHANNELS:
        return
    for number in range(array.shape[axis]):
        channel = array[:, number] if axis == 1 else array[..., number]
        if np.ptp(channel) == 0:
            yield number, float(channel.flat[0])


def drift(calibration: Inputs, evaluation: Inputs) -> tuple[Drift, ...]:
    """One per input that carries a signal: token numbers and the like have no range to leave."""
    return tuple(
        _drift(name, array, evaluation[name]) for name, array in calibration.items() if is_signal(array)
    )


def _drift(name: str, known: Array, seen: Array) -> Drift:
    few = stats.thinned(seen, MAX_VALUES)
    outside = round(float(np.mean((few < known.min()) | (few > known.max()))), 6)
    if seen.ndim == 2 and 1 < seen.shape[1] <= MAX_COLUMNS:
        values = [stats.psi(known[:, i], seen[:, i]) for i in range(seen.shape[1])]
        worst = int(np.argmax(values))
        return Drift(name, outside, round(values[worst], 4), worst)
    return Drift(name, outside, round(stats.psi(stats.thinned(known, MAX_VALUES), few), 4))


def drift_warnings(found: Sequence[Drift], calibration: Named, evaluation: Named) -> tuple[str, ...]:
    """Few rows differ by chance: n of them leave about 2 / (n + 1) of what comes later outside their range
    (order statistics), and two samples of n and m of one distribution have a PSI of (bins - 1)(1/n + 1/m) on
    average (Yurdakul 2018). Three and four times that is taken for chance."""
    n, m = calibration.rows, evaluation.rows
    lines = []
    for one in found:
        if one.outside > OUTSIDE + 3 * 2 / (n + 1):
            lines.append(
                f"{one.outside:.1%} of the values of {one.input!r} in {evaluation.name} lie outside the "
                f"range of {calibration.name} and are clipped; calibrate on rows like those"
            )
        if one.psi > SHIFTED + 4 * 9 * (1 / n + 1 / m):
            what = f"column {one.column} of {one.input!r}" if one.column >= 0 else repr(one.input)
            lines.append(
                f"{what} is distributed otherwise in {evaluation.name} than in {calibration.name} "
                f"(PSI {one.psi:.2f}); ranges may not fit"
            )
    return tuple(lines)


def overlap(calibration: Stored, evaluation: Stored) -> tuple[str, ...]:
    """Rows in both sets: accuracy is then measured on what ranges were learnt from. A few are equal by
    chance: silence, blank pages."""
    known = set(_rows(calibration))
    both = sum(row in known for row in _rows(evaluation))
    if both <= CHANCE * evaluation.rows:
        return ()
    return (
        f"{both} of {evaluation.rows} evaluation rows of {evaluation.name} are calibration rows of "
        f"{calibration.name}, too: what ranges were learnt from is no proof",
    )


def _rows(stored: Stored) -> Iterator[bytes]:
    arrays = [np.ascontiguousarray(array) for _, array in sorted(stored.inputs.items())]
    for row in range(stored.rows):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[row].tobytes())
        yield digest.digest()
