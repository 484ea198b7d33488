"""Tensors to tensors, classes or lists of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtimes._base import Array

DIGITS = 6
"""Decimal places of a score in an answer."""


def mean_pool(value: Array, mask: Array | None) -> Array:
    """(tokens, width) to (width): sum of m[t] x[t] over sum of m[t]. Raises EngineError for other shapes."""
    if value.ndim != 2 or (mask is not None and mask.shape != value.shape[:1]):
        raise EngineError(f"mean-pool: the output has shape {list(value.shape)}, not (tokens, width)")
    if mask is None:
        return np.asarray(value.astype(np.float64).mean(axis=0))
    weight = mask.astype(np.float64)
    return np.asarray(weight @ value.astype(np.float64) / max(float(weight.sum()), 1e-9))


def l2_normalise(value: Array) -> Array:
    """x / max(|x|, 1e-12) along the last dimension."""
    real = value.astype(np.float64)
    return np.asarray(real / np.maximum(np.linalg.norm(real, axis=-1, keepdims=True), 1e-12))


def softmax(value: Array) -> Array:
    """exp(x - max x) / sum exp(x - max x) along the last dimension."""
    real = value.astype(np.float64)
    powers = np.exp(real - real.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def top(value: Array, count: int, labels: Sequence[str]) -> dict[str, Any]:
    """{"label", "index", "score"} of the best; with `count` above 1 also "top", the best so many."""
    scores = finite(value).reshape(-1)
    order = np.argsort(-scores, kind="stable")[:count]
    best = [_class(int(index), float(scores[index]), labels) for index in order]
    return best[0] if count == 1 else {**best[0], "top": best}


def _class(index: int, score: float, labels: Sequence[str]) -> dict[str, Any]:
    return {**named(index, labels), "index": index, "score": round(score, DIGITS)}


def named(index: int, labels: Sequence[str]) -> dict[str, str]:
    """{"label": ...} where the class has a name."""
    return {"label": labels[index]} if index < len(labels) else {}


def values(value: Array) -> dict[str, Any]:
    """{"values": nested lists, "shape"}."""
    real = finite(value)
    return {"values": real.astype(np.float32).tolist(), "shape": list(value.shape)}


def finite(value: Array) -> Array:
    """As float64. Raises EngineError where JSON could not carry it, or nothing is there."""
    real = value.astype(np.float64)
    if not real.size or not np.isfinite(real).all():
        raise EngineError("an output is empty or holds NaN or infinity", "ask for the tensors themselves")
    return real
