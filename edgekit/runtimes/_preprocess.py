"""From what a client sends to what an engine wants: checks, and the affine scale of a variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.errors import InputError
from edgekit.runtimes._base import DTYPES, Array
from edgekit.runtimes._ports import difference, dtype_name, name_difference


def to_engine(
    inputs: Mapping[str, Array], specs: Sequence[TensorSpec], preprocessing: Preprocessing
) -> dict[str, Array]:
    """Inputs in the engine's data types, in the order of `specs`.

    An array that already has its engine data type passes untouched; one of the data type that the
    variant's `Affine` declares is converted. Raises InputError naming the input.
    """
    problem = name_difference(inputs, [spec.name for spec in specs])
    if problem:
        raise InputError(problem)
    affine = {step.input: step for step in preprocessing.affine}
    result = {spec.name: _convert(inputs[spec.name], spec, affine.get(spec.name)) for spec in specs}
    batches = {name: len(result[name]) for name in _batched(specs)}
    if len(set(batches.values())) > 1:
        sizes = ", ".join(f"{name!r} has {size}" for name, size in batches.items())
        raise InputError(f"inputs differ in batch size: {sizes}")
    return result


def apply(step: Affine, stored: Array, datatype: str = "FP32") -> Array:
    """real = (stored - offset) * scale, computed in float32. Any shape in, the same shape out.

    Raises InputError when a scale per channel meets an array with another number of channels.
    """
    real = stored.astype(np.float32)
    real -= _along(step, step.offset, step.offsets, stored.shape)
    real *= _along(step, step.scale, step.scales, stored.shape)
    return real.astype(DTYPES[datatype], copy=False)


def _along(step: Affine, one: float, each: Sequence[float], shape: Sequence[int]) -> Array:
    """The figure for every element: a scalar, or one per channel, shaped to broadcast."""
    if not step.axis:
        return np.asarray(one, np.float32)
    if not 0 < step.axis < len(shape) or shape[step.axis] != len(each):
        raise InputError(
            f"input {step.input!r}: {len(each)} channels to scale in dimension {step.axis} of {list(shape)}"
        )
    return np.array(each, np.float32).reshape(-1, *(1,) * (len(shape) - 1 - step.axis))


def _convert(array: Array, spec: TensorSpec, step: Affine | None) -> Array:
    stored = step is not None and step.datatype != spec.datatype and _has(array, step.datatype)
    wanted = step.datatype if step is not None and stored else spec.datatype
    problem = difference(array, DTYPES[wanted], spec.shape)
    if problem:
        also = f" or {step.datatype}" if step is not None and not _has(array, spec.datatype) else ""
        raise InputError(f"input {spec.name!r}: {problem}", _hint(spec, also))
    return apply(step, array, spec.datatype) if step is not None and stored else array


def _has(array: object, datatype: str) -> bool:
    return isinstance(array, np.ndarray) and dtype_name(array.dtype) == datatype


def _hint(spec: TensorSpec, also: str) -> str:
    shape = ", ".join("batch" if size == -1 else str(size) for size in spec.shape)
    return f"send {spec.datatype}{also} of shape ({shape})"


def _batched(specs: Sequence[TensorSpec]) -> list[str]:
    return [spec.name for spec in specs if spec.shape and spec.shape[0] == -1]
