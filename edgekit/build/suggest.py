"""What `edgekit init` proposes: which arrays of a data file are what, and which rows are for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.model import TensorSpec
from edgekit.errors import DataError
from edgekit.runtimes._base import DTYPE_NAMES

CALIBRATION_ROWS = 200
USUAL_LABELS = ("labels", "label", "y", "y_test", "targets", "target", "classes")
MODEL_SUFFIXES = (".onnx", ".pt2", ".tflite", ".keras", ".h5", ".pt", ".pth", ".joblib", ".ubj")


@dataclass(frozen=True)
class Guess:
    """Arrays of one `.npz` matched with a model's inputs; empty where nothing fits."""

    rows: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Model input -> array."""
    labels: str = ""
    stored: Mapping[str, str] = field(default_factory=dict)
    """Model input -> data type as stored, where it is not the model's: preprocessing is needed."""


def models(folder: Path) -> list[Path]:
    """Files in the folder that look like models, by name, and SavedModel folders."""
    found = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in MODEL_SUFFIXES and p.is_file()]
    return found + [p.parent for p in sorted(folder.glob("*/saved_model.pb"))]


def arrays(text: str) -> dict[str, NDArray[Any]]:
    """The arrays of `FILE.npz` or `FILE.npz[START:STOP]`; empty for data of another form (a folder, a CSV).

    Raises DataError for a file that is absent or damaged.
    """
    path = Path(text.split("[", 1)[0])
    if not path.exists():
        raise DataError(f"{path}: no such file", "check the path")
    if path.suffix.lower() != ".npz":
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as exc:  # zipfile, zlib and NumPy's own parser raise a dozen types
        raise DataError(f"{path}: not a NumPy .npz: {exc}", "save it with numpy.savez") from None


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
