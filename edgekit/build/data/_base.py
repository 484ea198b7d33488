"""What every kind of data has in common: where it lies, what is asked of it, and the rows that come out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.bundle.model import TensorSpec
from edgekit.errors import DataError

Array = NDArray[Any]
Truth = Literal["none", "class", "value", "maybe"]
"""What a metric wants: nothing, a class per row, any value per row (or per pair of rows), values if there are
any."""
DEFAULT_LABELS = "labels"
_SPEC = re.compile(r"(?P<path>.+?)(?:\[(?P<start>\d{0,18}):(?P<stop>\d{0,18})\])?")


@dataclass(frozen=True)
class Naming:
    """Which arrays or columns are what."""

    inputs: Mapping[str, str] = field(default_factory=dict)
    """Model input -> array; unnamed inputs are looked up by their own name."""
    labels: str = DEFAULT_LABELS


@dataclass(frozen=True)
class ImageSpec:
    """How a picture becomes a model's input: what `--image` says (`images.parse`)."""

    color: str = ""
    """"RGB", "BGR", "L"; empty: RGB for three channels, L for one."""
    resize: str = "stretch"
    keep: float = 1.0
    layout: str = ""
    """"NCHW", "NHWC"; empty: by the model's shape."""
    raw: bool = False
    """Pixels count from 0 to 255, not from 0 to 1, before mean and std."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What a model and a metric ask of data."""

    specs: tuple[TensorSpec, ...]
    naming: Naming = field(default_factory=Naming)
    truth: Truth = "none"
    image: ImageSpec = field(default_factory=ImageSpec)
    label_names: tuple[str, ...] = ()
    """Classes in the model's order; empty: names are sorted."""


@dataclass(frozen=True)
class Stored:
    """The selected rows as they lie, before preprocessing."""

    name: str
    inputs: dict[str, Array]
    """Model input -> (rows, ...)."""
    truth: Array | None = None
    """(rows,) class numbers, numbers or strings."""
    label_names: tuple[str, ...] = ()
    """Class names, where the labels were names; those of `Wanted` first."""
    pictures: bool = False
    """The one input was decoded from pictures: pixels as `Wanted.image` says, UINT8."""

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))


@dataclass(frozen=True)
class Place:
    """`PATH` or `PATH[START:STOP]`."""

    text: str
    path: Path
    rows: slice

    def of(self, count: int) -> range:
        """The selected row numbers. Raises DataError when there are none."""
        chosen = range(count)[self.rows]
        if not chosen:
            raise DataError(f"{self.text}: 0 of {count} rows selected", "at least one is needed")
        return chosen


def parse(text: str) -> Place:
    match = _SPEC.fullmatch(text)
    if match is None:
        raise DataError(f"{text!r} is no path, and no PATH[START:STOP]")
    start, stop = (int(part) if part else None for part in match.group("start", "stop"))
    return Place(text, Path(match["path"]), slice(start, stop))


def truth_of(name: str, values: Array, rows: int, wanted: Wanted) -> tuple[Array, tuple[str, ...]]:
    """Labels as the metric wants them, and the classes' names where labels are names.

    `values` may be more than `rows` rows' worth only where the metric takes any value (pairs of rows).
    """
    if values.dtype.kind not in "biufU":
        raise DataError(f"{name}: labels are {values.dtype}", "store numbers or texts")
    if wanted.truth != "class":
        return values, ()
    if values.ndim == 1 and values.dtype.kind == "U":
        names = wanted.label_names or in_order(values.tolist())
        return classes(name, values.tolist(), names), names
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise DataError(
            f"{name}: labels are {values.dtype} of shape {values.shape}", "store one class number per row"
        )
    if len(values) != rows:
        raise DataError(f"{name}: {len(values)} labels for {rows} rows")
    return values.astype(np.int64), ()


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names sorted; as numbers where all are ("2" before "10")."""
    found = set(names)
    numeric = all(name.isdecimal() and name.isascii() for name in found)
    return tuple(sorted(found, key=lambda name: (int(name), name) if numeric else (0, name)))


def classes(name: str, labels: Sequence[str], names: Sequence[str]) -> NDArray[np.int64]:
    """Class numbers of label names. Raises DataError naming the first row with an unknown one."""
    numbers = {label: i for i, label in enumerate(names)}
    for row, label in enumerate(labels):
        if label not in numbers:
            raise DataError(
                f"{name}: row {row} has the label {label!r}, the classes are {', '.join(names)[:200]}",
                "name every class with --label-names, in the model's order",
            )
    return np.array([numbers[label] for label in labels], np.int64)
