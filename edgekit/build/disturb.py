"""Evaluation rows as a worse day would bring them: noise, other light or loudness, another position.

Pure and seeded: equal rows give equal disturbances. A disturbance is as large as the data are: steps of the
input's own spread, so that it means the same for pixels, spectra and tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Inputs = Mapping[str, Array]

NOISE = 0.1
"""Standard deviation of the noise, in standard deviations of the input."""
BRIGHTNESS = 0.4
"""What is added everywhere, in standard deviations: about a tenth of the range of a photograph."""
GAIN = 1.25
SHIFT = 1 / 16
"""Share of the width, or of the time, that an input moves; its edge is repeated."""
MANY_STEPS = 32
"""A dimension of fewer steps is no time or width to shift in."""
SEED = 20260101


def disturbances(inputs: Inputs) -> dict[str, dict[str, Array]]:
    """Kind -> inputs of the same shapes and data types; empty for token numbers and the like.

    Image-like inputs (rows and three dimensions): noise, brightness, shift. Series and tables (one or two
    dimensions): noise, gain, and a shift where a dimension is long enough to be a time.
    """
    usable = {n: a for n, a in inputs.items() if 2 <= a.ndim <= 4 and _is_signal(a.dtype)}
    if not usable:
        return {}
    images = any(array.ndim == 4 for array in usable.values())
    kinds: dict[str, Callable[[Array], Array]] = {"noise": _noise}
    kinds |= {"brightness": _brightness} if images else {"gain": _gain}
    if any(_moving_axis(array) for array in usable.values()):
        kinds["shift"] = _shift
    return {
        kind: {name: change(array) if name in usable else array for name, array in inputs.items()}
        for kind, change in kinds.items()
    }


def _is_signal(dtype: np.dtype[Any]) -> bool:
    """Floating point, or 8-bit quantised; wider whole numbers are tokens or indices."""
    return dtype.kind == "f" or (dtype.kind in "iu" and dtype.itemsize == 1)


def _noise(array: Array) -> Array:
    real = array.astype(np.float32)
    # The columns of a table differ in their spread.
    spread = real.std(axis=0, keepdims=True) if array.ndim == 2 else real.std()
    noise = np.random.default_rng(SEED).standard_normal(array.shape, np.float32)
    return _within(real + noise * (NOISE * spread), array)


def _brightness(array: Array) -> Array:
    if array.ndim != 4:
        return array
    real = array.astype(np.float32)
    return _within(real + BRIGHTNESS * float(real.std()), array)


def _gain(array: Array) -> Array:
    return _fitting(array.astype(np.float32) * GAIN, array.dtype)


def _shift(array: Array) -> Array:
    axis = _moving_axis(array)
    if not axis:
        return array
    size = array.shape[axis]
    places = np.maximum(np.arange(size) - max(1, round(size * SHIFT)), 0)
    moved: Array = np.take(array, places, axis)
    return moved


def _moving_axis(array: Array) -> int:
    """Along which an input moves: an image's longer side, the longer dimension of a series; 0: none."""
    if array.ndim == 4:
        sides = (2, 3) if array.shape[1] <= array.shape[3] else (1, 2)
        return max(sides, key=lambda axis: array.shape[axis])
    axis = max(range(1, array.ndim), key=lambda axis: array.shape[axis])
    return axis if array.shape[axis] >= MANY_STEPS else 0


def _within(real: Array, like: Array) -> Array:
    """Clipped to the range of `like`: a camera saturates."""
    return _fitting(np.clip(real, like.min(), like.max()), like.dtype)


def _fitting(real: Array, dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return real.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(real), limits.min, limits.max).astype(dtype)


def places(rows: int, count: int) -> NDArray[np.int64]:
    """`count` row numbers spread over all; in pairs, since rows may belong together two by two."""
    pairs = np.unique(np.linspace(0, max(rows // 2 - 1, 0), max(count // 2, 1)).round().astype(np.int64))
    chosen = (pairs[:, None] * 2 + np.arange(2)).ravel()
    return chosen[chosen < rows]
