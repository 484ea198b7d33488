"""What an agent says about its models, and a caller's values as a model takes them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgekit.dtypes import DTYPE_NAMES, DTYPES
from edgekit.errors import DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class Tensor:
    """An input or output; -1 in `shape` is free."""

    name: str
    datatype: str
    """Of the Open Inference Protocol: FP32, INT8, BYTES, ..."""
    shape: tuple[int, ...]
    stored_datatype: str = ""
    """Inputs only: this type is taken too and converted by the agent; empty: no other."""
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    """Further details in the agent's words, such as a picture's layout."""


@dataclass(frozen=True)
class Model:
    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Timing:
    count: int
    ns: int

    @property
    def mean_ms(self) -> float:
        """0 when nothing was counted."""
        return self.ns / self.count / 1e6 if self.count else 0.0


@dataclass(frozen=True)
class Stats:
    """Of one version of a model, since the agent's serving process started."""

    name: str
    version: str
    inferences: int
    """Samples inferred."""
    executions: int
    """Runs of the engine; fewer than `inferences` where requests were batched."""
    success: Timing
    fail: Timing
    queue: Timing
    compute_input: Timing
    compute_infer: Timing
    compute_output: Timing


class Answer(dict[str, Array]):
    """Outputs by name, and who gave them."""

    def __init__(self, outputs: dict[str, Array], model: str, version: str, request_id: str) -> None:
        super().__init__(outputs)
        self.model = model
        self.version = version
        self.request_id = request_id


def as_input(value: ArrayLike, tensor: Tensor) -> tuple[Array, str]:
    """`value` as an array that `tensor` takes, and the name of its data type.

    Only conversions that keep the meaning are made: between floating point types, between integers that
    fit, from integers to floating point. Raises DataError.
    """
    try:
        array: Array = np.asarray(value)
    except ValueError as exc:
        raise DataError(f"input {tensor.name!r}: not an array: {exc}") from None
    if tensor.datatype == "BYTES":
        return _texts(array, tensor), "BYTES"
    found = DTYPE_NAMES.get(array.dtype.newbyteorder("<")) or str(array.dtype)
    if found in (tensor.datatype, tensor.stored_datatype):
        return array, found
    wanted = DTYPES.get(tensor.datatype)
    kinds = array.dtype.kind + wanted.kind if wanted is not None else ""
    if wanted is None or kinds not in ("ff", "ii", "iu", "ui", "uu", "if", "uf"):
        raise DataError(f"input {tensor.name!r} takes {_taken(tensor)}, not {found}")
    if kinds[1] == "f" and kinds[0] != "f" and tensor.stored_datatype:
        raise DataError(
            f"input {tensor.name!r} takes {_taken(tensor)}, and {found} may mean either",
            f"say which: x.astype({DTYPES[tensor.stored_datatype].name!r}) or x.astype({wanted.name!r})",
        )
    if kinds[1] != "f":
        limits = np.iinfo(wanted)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise DataError(f"input {tensor.name!r}: values are out of range for {tensor.datatype}")
        return array.astype(wanted), tensor.datatype
    try:
        with np.errstate(over="raise"):
            return array.astype(wanted), tensor.datatype
    except FloatingPointError:
        raise DataError(f"input {tensor.name!r}: values are out of range for {tensor.datatype}") from None


def _taken(tensor: Tensor) -> str:
    if tensor.stored_datatype:
        return f"{tensor.datatype} (or {tensor.stored_datatype}, as stored)"
    return tensor.datatype


def _texts(array: Array, tensor: Tensor) -> Array:
    if array.dtype.kind in "SU" or (
        array.dtype.kind == "O" and all(isinstance(item, str | bytes) for item in array.ravel())
    ):
        return array.astype(object)
    raise DataError(f"input {tensor.name!r} takes texts (str or bytes), not {array.dtype}")
