"""Packed variable-length integers of protocol buffers to arrays, at NumPy's speed."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.runtimes import Array

_SLAB = 1 << 16
_SMALL = 64
_MAX_OCTETS = 10


def count(octets: bytes | bytearray | memoryview) -> int:
    """How many integers there are."""
    return int(np.count_nonzero(np.frombuffer(octets, np.uint8) < 0x80))


def decode(octets: bytes | bytearray | memoryview, dtype: np.dtype[Any]) -> Array:
    """All of them, cut to `dtype` as protobuf does. Raises ValueError: cut short, or too long a number."""
    if len(octets) <= _SMALL:
        return _few(octets, dtype)
    raw = np.frombuffer(octets, np.uint8)
    if raw[-1] >= 0x80:
        raise ValueError("cut short")
    result = np.empty(count(octets), dtype)
    done = start = 0
    while start < len(raw):
        stop = min(start + _SLAB, len(raw))
        while raw[stop - 1] >= 0x80:  # to the end of the number that the slab ends in
            stop += 1
            if stop - start > _SLAB + _MAX_OCTETS:
                raise ValueError("a number of more than ten octets")
        values = _slab(raw[start:stop])
        result[done : done + len(values)] = values != 0 if dtype.kind == "b" else values.astype(dtype)
        done += len(values)
        start = stop
    return result


def encode(values: Array) -> bytes:
    """The integers of a one-dimensional array as protobuf packs them; negative ones take ten octets."""
    if values.dtype.kind == "b":
        return values.tobytes()
    return b"".join(_encode_slab(values[start : start + _SLAB]) for start in range(0, len(values), _SLAB))


def _encode_slab(values: Array) -> bytes:
    wide = values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)
    sizes = np.ones(len(wide), np.intp)
    for octet in range(1, _MAX_OCTETS):
        longer = wide >> np.uint64(7 * octet) != 0
        if not longer.any():
            break
        sizes += longer
    ends = np.cumsum(sizes)
    out = np.empty(int(ends[-1]), np.uint8)
    starts = ends - sizes
    for octet in range(int(sizes.max())):
        there = sizes > octet
        part = (wide[there] >> np.uint64(7 * octet)).astype(np.uint8) & 0x7F
        more = (sizes[there] > octet + 1).astype(np.uint8) << 7
        out[starts[there] + octet] = part | more
    return out.tobytes()


def _slab(raw: Array) -> Array:
    """Whole numbers, as uint64."""
    ends = np.flatnonzero(raw < 0x80)
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    sizes = ends - starts + 1
    longest = int(sizes.max())
    if longest > _MAX_OCTETS:
        raise ValueError("a number of more than ten octets")
    values = (raw[starts] & 0x7F).astype(np.uint64)
    for octet in range(1, longest):
        longer = np.flatnonzero(sizes > octet)
        part = (raw[starts[longer] + octet] & 0x7F).astype(np.uint64)
        values[longer] |= part << np.uint64(7 * octet)
    return values


def _few(octets: bytes | bytearray | memoryview, dtype: np.dtype[Any]) -> Array:
    """The same without NumPy's fixed costs."""
    values: list[int] = []
    value = shift = 0
    for octet in octets:
        value |= (octet & 0x7F) << shift
        shift += 7
        if octet < 0x80:
            values.append(value & 0xFFFF_FFFF_FFFF_FFFF)
            value = shift = 0
        elif shift >= 7 * _MAX_OCTETS:
            raise ValueError("a number of more than ten octets")
    if shift:
        raise ValueError("cut short")
    wide = np.array(values, np.uint64)
    return wide != 0 if dtype.kind == "b" else wide.astype(dtype)
