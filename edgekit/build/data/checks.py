"""What makes rows less worth than they look: warnings that go into certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from edgekit.build.data._base import Array, Stored

FEW_ROWS = 32
MAX_CHANNELS = 16


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
        channel = np.take(array, number, axis)
        if np.ptp(channel) == 0:
            yield number, float(channel.flat[0])


def overlap(calibration: Stored, evaluation: Stored) -> tuple[str, ...]:
    """Rows in both sets: accuracy is then measured on what ranges were learnt from."""
    known = set(_rows(calibration))
    both = sum(row in known for row in _rows(evaluation))
    if not both:
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
