"""Rows from Python: an iterable of arrays, of {input: array}, or of (row, label)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import host
from edgekit.build.data._base import Array, Stored, Wanted, truth_of
from edgekit.bundle.model import TensorSpec
from edgekit.errors import DataError
from edgekit.runtimes._base import DTYPES


@dataclass(frozen=True)
class Rows:
    """An iterable with a name for messages and reports. It is read once."""

    source: Iterable[Any]
    name: str = "rows from Python"

    def __str__(self) -> str:
        return self.name


def read(rows: Rows, wanted: Wanted) -> Stored:
    """Raises DataError naming the row."""
    columns: dict[str, list[Array]] = {spec.name: [] for spec in wanted.specs}
    labels: list[Any] = []
    limit, held = host.read().ram_mib * 2**20 / 4, 0
    for number, item in enumerate(rows.source):
        where = f"{rows.name}: row {number}"
        values, label = item if _is_labelled(item) else (item, None)
        for spec, array in _arrays(where, values, wanted.specs):
            columns[spec.name].append(array)
            held += array.nbytes
        labels.append(label)
        if held > limit:
            raise DataError(f"{where}: {held / 2**20:.0f} MiB so far, too many rows", "give fewer rows")
    if not labels:
        raise DataError(f"{rows.name}: no rows in it")
    inputs = {name: _stacked(rows.name, name, arrays) for name, arrays in columns.items()}
    truth, names = _truth(rows.name, labels, wanted)
    return Stored(rows.name, inputs, truth, names)


def _is_labelled(item: Any) -> bool:
    """(row, label); two numbers alone are a row of two values."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping | np.ndarray | list)


def _arrays(where: str, values: Any, specs: tuple[TensorSpec, ...]) -> Iterable[tuple[TensorSpec, Array]]:
    if not isinstance(values, Mapping):
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise DataError(f"{where}: one array for the inputs {names}", "give {input: array} per row")
        values = {specs[0].name: values}
    for spec in specs:
        if spec.name not in values:
            raise DataError(f"{where}: nothing for input {spec.name!r}", f"it has {sorted(map(str, values))}")
        yield spec, _array(where, values[spec.name], spec)


def _array(where: str, value: Any, spec: TensorSpec) -> Array:
    """One row without its batch; plain Python numbers take the input's data type, arrays keep theirs."""
    plain = isinstance(value, list | tuple | int | float | bool)
    try:
        array = np.asarray(value, DTYPES[spec.datatype] if plain else None)
    except (ValueError, TypeError, OverflowError) as exc:
        raise DataError(f"{where}: no array for input {spec.name!r}: {exc}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where}: input {spec.name!r} is {array.dtype}, not numbers")
    return array[0] if array.ndim == len(spec.shape) and array.shape[:1] == (1,) else array


def _stacked(rows: str, name: str, arrays: list[Array]) -> Array:
    first = arrays[0]
    for number, array in enumerate(arrays):
        if (array.shape, array.dtype) != (first.shape, first.dtype):
            raise DataError(
                f"{rows}: row {number} of input {name!r} is {array.dtype}{list(array.shape)}, row 0 is "
                f"{first.dtype}{list(first.shape)}",
                "give every row the same shape and data type",
            )
    return np.stack(arrays)


def _truth(name: str, labels: list[Any], wanted: Wanted) -> tuple[Array | None, tuple[str, ...]]:
    missing = next((i for i, label in enumerate(labels) if label is None), None)
    if wanted.truth == "none" or (wanted.truth == "maybe" and missing is not None):
        return None, ()
    if missing is not None:
        raise DataError(f"{name}: row {missing} has no label", "give (row, label) for each")
    try:
        values = np.asarray(labels)
    except ValueError as exc:
        raise DataError(f"{name}: labels differ in shape: {exc}") from None
    return truth_of(name, values, len(labels), wanted)
