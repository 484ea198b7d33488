"""What a request may be turned into: bytes, JSON documents, protocol buffers. Pure, from a random source.

A mutation keeps most of what makes a request valid, so that it comes far before it is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import orjson

_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 63)
_TOKENS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e-400", b"1e39", b"-0", b"0x10", b"01", b"1.", b".5",
    b"+1", b"9" * 40, b"1" + b"0" * 400, b"null", b"true", b"\xff\xfe", b"\xc3(", b"\xed\xa0\x80",
    b"\\ud800", b'"\\ud800"', b"\x00", b"\\u0000", b"{", b"}", b"[", b"]", b'"', b",", b":", b"[[[[[[[[",
    b'{"a":', b"\r\n", b"\n", b" ", b"%00", b"..", b"//", b"\xef\xbb\xbf", b"/*", b"'", b"-",
)  # fmt: skip
_NAMES = (
    "name", "shape", "datatype", "data", "inputs", "outputs", "parameters", "id", "binary_data",
    "binary_data_size", "binary_data_output", "classification", "timeout", "priority", "sequence_id",
    "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset", "instances", "examples",
    "context", "signature_name", "b64", "key", "offset", "byte_size", "ready", "x", "", "__proto__", "body",
    "log_verbose_level", "trace_level",
)  # fmt: skip
_DATATYPES = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64",
    "BYTES", "BF16", "fp32", "", "OBJECT", "FP32\0", "complex64",
)  # fmt: skip


def _nested(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = [made]
    return made


SCALARS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, -129, 1 << 31, 1 << 32, 1 << 53, 1 << 62, -(1 << 63), 1 << 64,
    10**30, 0.5, -0.0, 1e10, 1e19, 1e38, 3.5e38, 1.7e308, -1e308, 5e-324, "", "a", "1", "nan", "\x00",
    "\ud800", "é" * 40, "x" * 300, [], {}, [[]], [None], [1, "a"], [[1], [1, 2]], {"b64": "AA=="},
    {"b64": "?"}, {"b64": 1}, [True], *_DATATYPES, *_NAMES[:12], _nested(8), _nested(40),
)  # fmt: skip


def garble(chance: Random, data: bytes, others: Sequence[bytes] = (), most: int = 3) -> bytes:
    """Bits flipped, bytes changed, left out, repeated or put in, cut off, or another request's spliced in."""
    out = bytearray(data)
    for _ in range(chance.randrange(1, most + 1)):
        size = len(out)
        at = chance.randrange(size + 1)
        if chance.random() < 0.4:
            at = min(at, chance.randrange(64))
        match chance.randrange(10):
            case 0 | 1 if size:
                out[at % size] ^= 1 << chance.randrange(8)
            case 2 if size:
                out[at % size] = chance.choice((0, 0x0A, 0x0D, 0x20, 0x22, 0x2C, 0x7F, 0x80, 0xFF))
            case 3:
                del out[at : at + chance.choice((1, 1, 2, 4, 30, 1000))]
            case 4:
                length = chance.choice((1, 2, 8, 50, 400))
                out[at:at] = out[at : at + length] * chance.choice((1, 1, 2, 5))
            case 5:
                out[at:at] = chance.choice(_TOKENS)
            case 6:
                width = chance.choice((1, 2, 4, 8))
                number = chance.choice(_NUMBERS) + chance.choice((-1, 0, 0, 1))
                out[at : at + width] = (number % (1 << 8 * width)).to_bytes(
                    width, chance.choice(("big", "little"))
                )
            case 7 if others:
                other = chance.choice(others)
                out[at:] = other[chance.randrange(len(other) + 1) :]
            case 8:
                del out[at:]
            case _:
                out[at:at] = chance.randbytes(chance.choice((1, 3, 16, 100)))
    return bytes(out)


# --- JSON


def twist(chance: Random, document: Any) -> Any:
    """`document` with one or two of its values changed, moved, left out or repeated; a copy."""
    for _ in range(chance.choice((1, 1, 2))):
        document = _twist(chance, document, 0)
    return document


def _twist(chance: Random, value: Any, depth: int) -> Any:
    deeper = depth < 12 and isinstance(value, list | dict) and value and chance.random() < 0.8
    if deeper and isinstance(value, dict):
        key = chance.choice(list(value))
        made = dict(value)
        match chance.randrange(10):
            case 0:
                del made[key]
            case 1:
                made[chance.choice(_NAMES)] = made.pop(key)
            case 2:
                made[chance.choice(_NAMES)] = chance.choice(SCALARS)
            case _:
                made[key] = _twist(chance, value[key], depth + 1)
        return made
    if deeper:
        at = chance.randrange(len(value))
        items = list(value)
        match chance.randrange(10):
            case 0:
                del items[at]
            case 1:
                items[at:at] = items[at : at + chance.choice((1, 2, 20))]
            case 2:
                items.insert(at, chance.choice(SCALARS))
            case 3:
                return items[:at]
            case _:
                items[at] = _twist(chance, items[at], depth + 1)
        return items
    return _other(chance, value)


def _other(chance: Random, value: Any) -> Any:
    match chance.randrange(8):
        case 0:
            return [value]
        case 1:
            return {chance.choice(_NAMES): value}
        case 2 if isinstance(value, str):
            return chance.choice((value + "x", value[:-1], value.upper(), chance.choice(_DATATYPES)))
        case 2 | 3 if isinstance(value, int | float):
            return chance.choice((value + 1, -value, float(value), str(value), value * 1e30, value + 0.5))
    return chance.choice(SCALARS)


def dumped(document: Any) -> bytes:
    """As JSON, also where that is not possible: NaN, numbers of any size, half of a surrogate pair."""
    try:
        return orjson.dumps(document)
    except TypeError:
        return json.dumps(document, ensure_ascii=True).encode()


# --- protocol buffers

Parts = list[tuple[int, int, Any]]
"""Field number, wire type, and a number (types 0, 1, 5) or octets (type 2)."""


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def parts(data: bytes) -> Parts | None:
    """A message taken apart; None when it is none."""
    found: Parts = []
    pos, end = 0, len(data)
    while pos < end:
        tag, pos = _varint_at(data, pos)
        number, kind = tag >> 3, tag & 7
        if pos < 0 or not 0 < number < 64:
            return None
        if kind == 0:
            value, pos = _varint_at(data, pos)
            found.append((number, kind, value))
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            found.append((number, kind, int.from_bytes(data[pos : pos + width], "little")))
            pos += width
        elif kind == 2:
            size, pos = _varint_at(data, pos)
            if pos < 0:
                return None
            found.append((number, kind, data[pos : pos + size]))
            pos += size
        else:
            return None
        if not 0 <= pos <= end:
            return None
    return found


def _varint_at(data: bytes, pos: int) -> tuple[int, int]:
    """A number and what follows it; position -1 where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if not 0 <= pos < len(data):
            return 0, -1
        octet = data[pos]
        pos += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, pos
    return 0, -1


def joined(fields: Parts) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += varint(number << 3 | kind)
        if kind == 0:
            out += varint(value)
        elif kind == 2:
            out += varint(len(value)) + value
        else:
            width = 8 if kind == 1 else 4
            out += (value % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(out)


def bend(chance: Random, message: bytes, depth: int = 0) -> bytes:
    """One field of a message changed, left out, repeated, renumbered or of another type; at any depth."""
    fields = parts(message)
    if not fields or depth > 8:
        return garble(chance, message)
    at = chance.randrange(len(fields))
    number, kind, value = fields[at]
    if kind == 2 and value and chance.random() < 0.6:
        fields[at] = (number, kind, bend(chance, value, depth + 1))
        return joined(fields)
    match chance.randrange(11):
        case 0:
            del fields[at]
        case 1:
            fields[at:at] = [fields[at]] * chance.choice((1, 1, 2, 40))
        case 2:
            fields[at] = (chance.choice((1, 2, 3, 4, 5, 7, 15, 16, 1000, (1 << 29) - 1)), kind, value)
        case 3 if kind == 2:
            fields[at] = (number, 0, chance.choice(_NUMBERS))
        case 3:
            fields[at] = (number, 2, chance.randbytes(chance.randrange(12)))
        case 4 | 5 if kind != 2:
            fields[at] = (number, kind, (value + chance.choice((-1, 1, 1 << 31, *_NUMBERS))) % (1 << 64))
        case 4 | 5:
            fields[at] = (number, kind, garble(chance, value))
        case 6:  # a length that lies
            lie = varint(number << 3 | 2) + varint(chance.choice(_NUMBERS))
            return joined(fields[:at]) + lie + joined(fields[at:])
        case 7:  # a field that nobody knows, or a wire type that is none
            strange = varint(chance.choice((90, 500, (1 << 29) - 1)) << 3 | chance.randrange(8))
            return joined(fields[:at]) + strange + chance.randbytes(9) + joined(fields[at:])
        case 8:  # a number that never ends
            return joined(fields[:at]) + varint(number << 3) + b"\xff" * chance.choice((9, 10, 11, 40))
        case 9:
            chance.shuffle(fields)
        case _:
            fields.insert(at, (number, 2, nest(chance.choice((3, 13, 100)))))
    return joined(fields)


def nest(depth: int) -> bytes:
    made = b""
    for _ in range(depth):
        made = b"\x0a" + varint(len(made)) + made
    return made


Mutation = Callable[[Random, bytes], bytes]
