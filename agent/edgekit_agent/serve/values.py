"""JSON values to arrays and back, for protocols whose tensors say no data type: the model's decides. Pure.

Only conversions that keep the value's meaning are made, as in oip.py: integers may stand for floats, nothing
is rounded, wrapped or parsed from text.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit_agent.serve import jsons

TEXT = "BYTES"
"""The Open Inference Protocol's data type for text and bytes; as an array: objects of type `bytes`."""
MAX_RANK = 16
NUMBERS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""JSON's types that may stand for a data type of each of NumPy's kinds."""
_SMALL = 3e4
"""What fits 16 bits, too."""
_NAMES = {
    str: "text", bool: "booleans", int: "integers", float: "decimals", dict: "objects", type(None): "null",
    list: "lists",
}  # fmt: skip


def array(where: str, value: Any, datatype: str) -> Array:
    """Nested lists of values, or a bare value, as an array of `datatype` in the shape of the nesting.

    Text and {"b64": "..."} become BYTES. `where` names the value in errors. Raises InputError.
    """
    shape: list[int] = []
    level: list[Any] = [value]
    kinds: set[type] = {type(value)}
    while kinds == {list}:
        if len(shape) == MAX_RANK:
            raise InputError(f"{where}: lists are nested more than {MAX_RANK} deep")
        lengths = set(map(len, level))
        if len(lengths) > 1:
            raise InputError(f"{where}: lists of one level differ in length ({', '.join(_few(lengths))})")
        shape += lengths
        level = list(chain.from_iterable(level))
        kinds = set(map(type, level))
    return flat(where, level, datatype, kinds).reshape(shape)


def flat(where: str, values: list[Any], datatype: str, kinds: set[type] | None = None) -> Array:
    """A list of values as an array of one dimension. `kinds`: their types, where they are known.

    Raises InputError.
    """
    kinds = set(map(type, values)) if kinds is None else kinds
    if datatype == TEXT:
        result = np.empty(len(values), object)
        result[:] = [_bytes(where, item) for item in values]
        return result
    dtype = DTYPES[datatype]
    if not kinds <= NUMBERS[dtype.kind]:
        found = ", ".join(sorted(_NAMES.get(kind, kind.__name__) for kind in kinds - NUMBERS[dtype.kind]))
        raise InputError(f"{where}: {datatype} wanted, found {found}")
    try:
        return numbers(values, dtype)
    except OverflowError:
        raise InputError(f"{where}: a value is out of range for {datatype}") from None


def numbers(values: list[Any], dtype: np.dtype[Any]) -> Array:
    """Numbers of the kinds that `dtype` takes as an array of one dimension. Raises OverflowError."""
    if dtype.kind == "f":
        return _floats(values, dtype)
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise OverflowError
    return np.array(values, dtype)


def fit(where: str, value: Any, datatype: str, shape: Sequence[int]) -> Array:
    """A bare value or a list as an array of `shape`, in which -1 is a dimension of any size.

    Nested lists that have the shape already keep it. Otherwise the values fill the fixed dimensions and
    the last free one; what other dimensions are free become 1. Raises InputError.
    """
    given = array(where, value, datatype)
    if len(given.shape) == len(shape) and all(
        want in (-1, have) for want, have in zip(shape, given.shape, strict=True)
    ):
        return given
    fixed = math.prod(size for size in shape if size != -1)
    rest, odd = divmod(given.size, fixed) if fixed else (0, given.size)
    free = [place for place, size in enumerate(shape) if size == -1]
    if odd or (not free and rest != 1):
        raise InputError(f"{where}: {given.size} values do not fill the shape {list(shape)}")
    sizes = [1 if size == -1 else size for size in shape]
    if free:
        sizes[free[-1]] = rest
    return given.reshape(sizes)


def raw(where: str, data: bytes, datatype: str, shape: Sequence[int]) -> Array:
    """The little-endian bytes of one or more samples of `shape` (without the batch) as (batch, *shape).

    BYTES: all of `data` is one value. Raises InputError.
    """
    if any(size == -1 for size in shape):
        raise InputError(f"{where}: raw bytes cannot tell the shape {list(shape)}", "send JSON")
    count = math.prod(shape)
    if datatype == TEXT:
        if count != 1:
            raise InputError(f"{where}: raw bytes are one value, {count} are wanted")
        return flat(where, [data], datatype).reshape(1, *shape)
    dtype = DTYPES[datatype]
    size = count * dtype.itemsize
    if not data or not size or len(data) % size:
        raise InputError(f"{where}: {len(data)} bytes are not a whole number of samples of {size} bytes")
    result: Array = np.frombuffer(data, dtype).reshape(-1, *shape)
    if dtype.kind == "b" and result.view(np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is 0 or 1")
    return result


def plain(values: Array, *, binary: bool = False) -> Any:
    """An array as JSON's nested lists, or a bare value, for jsons.dumps.

    Bytes become text, or {"b64": ...} where they are not UTF-8 or `binary` asks for it. Raises NotFinite.
    """
    if values.dtype.kind not in "OSU":
        check_finite(values)
        return jsons.nested(values)
    texts = np.empty(values.size, object)
    texts[:] = [_text(item, binary) for item in values.ravel().tolist()]
    return texts.reshape(values.shape).tolist()


def check_finite(values: Array) -> None:
    """Raise NotFinite where JSON cannot carry a value."""
    if values.dtype.kind == "f" and not jsons.is_finite(values):
        raise NotFinite


class NotFinite(EngineError):
    """An output holds NaN or infinity, which JSON cannot carry."""

    def __init__(self) -> None:
        super().__init__(
            "an output holds NaN or infinity, which JSON cannot carry", "ask for it with binary_data"
        )


class Blame:
    """A context in which NotFinite becomes an InputError where the client sent NaN or infinity itself, or
    numbers so large that no model can be blamed for overflowing.

    As an error of the release it would let a client have that release taken back.
    """

    __slots__ = ("_inputs",)

    def __init__(self, inputs: Mapping[str, Array]) -> None:
        self._inputs = inputs

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: object, trace: object) -> None:
        if isinstance(exc, NotFinite):
            for name, values in self._inputs.items():
                if values.dtype.kind == "f" and not (np.abs(values) < _largest(values.dtype)).all():
                    raise InputError(
                        f"input {name!r} holds NaN or infinity or too large a number, so does the answer",
                        "send finite numbers",
                    ) from None


def _largest(dtype: np.dtype[Any]) -> float:
    """What is above overflows when it is squared; of 16 bits, where that is common, when doubled."""
    most = float(np.finfo(dtype).max)
    return most / 2 if dtype.itemsize < 4 else most**0.5


def _floats(values: list[Any], dtype: np.dtype[Any]) -> Array:
    exact = np.array(values, np.float64)
    if jsons.length(values) < _SMALL:  # as are all of them, and none is NaN
        return exact.astype(dtype)
    with np.errstate(over="ignore"):
        result: Array = exact.astype(dtype)
    if not np.isfinite(result).all():  # 1e999 is infinity to Python
        raise OverflowError
    return result


def _bytes(where: str, item: Any) -> bytes:
    if isinstance(item, bytes):
        return item
    try:
        if isinstance(item, str):
            return item.encode()
        if isinstance(item, dict) and item.keys() == {"b64"} and isinstance(item["b64"], str):
            return base64.b64decode(item["b64"], validate=True)
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InputError(f"{where}: {exc}") from None
    found = _NAMES.get(type(item), type(item).__name__)
    raise InputError(f"{where}: text or {{'b64': ...}} wanted, found {found}")


def _text(item: Any, binary: bool) -> Any:
    data = item.encode() if isinstance(item, str) else bytes(item)
    if not binary:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(data).decode()}


def _few(numbers: set[int]) -> list[str]:
    return [str(number) for number in sorted(numbers)[:4]]
