"""Requests and answers of the Open Inference Protocol v2 with Triton's binary tensors, without any IO.

The JSON comes first, raw little-endian tensors follow in its order. An element of BYTES is its length
(4 bytes, little-endian) and itself. Sources: kserve/open-inference-protocol; triton-inference-server/server
docs/protocol/extension_binary_data.md and extension_shared_memory.md.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.client._model import Answer, Array, Model, Stats, Tensor, Timing
from edgekit.dtypes import DTYPES

_MAX_RANK = 32


class Malformed(Exception):
    """A document that is not what the protocol says; the text tells why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's bytes in a registered shared memory region."""

    region: str
    offset: int
    size: int


def raw(array: Array, datatype: str) -> bytes | memoryview:
    """The tensor's bytes on the wire; of contiguous little-endian arrays without a copy."""
    if datatype == "BYTES":
        parts = [item.encode() if isinstance(item, str) else bytes(item) for item in array.ravel()]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)
    if not array.size:
        return b""
    plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return plain.reshape(-1).view(np.uint8).data


def encode(
    inputs: Mapping[str, tuple[Array, str]],
    blobs: Mapping[str, bytes | memoryview],
    places: Mapping[str, Place],
    outputs: Sequence[str] = (),
    request_id: str = "",
) -> bytes:
    """The JSON of a request. `blobs` follow it in this order, except where `places` say where they are."""
    entries = []
    for name, (array, datatype) in inputs.items():
        place = places.get(name)
        if place is None:
            about: dict[str, Any] = {"binary_data_size": len(blobs[name])}
        else:
            about = {
                "shared_memory_region": place.region,
                "shared_memory_offset": place.offset,
                "shared_memory_byte_size": place.size,
            }
        entries.append({"name": name, "datatype": datatype, "shape": list(array.shape), "parameters": about})
    document: dict[str, Any] = {"inputs": entries, "parameters": {"binary_data_output": True}}
    if request_id:
        document["id"] = request_id
    if outputs:
        document["outputs"] = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    return json.dumps(document, separators=(",", ":")).encode()


def registration(key: str, size: int) -> bytes:
    """The body that makes a memory object known to the agent."""
    return json.dumps({"key": key, "offset": 0, "byte_size": size}).encode()


def offers(text: memoryview, extension: str) -> bool:
    """Whether a server's metadata list the extension."""
    try:
        return extension in parse(text).get("extensions", ())
    except (Malformed, TypeError):
        return False


def decode(body: memoryview, json_size: int | None) -> Answer:
    """The answer to an infer request; arrays are views of `body` where they can be. Raises Malformed."""
    document = parse(body if json_size is None else body[:json_size])
    offset = len(body) if json_size is None else json_size
    outputs: dict[str, Array] = {}
    for item in _list(document, "outputs"):
        name = _text(item, "name")
        if name in outputs:
            raise Malformed(f"output {name!r} twice")
        outputs[name], offset = _output(name, item, body, offset)
    if offset != len(body):
        raise Malformed(f"{len(body) - offset} bytes follow the last tensor")
    words = [str(document.get(key, "")) for key in ("model_name", "model_version", "id")]
    return Answer(outputs, *words)


def error_text(body: memoryview, default: str) -> str:
    """What an error's body says: {"error": "..."}, or its first characters, or `default`."""
    try:
        told = parse(body).get("error")
    except Malformed:
        told = bytes(body[:200]).decode("utf-8", "replace").strip()
    return told[:500] if isinstance(told, str) and told else default


def model(document: dict[str, Any]) -> Model:
    """Model metadata. Raises Malformed."""
    return Model(
        name=_text(document, "name"),
        versions=tuple(str(version) for version in document.get("versions") or ()),
        platform=str(document.get("platform", "")),
        inputs=tuple(_tensor(item) for item in _list(document, "inputs")),
        outputs=tuple(_tensor(item) for item in _list(document, "outputs")),
    )


def stats(document: dict[str, Any]) -> tuple[Stats, ...]:
    """Triton's statistics. Raises Malformed."""
    found = []
    for item in _list(document, "model_stats"):
        times = item.get("inference_stats")
        if not isinstance(times, dict):
            raise Malformed("model_stats without inference_stats")
        names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        timings = [_timing(times.get(name)) for name in names]
        counts = _count(item, "inference_count"), _count(item, "execution_count")
        found.append(Stats(_text(item, "name"), str(item.get("version", "")), *counts, *timings))
    return tuple(found)


def names(text: memoryview) -> list[str]:
    """Of the models in a repository index that are ready (or do not say). Raises Malformed."""
    try:
        items = json.loads(bytes(text))
    except (ValueError, RecursionError):
        items = None
    listed = {"models": items}  # Triton's index is a bare list
    found = [item for item in _list(listed, "models") if item.get("state", "READY") == "READY"]
    return sorted({_text(item, "name") for item in found})


def parse(text: memoryview) -> dict[str, Any]:
    """A JSON object. Raises Malformed."""
    try:
        document = json.loads(bytes(text))
    except (ValueError, RecursionError):
        raise Malformed("it is not JSON") from None
    if not isinstance(document, dict):
        raise Malformed("it is not a JSON object")
    return document


def _tensor(item: dict[str, Any]) -> Tensor:
    parameters = item.get("parameters")
    rest = dict(parameters) if isinstance(parameters, dict) else {}
    stored = rest.get("stored_datatype", "")
    return Tensor(
        name=_text(item, "name"),
        datatype=_text(item, "datatype"),
        shape=_shape(item, least=-1),
        stored_datatype=stored if stored in DTYPES else "",
        parameters=rest,
    )


def _output(name: str, item: dict[str, Any], body: memoryview, offset: int) -> tuple[Array, int]:
    datatype, shape = _text(item, "datatype"), _shape(item, least=0)
    dtype, count = DTYPES.get(datatype), math.prod(shape)
    if dtype is None and datatype != "BYTES":
        raise Malformed(f"output {name!r} is of the unknown data type {datatype!r}")
    parameters = item.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return _from_list(name, item.get("data"), dtype, shape), offset
    if type(size) is not int or not 0 <= size <= len(body) - offset:
        raise Malformed(f"output {name!r} is cut short")
    if dtype is None:
        return _from_bytes(name, body[offset : offset + size], count).reshape(shape), offset + size
    if size != count * dtype.itemsize:
        raise Malformed(f"output {name!r}: {size} bytes for {datatype} of shape {list(shape)}")
    array: Array = np.frombuffer(body, dtype, count, offset).reshape(shape)
    return array if array.flags.aligned else array.copy(), offset + size


def _from_bytes(name: str, data: memoryview, count: int) -> Array:
    if 4 * count > len(data):  # before anything is made of that size
        raise Malformed(f"output {name!r} is cut short")
    items: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(items) < count:
        (size,) = struct.unpack_from("<I", data, at)
        if size > len(data) - at - 4:
            break
        items.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    if at != len(data) or len(items) != count:
        raise Malformed(f"output {name!r}: its texts do not fit its size")
    array: Array = np.empty(count, object)
    array[:] = items
    return array


def _from_list(name: str, data: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Array:
    if not isinstance(data, list):
        raise Malformed(f"output {name!r} has no data")
    try:
        if dtype is not None:
            return np.array(data, dtype).reshape(shape)
        texts = [text.encode() for text in np.array(data, object).ravel()]
        array: Array = np.empty(len(texts), object)
        array[:] = texts
        return array.reshape(shape)
    except (ValueError, TypeError, OverflowError, AttributeError):
        raise Malformed(f"output {name!r}: its data does not fit its type and shape") from None


def _list(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Malformed(f"no list of {key}")
    return items


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise Malformed(f"no {key}")
    return value


def _shape(item: dict[str, Any], *, least: int) -> tuple[int, ...]:
    shape = item.get("shape")
    fits = isinstance(shape, list) and len(shape) <= _MAX_RANK
    if not fits or not all(type(size) is int and least <= size < 1 << 48 for size in shape or ()):
        raise Malformed("no shape")
    return tuple(shape or ())


def _count(item: dict[str, Any], key: str) -> int:
    value = item.get(key, 0)
    if type(value) is not int:
        raise Malformed(f"{key} is not a number")
    return value


def _timing(item: Any) -> Timing:
    item = item if isinstance(item, dict) else {}
    return Timing(_count(item, "count"), _count(item, "ns"))
