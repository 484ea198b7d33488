"""CSV: `path,label` of pictures beside it, or columns of numbers. Separated by commas, semicolons or tabs."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgekit.build.data import images
from edgekit.build.data._base import DEFAULT_LABELS, Array, Naming, Place, Stored, Wanted, truth_of
from edgekit.build.data.folder import content
from edgekit.build.progress import Progress
from edgekit.bundle.model import TensorSpec
from edgekit.errors import DataError
from edgekit.runtimes._base import DTYPES

PATHS = ("path", "file", "filename", "image", "img")
"""Usual headers of a column of paths, in lower case."""
MAX_BYTES = 256 << 20
"""As lists of cells it takes some ten times that."""


@dataclass(frozen=True)
class Table:
    """Cells as text, by column; `first` is the line of the first row, for messages."""

    columns: Mapping[str, list[str]]
    lines: Sequence[int]

    @property
    def rows(self) -> int:
        return len(self.lines)


def read(place: Place, wanted: Wanted, progress: Progress | None = None) -> Stored:
    """Raises DataError naming file, line, column and remedy."""
    table = load(place.path)
    chosen = place.of(table.rows)
    label = label_column(table, wanted.naming)
    paths = path_column(table)
    if paths:
        inputs = {wanted.specs[0].name: _pixels(place, table, paths, wanted, progress)}
    else:
        inputs = _numbers(place, table, [c for c in table.columns if c != label], chosen, wanted)
    truth, names = _truth(place, table, label, chosen, wanted)
    return Stored(place.text, inputs, truth, names, pictures=bool(paths))


def load(path: Path) -> Table:
    """The whole table. Without a header (a first line of numbers, or of a picture's path) columns are "0",
    "1" ..., or "path" and "label"."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size >> 20} MiB of text", "store the rows as .npz")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text", "save it as UTF-8") from None
    except OSError as exc:
        raise DataError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    lines = text.splitlines()
    head = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=head.count)
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    numbers: list[int] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append([cell.strip() for cell in cells])
                numbers.append(reader.line_num)
    except csv.Error as exc:
        raise DataError(f"{path}: line {reader.line_num}: {exc}", "check its quotes") from None
    if not rows:
        raise DataError(f"{path}: no rows in it")
    names = _header(rows[0])
    if names == rows[0]:
        rows, numbers = rows[1:], numbers[1:]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}", "give each its own name")
    for cells, number in zip(rows, numbers, strict=True):
        if len(cells) != len(names):
            raise DataError(f"{path}: line {number} has {len(cells)} cells, the header has {len(names)}")
    return Table({name: [cells[i] for cells in rows] for i, name in enumerate(names)}, numbers)


def _header(first: list[str]) -> list[str]:
    if first[0].lower().endswith(images.SUFFIXES):
        return (["path", "label"] + [str(i) for i in range(2, len(first))])[: len(first)]
    if all(_is_number(cell) for cell in first):
        return [str(i) for i in range(len(first))]
    return first


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def path_column(table: Table) -> str:
    """The column of pictures' paths; empty for a table of numbers."""
    usual = [name for name in table.columns if name.lower() in PATHS]
    return next((n for n in usual if table.columns[n] and not _is_number(table.columns[n][0])), "")


def label_column(table: Table, naming: Naming) -> str:
    """The column with the truth; empty when there is none."""
    asked = (naming.labels, "label") if naming.labels == DEFAULT_LABELS else (naming.labels,)
    return next((name for name in asked if name in table.columns), "")


def _pixels(place: Place, table: Table, column: str, wanted: Wanted, progress: Progress | None) -> Array:
    """Pictures lie beside the table or below it, also when links are followed."""
    root = place.path.parent.resolve()
    names = [
        f"{place.path}: line {line}: {name}"
        for line, name in zip(table.lines, table.columns[column], strict=True)
    ]

    def read_one(i: int) -> bytes:
        try:
            file = (root / table.columns[column][i]).resolve()
        except (OSError, ValueError, RuntimeError):
            raise DataError(f"{names[i]}: not a path") from None
        if not file.is_relative_to(root):
            raise DataError(f"{names[i]}: outside the table's folder", f"put it below {root}")
        try:
            return content(file)
        except DataError as exc:
            raise DataError(f"{names[i]}: {exc.message}", exc.hint) from None

    return images.pixels(place, images.Pictures(names, read_one), wanted, progress)


def _numbers(
    place: Place, table: Table, columns: Sequence[str], chosen: range, wanted: Wanted
) -> dict[str, Array]:
    """Each input takes the column of its name; a lone input takes all columns that are not the labels."""
    specs, naming = wanted.specs, wanted.naming
    if len(specs) == 1 and naming.inputs.get(specs[0].name, specs[0].name) not in columns:
        (spec,) = specs
        size = math.prod(spec.shape[1:])
        if len(columns) != size:
            raise DataError(
                f"{place.text}: {len(columns)} columns of numbers for the {size} values of input "
                f"{spec.name!r}: {', '.join(columns)[:200]}",
                "is one of them the label? name it with --labels",
            )
        return {spec.name: _block(place, table, columns, chosen, spec)}
    found = {}
    for spec in specs:
        column = naming.inputs.get(spec.name, spec.name)
        if column not in columns:
            raise DataError(
                f"{place.text}: nothing for input {spec.name!r} (column {column!r}); it has "
                f"{', '.join(table.columns)[:200]}",
                "name columns with --input INPUT=COLUMN; inputs of several values need .npz",
            )
        found[spec.name] = _block(place, table, [column], chosen, spec)
    return found


def _block(place: Place, table: Table, columns: Sequence[str], chosen: range, spec: TensorSpec) -> Array:
    """(rows, ...) in the input's own data type."""
    dtype = DTYPES[spec.datatype]
    values = np.empty((len(chosen), len(columns)), np.float64)
    for i, column in enumerate(columns):
        cells = table.columns[column]
        for row, number in enumerate(chosen):
            values[row, i] = _number(place, table, column, number, cells[number], whole=dtype.kind not in "f")
    with np.errstate(over="ignore"):
        block = values.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(block, values):
        raise DataError(f"{place.text}: numbers for input {spec.name!r} do not fit {spec.datatype}")
    return block.reshape(len(chosen), *(abs(size) for size in spec.shape[1:]))


def _number(place: Place, table: Table, column: str, row: int, cell: str, *, whole: bool) -> float:
    try:
        value = float(cell)
    except ValueError:
        what = "is empty" if not cell else f"{cell[:40]!r} is not a number"
        raise DataError(
            f"{place.path}: line {table.lines[row]}, column {column!r} {what}",
            "inputs are numbers; encode text and fill gaps first, as for training",
        ) from None
    if whole and not value.is_integer():
        raise DataError(f"{place.path}: line {table.lines[row]}, column {column!r}: {cell} is not whole")
    return value


def _truth(
    place: Place, table: Table, label: str, chosen: range, wanted: Wanted
) -> tuple[Array | None, tuple[str, ...]]:
    if wanted.truth == "none" or (wanted.truth == "maybe" and not label):
        return None, ()
    if not label:
        hint = f"it has {', '.join(table.columns)[:200]}; name the column with --labels"
        raise DataError(f"{place.text}: no labels (column {wanted.naming.labels!r})", hint)
    cells = table.columns[label]
    values = _typed(cells)
    if values.dtype.kind == "U":
        # Classes are those of the whole table, so that a slice does not renumber them.
        everything, names = truth_of(place.text, values, table.rows, wanted)
        return everything[place.rows], names
    return truth_of(place.text, values[place.rows], len(chosen), wanted)


def _typed(cells: Sequence[str]) -> NDArray[np.int64] | NDArray[np.float64] | NDArray[np.str_]:
    """Whole numbers, numbers, or text: the first that every cell is."""
    if all(cell.lstrip("+-").isdecimal() and cell.isascii() and len(cell) < 18 for cell in cells):
        return np.array([int(cell) for cell in cells], np.int64)
    if all(_is_number(cell) for cell in cells):
        return np.array([float(cell) for cell in cells], np.float64)
    return np.array(cells, np.str_)
