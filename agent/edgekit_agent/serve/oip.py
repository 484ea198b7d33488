"""Open Inference Protocol v2, REST: request bytes to arrays, arrays to response bytes. No IO, no state.

With Triton's extensions: binary tensor data (the JSON is `Inference-Header-Content-Length` bytes long,
raw little-endian tensors follow in the order of the JSON) and classification.
Specification: kserve/open-inference-protocol; triton-inference-server/server docs/protocol.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import jsons
from edgekit_agent.serve.http_tools import json_object
from edgekit_agent.serve.infer import Prepared
from edgekit_agent.serve.message import BINARY, JSON, Response
from edgekit_agent.serve.shared_memory import Access, Span
from edgekit_agent.serve.values import NUMBERS, NotFinite, numbers

NORMAL_PRIORITY = 5
"""What a request without a priority has; 1 is the most urgent, 9 the least."""
_MAX_TIMEOUT_US = 1 << 53
_LARGE_BYTES = 64 * 1024
"""Binary tensors from this size on are sent from where they are, smaller ones are copied together."""
_MAX_RANK = 16
_MAX_SIZE = 1 << 40
_LITTLE = sys.byteorder == "little"
_SHORT = 120  # longest client text that an error message repeats


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that the client asks for."""

    name: str
    binary: bool = False
    classes: int = 0
    """Classification extension: the best so many classes as "score:index:label"; 0: the tensor itself."""
    span: Span | None = None
    """Where in shared memory it goes, as binary data."""


@dataclass(frozen=True, slots=True)
class InferRequest:
    id: str | None
    inputs: dict[str, Array]
    wanted: tuple[Wanted, ...] | None
    """None: every output, as JSON or binary according to `binary_default`."""
    binary_default: bool
    memory: Access | None = None
    """What inputs came from and outputs go to, where a request names shared memory."""
    timeout_us: int = 0
    """Microseconds that the client gives the whole request; 0: any."""
    priority: int = 0
    """Triton's: 1 is the most urgent, 0 means NORMAL_PRIORITY."""

    def hurry(self, prepared: Prepared, received_ns: int) -> None:
        """Its timeout, which counts from `received_ns`, and its priority, where it has them."""
        if self.priority:  # of a prepared request 0 is normal, and higher comes first
            prepared.priority = NORMAL_PRIORITY - self.priority
        if self.timeout_us:
            prepared.deadline_ns = received_ns + self.timeout_us * 1000


def decode(body: bytes | bytearray, json_size: int | None, memory: Access | None = None) -> InferRequest:
    """Parse an infer request; `json_size` is the Inference-Header-Content-Length, None when absent.

    `memory`: the client's regions; None where there are none. Arrays are read-only views of `body` where the
    tensor came in binary. Raises InputError.
    """
    if json_size is not None and not 0 < json_size <= len(body):
        raise InputError(
            f"Inference-Header-Content-Length {json_size} does not fit a body of {len(body)} bytes"
        )
    document = json_object(body if json_size is None else body[:json_size])
    offset = len(body) if json_size is None else json_size
    inputs: dict[str, Array] = {}
    for number, item in enumerate(_objects(document, "inputs")):
        name = _text(item, "name", f"inputs[{number}]")
        if name in inputs:
            raise InputError(f"input {name!r} is given twice")
        inputs[name], offset = _tensor(name, item, body, offset, memory)
    if not inputs:
        raise InputError("the request has no inputs", "send {'inputs': [{name, datatype, shape, data}]}")
    if offset != len(body):
        raise InputError(f"{len(body) - offset} bytes follow the last binary tensor")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise InputError("id must be a string")
    parameters = _parameters(document, "the request")
    binary = parameters.get("binary_data_output", False) is True
    wanted = tuple(_wanted(item, binary, memory) for item in _objects(document, "outputs"))
    if len({item.name for item in wanted}) != len(wanted):
        raise InputError("an output is asked for twice")
    return InferRequest(request_id, inputs, wanted or None, binary, memory, *schedule(parameters))


def encode(
    model: str,
    version: str,
    request: InferRequest,
    specs: Sequence[TensorSpec],
    outputs: Mapping[str, Array],
    labels: Sequence[str],
) -> Response:
    """The answer. Raises InputError for an unknown output, EngineError for what JSON cannot carry."""
    wanted = request.wanted or tuple(Wanted(spec.name, request.binary_default) for spec in specs)
    entries: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for item in wanted:
        array = outputs.get(item.name)
        if array is None:
            raise EngineError(f"the engine gave no output {item.name!r}")
        entry: dict[str, Any] = {"name": item.name}
        if item.classes:
            names = labels if item.name == specs[0].name else ()
            texts, shape = classify(array, item.classes, names, batched=specs_batched(specs, item.name))
            entry |= {"datatype": "BYTES", "shape": shape}
            data: Any = texts
            blob: bytes | memoryview = (
                b"".join(struct.pack("<I", len(t)) + t for t in map(str.encode, texts))
                if item.binary
                else b""
            )
        else:
            entry |= {"datatype": dtype_name(array.dtype), "shape": list(array.shape)}
            data = None if item.binary else _numbers(array)
            blob = raw(array) if item.binary else b""
        if item.span is not None and request.memory is not None:
            # Without parameters, as Triton: its C++ client takes any for those of octets in the body.
            request.memory.write(item.span, blob)
        elif item.binary:
            entry["parameters"] = {"binary_data_size": len(blob)}
            blobs.append(blob)
        else:
            entry["data"] = data
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    try:
        text = jsons.dumps(document)
    except ValueError:
        raise NotFinite from None
    if not any(item.binary and item.span is None for item in wanted):
        return Response(200, text, JSON)
    if sum(map(len, blobs)) < _LARGE_BYTES:
        return Response(200, b"".join((text, *blobs)), BINARY, json_size=len(text))
    return Response(200, text, BINARY, json_size=len(text), tail=tuple(map(memoryview, blobs)))


def schedule(parameters: Mapping[str, Any]) -> tuple[int, int]:
    """Timeout in microseconds and priority of a request's parameters. Raises InputError."""
    timeout, priority = parameters.get("timeout", 0), parameters.get("priority", 0)
    if type(timeout) is not int or not 0 <= timeout <= _MAX_TIMEOUT_US:
        raise InputError("timeout must be a number of microseconds")
    if type(priority) is not int or not 0 <= priority < 2 * NORMAL_PRIORITY:
        raise InputError(f"priority must be a number from 0 to {2 * NORMAL_PRIORITY - 1}")
    return timeout, priority


def check_wanted(request: InferRequest, specs: Sequence[TensorSpec]) -> None:
    """Raise InputError when the client asks for an output that the model does not have."""
    for item in request.wanted or ():
        if not any(spec.name == item.name for spec in specs):
            known = ", ".join(spec.name for spec in specs)
            raise InputError(f"unknown output {item.name[:_SHORT]!r}, the model has {known}")


def specs_batched(specs: Sequence[TensorSpec], name: str) -> bool:
    """Whether the output `name` has a batch dimension in front."""
    return any(spec.name == name and spec.shape[:1] == (-1,) for spec in specs)


def _objects(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = document.get(key, [])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise InputError(f"{key} must be a list of objects")
    return items


def _parameters(item: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict):
        raise InputError(f"parameters of {where} must be an object")
    return parameters


def span_of(parameters: Mapping[str, Any], where: str, memory: Access | None) -> Span | None:
    """The place in shared memory that `parameters` name, if they do. Raises InputError."""
    region, size = parameters.get("shared_memory_region"), parameters.get("shared_memory_byte_size")
    if region is None and size is None:
        return None
    if memory is None:
        raise InputError(
            f"{where}: shared memory is not supported here", "send the tensor as JSON or binary data"
        )
    offset = parameters.get("shared_memory_offset", 0)
    if not isinstance(region, str) or not isinstance(size, int) or not _is_size(size) or not _is_size(offset):
        raise InputError(f"{where}: shared memory needs a region, a byte_size and perhaps an offset")
    return Span(region, offset, size)


def _text(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {key} must be a non-empty string")
    return value


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


def named(name: str) -> str:
    """An input in error messages."""
    return f"input {name[:_SHORT]!r}"


def _tensor(
    name: str, item: dict[str, Any], body: bytes | bytearray, offset: int, memory: Access | None
) -> tuple[Array, int]:
    """One input, and where the next binary tensor begins in `body`."""
    where = named(name)
    datatype = _text(item, "datatype", where)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InputError(
            f"{where}: datatype {datatype[:_SHORT]!r} is not supported", f"known: {', '.join(DTYPES)}"
        )
    shape = item.get("shape")
    if not isinstance(shape, list) or len(shape) > _MAX_RANK or not all(map(_is_size, shape)):
        raise InputError(f"{where}: shape must be a list of up to {_MAX_RANK} sizes")
    parameters = _parameters(item, where)
    size, span = parameters.get("binary_data_size"), span_of(parameters, where, memory)
    if span is not None and memory is not None:
        if size is not None or "data" in item:
            raise InputError(f"{where}: its data is in shared memory and in the request")
        if span.size != math.prod(shape) * dtype.itemsize:
            wanted = math.prod(shape) * dtype.itemsize
            raise InputError(
                f"{where}: shared_memory_byte_size must be {wanted} for {datatype} of shape {shape}"
            )
        return _binary(where, datatype, memory.read(span), dtype, shape, 0), offset
    if size is None:
        if "data" not in item:
            raise InputError(f"{where}: no data and no binary_data_size")
        return from_list(where, item["data"], datatype, dtype, shape), offset
    count = math.prod(shape)
    if not _is_size(size) or size != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise InputError(f"{where}: binary_data_size must be {wanted} for {datatype} of shape {shape}")
    if offset + size > len(body):
        raise InputError(f"{where}: {size} bytes wanted, {len(body) - offset} left in the body")
    return _binary(where, datatype, body, dtype, shape, offset), offset + size


def _binary(
    where: str, datatype: str, data: bytes | bytearray, dtype: np.dtype[Any], shape: list[int], offset: int
) -> Array:
    """Little-endian values from `offset` of `data`, which has enough of them."""
    array: Array = np.frombuffer(data, dtype, math.prod(shape), offset).reshape(shape)
    if datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is 0 or 1")
    return array if array.flags.aligned else array.copy()


def from_list(where: str, data: Any, datatype: str, dtype: np.dtype[Any], shape: list[int]) -> Array:
    """JSON numbers to an array; only conversions that keep the value's meaning. Raises InputError."""
    flat, kinds = _flatten(where, data)
    if len(flat) != math.prod(shape):
        raise InputError(f"{where}: shape {shape} wants {math.prod(shape)} values, data has {len(flat)}")
    if not kinds <= NUMBERS[dtype.kind]:
        raise InputError(f"{where}: data is not {datatype}")
    try:
        return numbers(flat, dtype).reshape(shape)
    except OverflowError:
        raise InputError(f"{where}: data is out of range for {datatype}") from None


def _flatten(where: str, data: Any) -> tuple[list[Any], set[type]]:
    """Row-major values of flat or nested lists, and their types.

    NumPy itself would turn one long string among many short ones into a huge table of text.
    """
    kinds: set[type] = {type(data)}
    if kinds == {list}:
        kinds = set(map(type, data))
        for _ in range(_MAX_RANK):
            if kinds != {list}:
                return data, kinds
            data = list(chain.from_iterable(data))
            kinds = set(map(type, data))
    raise InputError(f"{where}: data must be a list of numbers, nested at most {_MAX_RANK} deep")


def _wanted(item: dict[str, Any], binary_default: bool, memory: Access | None) -> Wanted:
    name = _text(item, "name", "outputs")
    parameters = _parameters(item, f"output {name[:_SHORT]!r}")
    binary = parameters.get("binary_data", binary_default)
    classes = parameters.get("classification", 0)
    if not isinstance(binary, bool):
        raise InputError(f"output {name[:_SHORT]!r}: binary_data must be true or false")
    if not _is_size(classes):
        raise InputError(f"output {name[:_SHORT]!r}: classification must be a number of classes")
    span = span_of(parameters, f"output {name[:_SHORT]!r}", memory)
    if span is not None and memory is not None:
        memory.check(span)
        binary = True
    return Wanted(name, binary, classes, span)


def _numbers(array: Array) -> Any:
    try:
        return jsons.numbers(array)
    except ValueError:
        raise NotFinite from None


def raw(array: Array) -> bytes | memoryview:
    """Little-endian, row-major bytes; a view where the array is large and lies that way already."""
    if not (_LITTLE and array.dtype.isnative):
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.nbytes < _LARGE_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def classify(
    array: Array, count: int, labels: Sequence[str], *, batched: bool
) -> tuple[list[str], list[int]]:
    """The best `count` of each row as "score:index[:label]", and the shape (rows, count) or (count,)."""
    rows = array.reshape(len(array) if batched else 1, -1)
    count = min(count, rows.shape[1])
    texts = []
    for row in rows:
        for index in np.argsort(-row.astype(np.float64), kind="stable")[:count]:
            score = f"{row[index]:f}" if array.dtype.kind == "f" else str(row[index])
            label = f":{labels[index]}" if index < len(labels) else ""
            texts.append(f"{score}:{index}{label}")
    return texts, [len(rows), count] if batched else [count]
