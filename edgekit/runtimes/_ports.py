"""What an engine says about its inputs, and the one check that every engine makes before it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtimes._base import DTYPE_NAMES, Array


@dataclass(frozen=True)
class Port:
    """An input or output as the engine declares it; -1 in `shape` is a dimension of any size."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The Open Inference Protocol name of `dtype` ("FP32"), or NumPy's own where it has none."""
    return DTYPE_NAMES.get(dtype) or str(dtype)


def difference(array: object, dtype: np.dtype[Any], shape: Sequence[int]) -> str:
    """Why `array` does not fit, in a few words; empty when it fits. -1 in `shape` fits any size."""
    if not isinstance(array, np.ndarray):
        return f"expected an array, got {type(array).__name__}"
    if array.dtype != dtype:
        return f"expected data type {dtype_name(dtype)}, got {dtype_name(array.dtype)}"
    fits = len(array.shape) == len(shape)
    for want, have in zip(shape, array.shape, strict=False):
        fits = fits and want in (-1, have)
    return "" if fits else f"expected shape {tuple(shape)}, got {tuple(array.shape)}"


def name_difference(given: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """Which names are missing or unknown, in a few words; empty when they are the same."""
    missing = [name for name in wanted if name not in given]
    unknown = [name for name in given if name not in wanted]
    if missing:
        return f"input {missing[0]!r} is missing"
    return f"unknown input {unknown[0]!r}, the model has {', '.join(wanted)}" if unknown else ""


def check_inputs(engine: str, inputs: Mapping[str, Array], ports: Sequence[Port]) -> None:
    """Raise EngineError unless `inputs` has exactly the ports, with their types and shapes."""
    for port in ports:
        if difference(inputs.get(port.name), port.dtype, port.shape):
            break
    else:
        if len(inputs) == len(ports):
            return
    problem = name_difference(inputs, [port.name for port in ports])
    if problem:
        raise EngineError(f"{engine}: {problem}")
    for port in ports:
        problem = difference(inputs[port.name], port.dtype, port.shape)
        if problem:
            raise EngineError(f"{engine}: input {port.name!r}: {problem}")
