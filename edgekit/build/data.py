"""Calibration and evaluation data: rows of an `.npz`, checked against the model, preprocessed once."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.errors import DataError, InputError
from edgekit.runtimes._base import DTYPE_NAMES, DTYPES
from edgekit.runtimes._preprocess import to_engine

FEW_ROWS = 32
_SPEC = re.compile(r"(?P<path>.+?)(?:\[(?P<start>\d{0,18}):(?P<stop>\d{0,18})\])?")


@dataclass(frozen=True)
class Naming:
    """Which arrays of the file are what."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Model input -> array; unnamed inputs are looked up by their own name."""
    labels: str = "labels"


@dataclass(frozen=True)
class Data:
    """Rows that fit the model: engine inputs (rows, ...) and, for evaluation, the truth (rows,)."""

    name: str
    inputs: dict[str, NDArray[Any]]
    truth: NDArray[Any] | None
    sha256: str
    """Of the selected rows as stored, names, dtypes and shapes included."""
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def load(
    text: str,
    specs: Sequence[TensorSpec],
    preprocessing: Preprocessing,
    naming: Naming,
    *,
    need_labels: bool,
) -> Data:
    """Read `FILE.npz` or `FILE.npz[START:STOP]`. Raises DataError naming file, array and remedy."""
    path, rows = _parse(text)
    arrays = _arrays(path)
    names = _match(text, arrays, specs, naming)
    stored = {model: arrays[name][rows] for model, name in names.items()}
    counts = {len(array) for array in stored.values()}
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            f"{text}: {sorted(counts)} rows selected", "every input needs the same rows, at least one"
        )
    try:
        inputs = to_engine(stored, _open_batch(specs), preprocessing)
    except InputError as exc:
        raise DataError(f"{text}: {exc.message}", exc.hint or "see --affine and --input") from None
    _finite(text, inputs)
    labels = _labels(text, arrays, rows, naming, counts.pop()) if need_labels else None
    warnings = () if need_labels else _calibration_warnings(text, inputs)
    return Data(text, inputs, labels, _digest(stored, labels), warnings)


def stored_dtypes(text: str, specs: Sequence[TensorSpec], naming: Naming) -> dict[str, str]:
    """Open Inference Protocol data type of each model input as the file stores it."""
    path, _ = _parse(text)
    arrays = _arrays(path)
    names = _match(text, arrays, specs, naming)
    return {
        model: DTYPE_NAMES.get(arrays[name].dtype, str(arrays[name].dtype)) for model, name in names.items()
    }


def affine(text: str, specs: Sequence[TensorSpec], stored: Mapping[str, str]) -> Affine:
    """`[INPUT:]SCALE,OFFSET` for one input; the stored data type is that of the data."""
    name, _, figures = text.rpartition(":")
    names = [spec.name for spec in specs]
    if not name and len(names) == 1:
        name = names[0]
    if name not in names:
        raise DataError(f"--affine {text!r}: name one of the inputs {names}", "as INPUT:SCALE,OFFSET")
    try:
        scale, offset = (float(part) for part in figures.split(","))
    except ValueError:
        raise DataError(f"--affine {text!r}: needs two numbers", "as [INPUT:]SCALE,OFFSET") from None
    if not (math.isfinite(scale) and math.isfinite(offset)) or scale == 0:
        raise DataError(f"--affine {text!r}: the scale must be finite and not 0, the offset finite")
    if stored[name] not in DTYPES:
        raise DataError(f"--affine {text!r}: the data stores {name!r} as {stored[name]}", "store numbers")
    return Affine(name, stored[name], scale, offset)


def _parse(text: str) -> tuple[Path, slice]:
    match = _SPEC.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is not FILE.npz or FILE.npz[START:STOP]")
    start, stop = (int(part) if part else None for part in match.group("start", "stop"))
    return Path(match["path"]), slice(start, stop)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # NumPy forgets to close what it cannot read
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: one array, not an .npz", "save it with numpy.savez")
            arrays = {name: archive[name] for name in archive.files}
    except DataError:
        raise
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    except Exception as exc:  # zipfile, zlib and NumPy's own parser raise a dozen types
        hint = "save plain arrays with numpy.savez; object arrays (pickle) are never loaded"
        raise DataError(f"{path}: not a NumPy .npz: {str(exc) or type(exc).__name__}", hint) from None
    for name, array in arrays.items():
        # NumPy hands over members that are no arrays as bytes.
        if not isinstance(array, np.ndarray) or array.ndim == 0:
            raise DataError(f"{path}: {name!r} is not an array with rows", "save arrays with numpy.savez")
    return arrays


def _match(
    text: str, arrays: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec], naming: Naming
) -> dict[str, str]:
    """Model input -> array name. A lone input takes the lone array that is not the labels."""
    others = [name for name in arrays if name != naming.labels]
    found = {spec.name: naming.inputs.get(spec.name, spec.name) for spec in specs}
    if len(specs) == 1 and not naming.inputs and specs[0].name not in arrays and len(others) == 1:
        found = {specs[0].name: others[0]}
    missing = [f"{model!r} (array {name!r})" for model, name in found.items() if name not in arrays]
    if missing:
        hint = "name arrays with --input INPUT=ARRAY and --labels ARRAY"
        raise DataError(f"{text}: nothing for input {missing[0]}; it holds {sorted(arrays)}", hint)
    return found


def _open_batch(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:])) for spec in specs]


def _finite(text: str, inputs: Mapping[str, NDArray[Any]]) -> None:
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(f"{text}: input {name!r} holds NaN or infinite values", "clean the data first")


def _labels(
    text: str, arrays: Mapping[str, NDArray[Any]], rows: slice, naming: Naming, count: int
) -> NDArray[np.int64]:
    if naming.labels not in arrays:
        hint = f"it holds {sorted(arrays)}; name the array with --labels"
        raise DataError(f"{text}: no labels (array {naming.labels!r})", hint)
    labels = arrays[naming.labels][rows]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{text}: labels are {labels.dtype} of shape {labels.shape}", "store one class number per row"
        )
    if len(labels) != count:
        raise DataError(f"{text}: {len(labels)} labels for {count} rows")
    return labels.astype(np.int64)


def _calibration_warnings(text: str, inputs: Mapping[str, NDArray[Any]]) -> tuple[str, ...]:
    """What makes ranges worthless. Measured: a keyword spotter calibrated on zeros fell from .91 to .09."""
    found = []
    for name, array in inputs.items():
        if len(array) < FEW_ROWS:
            found.append(f"{text}: {len(array)} calibration rows for {name!r}; {FEW_ROWS} or more are usual")
        if np.ptp(array) == 0:
            found.append(
                f"{text}: every value of {name!r} is {array.flat[0]:g}; ranges learnt from it are wrong"
            )
    return tuple(found)


def _digest(stored: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> str:
    digest = hashlib.sha256()
    for name, array in (*sorted(stored.items()), *([("labels", labels)] if labels is not None else [])):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
