"""Calibration and evaluation data, one file per kind, recognised by content: NumPy archives, class folders of
pictures (also in a tar or ZIP), CSV tables, and rows from Python.

`read` gives rows as they lie, `fit` checks them against the model and preprocesses them once.
"""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.build.data import archive, checks, folder, npz, table
from edgekit.build.data import rows as python_rows
from edgekit.build.data._base import Array, Place
from edgekit.build.data._base import Naming as Naming
from edgekit.build.data._base import Stored as Stored
from edgekit.build.data._base import Truth as Truth
from edgekit.build.data._base import Wanted as Wanted
from edgekit.build.data._base import parse as parse
from edgekit.build.data.checks import drift as drift
from edgekit.build.data.checks import drift_warnings as drift_warnings
from edgekit.build.data.checks import overlap as overlap
from edgekit.build.data.rows import Rows as Rows
from edgekit.build.data.scaling import preprocessing as preprocessing
from edgekit.build.progress import Progress
from edgekit.bundle.model import Preprocessing, TensorSpec
from edgekit.errors import DataError, InputError
from edgekit.runtimes._preprocess import to_engine

Source = str | Rows
"""`PATH`, `PATH[START:STOP]`, or rows from Python."""
KINDS = "an .npz, a folder, tar or ZIP of class folders with pictures, or a CSV table"


@dataclass(frozen=True)
class Data:
    """Rows that fit the model: engine inputs (rows, ...) and, for evaluation, the truth (rows,)."""

    name: str
    inputs: dict[str, Array]
    truth: Array | None
    sha256: str
    """Of the selected rows as stored, names, dtypes and shapes included."""
    warnings: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


def read(source: Source, wanted: Wanted, progress: Progress | None = None) -> Stored:
    """The selected rows of any kind of data. Raises DataError naming file, row and remedy."""
    if isinstance(source, Rows):
        return python_rows.read(source, wanted)
    place = parse(source)
    kind = kind_of(place)
    if kind == "npz":
        return npz.read(place, wanted)
    if kind == "csv":
        return table.read(place, wanted, progress)
    if kind == "folder":
        return folder.read(place, wanted, progress)
    return archive.read(place, wanted, progress, is_zip=kind == "zip")


def kind_of(place: Place) -> str:
    """ "npz", "folder", "tar", "zip" or "csv", by content. Raises DataError for anything else."""
    path = place.path
    try:
        if path.is_dir():
            return "folder"
        if not path.is_file():
            what = "not a file" if path.exists() else "No such file or directory"
            raise DataError(f"cannot read {path}: {what}", "check the path")
        with path.open("rb") as file:
            head = file.read(4096)
        if head.startswith(b"\x93NUMPY"):
            return "npz"
        if head.startswith(b"PK"):
            return "npz" if _holds_arrays(path) else "zip"
        if tarfile.is_tarfile(path):
            return "tar"
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    if head and b"\0" not in head and path.suffix.lower() != ".npz":
        return "csv"
    raise DataError(f"{path}: not a NumPy .npz and no other data", f"give {KINDS}")


def members(place: Place) -> list[tuple[str, str]]:
    """(class, name) of every picture in a folder, tar or ZIP; class "" where there is none.

    Raises DataError."""
    kind = kind_of(place)
    return list(folder.files(place)) if kind == "folder" else archive.members(place, is_zip=kind == "zip")


def _holds_arrays(path: Path) -> bool:
    """A ZIP without a single picture is meant as .npz; its own reader says what is wrong with it."""
    try:
        with zipfile.ZipFile(path) as file:
            return not any(folder.is_picture(Path(name).name) for name in file.namelist())
    except Exception:  # zipfile raises a dozen types; read again, and refused, as .npz
        return True


def fit(
    stored: Stored, specs: Sequence[TensorSpec], preprocessing: Preprocessing, *, calibrates: bool = False
) -> Data:
    """Engine inputs, checked. Raises DataError naming data, input and remedy."""
    try:
        inputs = to_engine(stored.inputs, _open_batch(specs), preprocessing)
    except InputError as exc:
        raise DataError(f"{stored.name}: {exc.message}", exc.hint or "see --affine and --input") from None
    for name, array in inputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise DataError(
                f"{stored.name}: input {name!r} holds NaN or infinite values", "clean the data first"
            )
    warnings = checks.calibration(stored.name, inputs) if calibrates else ()
    truth = None if calibrates else stored.truth
    return Data(stored.name, inputs, truth, _digest(stored.inputs, truth), warnings, stored.label_names)


def _open_batch(specs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [TensorSpec(spec.name, spec.datatype, (-1, *spec.shape[1:])) for spec in specs]


def _digest(stored: Mapping[str, Array], labels: Array | None) -> str:
    digest = hashlib.sha256()
    for name, array in (*sorted(stored.items()), *([("labels", labels)] if labels is not None else [])):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
