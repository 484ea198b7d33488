"""JSON, by orjson where it is installed. Both ways take and give the same documents, except that orjson reads
integers beyond 64 bits as floating point numbers, which no data type of ours has room for either way.

What orjson refuses the standard library decides: it takes NaN, lone surrogates and numbers of any size,
and its messages are the ones that clients get everywhere.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from edgekit.runtimes import Array

orjson: Any
try:
    import orjson
except ImportError:  # an optional extra: some boards have no wheel
    orjson = None

_FEW = 4096


def loads(text: bytes | bytearray | memoryview) -> Any:
    """Raises ValueError or RecursionError."""
    if orjson is not None:
        try:
            return orjson.loads(text)
        except ValueError:
            pass
    return json.loads(str(text, "utf-8"))


def dumps(document: Any) -> bytes:
    """Compact JSON; `numbers` may stand in it. Raises ValueError for NaN and infinity."""
    if orjson is not None:
        try:
            return bytes(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))
        except TypeError:  # a client's text with half a character in it
            pass
    return json.dumps(document, separators=(",", ":"), allow_nan=False, default=np.ndarray.tolist).encode()


def numbers(array: Array) -> Any:
    """The values of `array`, flat, for `dumps`. Raises ValueError for NaN and infinity."""
    if orjson is None:
        return array.ravel().tolist()
    flat = np.ascontiguousarray(array).reshape(-1)
    if array.dtype.kind == "f" and not is_finite(flat):
        raise ValueError("not a JSON number")  # orjson would write null
    return flat


def is_finite(array: Array) -> bool:
    """Whether no value is NaN or infinite."""
    if array.size <= _FEW and math.isfinite(length(array.ravel().tolist())):
        return True
    return bool(np.isfinite(array).all())


def length(values: list[Any]) -> float:
    """Of a few numbers as a vector: no number is larger, and it is infinite or NaN where one is. Infinite for
    many. The cheapest look at all of them: NumPy's calls cost five times as much.

    Raises OverflowError for an integer beyond floating point.
    """
    return math.hypot(*values) if len(values) <= _FEW else math.inf


def nested(array: Array) -> Any:
    """The values of `array`, finite ones, for `dumps` in lists as it is shaped."""
    return array.tolist() if orjson is None or array.ndim == 0 else np.ascontiguousarray(array)
