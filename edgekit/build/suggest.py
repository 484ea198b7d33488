"""What `edgekit init` proposes: which arrays or columns of the data are what, and which rows are for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.build import data
from edgekit.build.data import npz, table
from edgekit.bundle.model import TensorSpec
from edgekit.runtimes._base import DTYPE_NAMES

CALIBRATION_ROWS = 200
USUAL_LABELS = ("labels", "label", "y", "y_test", "targets", "target", "classes")
MODEL_SUFFIXES = (".onnx", ".pt2", ".tflite", ".keras", ".h5", ".pt", ".pth", ".joblib", ".ubj")


@dataclass(frozen=True)
class Guess:
    """What data hold, matched with a model's inputs; empty where nothing fits."""

    rows: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Model input -> array."""
    labels: str = ""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Model input -> data type as stored, where it is not the model's: preprocessing is needed."""
    pictures: bool = False
    """Rows are pictures: they have a size, an order of channels and a scale to choose."""


def models(folder: Path) -> list[Path]:
    """Files in the folder that look like models, by name, and SavedModel folders."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in MODEL_SUFFIXES and p.is_file()]
    return found + [p.parent for p in sorted(folder.glob("*/saved_model.pb"))]


def look(text: str, specs: Sequence[TensorSpec] = ()) -> Guess:
    """What lies at `PATH` or `PATH[START:STOP]`, of any kind.

    Raises DataError when it is absent or damaged."""
    place = data.parse(text)
    kind = data.kind_of(place)
    if kind == "npz":
        return guess(npz.arrays(place.path), specs)
    if kind != "csv":
        return Guess(len(data.members(place)), pictures=True)
    rows = table.load(place.path)
    if path := table.path_column(rows):
        return Guess(rows.rows, labels=_column(rows, 0, but=path), pictures=True)
    width = prod(specs[0].shape[1:]) if len(specs) == 1 else len(specs)
    return Guess(rows.rows, labels=_column(rows, width))


def _column(rows: table.Table, width: int, but: str = "") -> str:
    """A table's labels: by a usual name, else the last column where it is one too many."""
    columns = [name for name in rows.columns if name != but]
    usual = [name for name in columns if name.lower() in USUAL_LABELS]
    return usual[0] if usual else columns[-1] if len(columns) == width + 1 else ""


def guess(stored: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> Guess:
    """Names first, then shapes. An array feeds an input when every dimension behind the batch fits."""
    rows = _most_common([len(array) for array in stored.values() if array.ndim])
    usable = {name: array for name, array in stored.items() if array.ndim and len(array) == rows}
    inputs: dict[str, str] = {}
    for spec in specs:
        free = {name: array for name, array in usable.items() if name not in inputs.values()}
        fitting = [name for name, array in free.items() if _fits(array, spec)]
        named = [name for name in fitting if name == spec.name]
        if named or fitting:
            inputs[spec.name] = (named or fitting)[0]
    rest = {name: array for name, array in usable.items() if name not in inputs.values()}
    other = {
        spec.name: dtype
        for spec in specs
        if spec.name in inputs and (dtype := _datatype(usable[inputs[spec.name]])) != spec.datatype
    }
    return Guess(rows, inputs, _labels(rest), other)


def split(path: str, rows: int) -> tuple[str, str]:
    """Which rows to calibrate on and which to evaluate on; apart whenever there are at least two."""
    if rows < 2:
        return path, path
    cut = min(CALIBRATION_ROWS, max(1, rows // 4))
    return f"{path}[0:{cut}]", f"{path}[{cut}:{rows}]"


def _fits(array: NDArray[Any], spec: TensorSpec) -> bool:
    shape = array.shape[1:]
    return len(shape) == len(spec.shape) - 1 and all(
        want in (-1, have) for want, have in zip(spec.shape[1:], shape, strict=True)
    )


def _labels(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Class numbers, scores or texts, one per row: by a usual name, else the only array that can be."""
    flat = [name for name, array in arrays.items() if array.ndim == 1 and array.dtype.kind in "iufU"]
    usual = [name for name in USUAL_LABELS if name in flat]
    return usual[0] if usual else flat[0] if len(flat) == 1 else ""


def _datatype(array: NDArray[Any]) -> str:
    return DTYPE_NAMES.get(array.dtype, str(array.dtype))


def _most_common(counts: Sequence[int]) -> int:
    return int(np.bincount(counts).argmax()) if counts else 0
