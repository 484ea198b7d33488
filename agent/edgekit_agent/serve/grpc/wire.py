"""Protocol buffers on the wire: messages described by tables, decoded to dicts and back, bounded.

Only what the services need, and only proto3. Source: protobuf.dev/programming-guides/encoding.
A decoded dict holds what was present; fields that a table does not name are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve.grpc import varints

Buffer = bytes | bytearray | memoryview
Values = dict[str, Any]

MAX_ITEMS = 65536
"""Elements of lists, entries of maps and unknown fields in one message with all that is inside."""
MAX_DEPTH = 12

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT, _DOUBLE = struct.Struct("<f"), struct.Struct("<d")
_SCALARS = {
    "int32": _VARINT,
    "int64": _VARINT,
    "uint32": _VARINT,
    "uint64": _VARINT,
    "enum": _VARINT,
    "bool": _VARINT,
    "float": _FIXED32,
    "double": _FIXED64,
}
_ARRAYS: dict[str, np.dtype[Any]] = {
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "enum": np.dtype("<i4"),
    "bool": np.dtype("?"),
    "float": np.dtype("<f4"),
    "double": np.dtype("<f8"),
}


class WireError(InputError):
    """Not the message that was expected, or larger than allowed."""


@dataclass(frozen=True, slots=True)
class Field:
    """`kind`: a name of proto3's scalar types, or "string", "bytes", "message", "map".

    Repeated numbers become NumPy arrays, other repeated fields lists, maps dicts with text keys.
    `always`: written even when it is the default, as members of a oneof are.
    """

    number: int
    name: str
    kind: str
    repeated: bool = False
    message: Message | None = None
    always: bool = False


class Message:
    """A message type: its name in error messages, and its fields."""

    __slots__ = ("by_tag", "fields", "name")

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = tuple(sorted(fields, key=lambda field: field.number))
        self.by_tag: dict[int, Field] = {}
        for field in fields:
            self.by_tag[field.number << 3 | _SCALARS.get(field.kind, _BYTES)] = field
            if field.repeated and field.kind in _SCALARS:
                self.by_tag[field.number << 3 | _BYTES] = field


def one(number: int, name: str, kind: str = "string", message: Message | None = None) -> Field:
    return Field(number, name, "message" if message else kind, message=message)


def many(number: int, name: str, kind: str = "string", message: Message | None = None) -> Field:
    return Field(number, name, "message" if message else kind, repeated=True, message=message)


def choice(number: int, name: str, kind: str = "string", message: Message | None = None) -> Field:
    """A member of a oneof."""
    return Field(number, name, "message" if message else kind, message=message, always=True)


def table(number: int, name: str, value: Field) -> Field:
    """map<string, T>; `value` is one(2, "value", ...)."""
    return Field(number, name, "map", message=Message(name, one(1, "key"), value))


# --- decoding


class _Left:
    """What one decoding may still make."""

    __slots__ = ("items",)

    def __init__(self, items: int) -> None:
        self.items = items

    def take(self) -> None:
        self.items -= 1
        if self.items < 0:
            raise WireError(f"a message of more than {MAX_ITEMS} elements")


def decode(message: Message, data: Buffer, *, max_items: int = MAX_ITEMS) -> Values:
    """The fields that are there. Raises WireError. Octets stay views of `data` when that is a memoryview."""
    return _decode(message, data, _Left(max_items), MAX_DEPTH)


def number_at(data: Buffer, pos: int) -> tuple[int, int]:
    """A varint and what follows it. Raises WireError."""
    value = shift = 0
    try:
        while shift < 70:
            octet = data[pos]
            pos += 1
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, pos
            shift += 7
    except IndexError:
        raise WireError("the message is cut short") from None
    raise WireError("a number of more than ten octets")


def _decode(message: Message, data: Buffer, left: _Left, depth: int) -> Values:
    if not depth:
        raise WireError(f"a message more than {MAX_DEPTH} deep")
    values: Values = {}
    by_tag = message.by_tag
    pos, end = 0, len(data)
    while pos < end:
        tag = data[pos]
        pos += 1
        if tag >= 0x80:
            tag, pos = number_at(data, pos - 1)
        field = by_tag.get(tag)
        if field is None:
            left.take()
            pos = _skip(message, tag, data, pos)
        elif tag & 7 == _BYTES:
            size, pos = number_at(data, pos)
            if size > end - pos:
                raise WireError(f"{message.name}.{field.name} is cut short")
            _add(message, field, data[pos : pos + size], values, left, depth)
            pos += size
        else:
            value, pos = _scalar(field.kind, data, pos)
            if field.repeated:
                left.take()
                values.setdefault(field.name, []).append(np.array([value], _ARRAYS[field.kind]))
            else:
                values[field.name] = value
    for field in message.fields:
        if field.repeated and field.kind in _SCALARS and field.name in values:
            parts = values[field.name]
            values[field.name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return values


def _add(message: Message, field: Field, octets: Buffer, values: Values, left: _Left, depth: int) -> None:
    """Put a length-delimited field into `values`."""
    kind, name = field.kind, field.name
    value: Any = octets
    if kind == "string":
        try:
            value = str(octets, "utf-8")
        except UnicodeDecodeError:
            raise WireError(f"{message.name}.{name} is not UTF-8") from None
    elif kind == "message" and field.message is not None:
        value = _decode(field.message, octets, left, depth - 1)
    elif kind == "map" and field.message is not None:
        left.take()
        entry = _decode(field.message, octets, left, depth - 1)
        values.setdefault(name, {})[entry.get("key", "")] = entry.get("value")
        return
    elif kind != "bytes":
        left.take()
        values.setdefault(name, []).append(_packed(message, field, octets))
        return
    if field.repeated:
        left.take()
        values.setdefault(name, []).append(value)
    else:
        values[name] = value


def _scalar(kind: str, data: Buffer, pos: int) -> tuple[int | float | bool, int]:
    if kind in ("float", "double"):
        layout = _FLOAT if kind == "float" else _DOUBLE
        if len(data) - pos < layout.size:
            raise WireError("the message is cut short")
        return layout.unpack_from(data, pos)[0], pos + layout.size
    value, pos = number_at(data, pos)
    return _number(kind, value), pos


def _number(kind: str, value: int) -> int | bool:
    """Of 64 bits on the wire, what the type keeps."""
    if kind == "bool":
        return value != 0
    if kind in ("int32", "enum"):
        value &= 0xFFFF_FFFF
        return value - (1 << 32) if value >> 31 else value
    if kind == "int64":
        return value - (1 << 64) if value >> 63 else value
    return value & 0xFFFF_FFFF if kind == "uint32" else value


def _packed(message: Message, field: Field, octets: Buffer) -> Array:
    dtype = _ARRAYS[field.kind]
    if field.kind in ("float", "double"):
        if len(octets) % dtype.itemsize:
            raise WireError(f"{message.name}.{field.name} is cut short")
        return np.frombuffer(octets, dtype)
    try:
        return varints.decode(octets, dtype)
    except ValueError as exc:
        raise WireError(f"{message.name}.{field.name}: {exc}") from None


def _skip(message: Message, tag: int, data: Buffer, pos: int) -> int:
    """Behind a field that is not in the table."""
    kind = tag & 7
    if not 0 < tag >> 3 < 1 << 29:
        raise WireError(f"{message.name} has a field of number {tag >> 3}")
    if kind == _VARINT:
        return number_at(data, pos)[1]
    if kind == _BYTES:
        size, pos = number_at(data, pos)
    elif kind in (_FIXED64, _FIXED32):
        size = 8 if kind == _FIXED64 else 4
    else:
        raise WireError(f"{message.name} has a field of wire type {kind}")
    if size > len(data) - pos:
        raise WireError(f"{message.name} is cut short")
    return pos + size


# --- encoding


def encode(message: Message, values: Mapping[str, Any]) -> bytes:
    """The message; fields of `values` that are defaults are left out, unknown names are a bug."""
    out = bytearray()
    _encode(message, values, out)
    return bytes(out)


def known(message: Message, values: Mapping[str, Any]) -> Values:
    """Of a document in the message's shape, what the message has fields for."""
    found: Values = {}
    for field in message.fields:
        if field.name not in values:
            continue
        value = values[field.name]
        if field.kind == "message" and field.message is not None:
            inner = field.message
            value = [known(inner, item) for item in value] if field.repeated else known(inner, value)
        found[field.name] = value
    return found


def number(value: int) -> bytes:
    """A varint."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def begin(field: int, size: int) -> bytes:
    """What comes before `size` octets of a length-delimited field."""
    return number(field << 3 | _BYTES) + number(size)


def _encode(message: Message, values: Mapping[str, Any], out: bytearray) -> None:
    found = 0
    for field in message.fields:
        if field.name not in values:
            continue
        found += 1
        value = values[field.name]
        if field.kind == "map" and field.message is not None:
            for key, item in value.items():
                _delimited(field.number, encode(field.message, {"key": key, "value": item}), out)
        elif field.repeated and field.kind in _SCALARS:
            if len(value):
                _delimited(field.number, b"".join(_octets(field.kind, item) for item in value), out)
        elif field.repeated:
            for item in value:
                _delimited(field.number, _payload(field, item), out)
        elif field.kind in _SCALARS:
            if value or field.always:
                out += number(field.number << 3 | _SCALARS[field.kind]) + _octets(field.kind, value)
        elif field.kind == "message" or len(value) or field.always:
            _delimited(field.number, _payload(field, value), out)
    if found != len(values):
        raise KeyError(f"{message.name} has no {set(values) - {field.name for field in message.fields}}")


def _payload(field: Field, value: Any) -> Buffer:
    if field.message is not None:
        return encode(field.message, value)
    return value.encode() if field.kind == "string" else value  # type: ignore[no-any-return]


def _octets(kind: str, value: Any) -> bytes:
    if kind == "float":
        return _FLOAT.pack(value)
    return _DOUBLE.pack(value) if kind == "double" else number(int(value))


def _delimited(field: int, octets: Buffer, out: bytearray) -> None:
    out += begin(field, len(octets))
    out += octets


def texts(values: Iterable[bytes | memoryview]) -> list[str]:
    """Octets to text. Raises WireError."""
    try:
        return [str(value, "utf-8") for value in values]
    except UnicodeDecodeError:
        raise WireError("text that is not UTF-8") from None
