"""Inference requests of the Open Inference Protocol over gRPC: messages to arrays, arrays to messages.

Source: triton-inference-server/common protobuf/grpc_service.proto, which extends kserve's.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import oip
from edgekit_agent.serve.core import Prepared, prepare
from edgekit_agent.serve.grpc import oip_messages as m
from edgekit_agent.serve.grpc import status, wire
from edgekit_agent.serve.grpc.framing import Buffer, Compressed
from edgekit_agent.serve.grpc.oip_templates import Template, Templates
from edgekit_agent.serve.grpc.patterns import Octets
from edgekit_agent.serve.grpc.service import Incoming, Reply
from edgekit_agent.serve.grpc.wire import Values
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.shared_memory import Access, Regions

MAX_ITEMS = 4096
"""Inputs, outputs, parameters and raw tensors of a request together."""
_PEEK_BYTES = 64 * 1024
_HEAVY_BYTES = 64 * 1024
_MAX_RANK = 16
_MAX_SIZE = 1 << 40
_SHORT = 120
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class Codec:
    """One infer request. See infer.Codec."""

    __slots__ = (
        "_incoming", "_regions", "_stream", "_template", "_templates", "_values", "heavy", "identity", "name",
        "version",
    )  # fmt: skip

    def __init__(
        self, incoming: Incoming, regions: Regions, templates: Templates, stream: bool = False
    ) -> None:
        """`stream`: the answer is a ModelStreamInferResponse. Raises InputError."""
        self._incoming = incoming
        self._regions = regions
        self._templates = templates
        self._stream = stream
        self._template: Template | None = None
        self._values: Values | None = None
        self.identity = b""
        """The request's id, once that is known."""
        self.heavy = False
        """Whether decoding is worth a thread: raw tensors are taken as they lie, so only the others count."""
        message = incoming.message
        found = templates.find(message) if isinstance(message, Octets) else None
        if found is not None and found[1].isascii():  # of others the parser says whether they are UTF-8
            self._template, self.identity = template, _ = found
            self.name, self.version = template.name, template.version
        elif isinstance(message, Compressed):
            self.name, self.version = _peek(message.head(_PEEK_BYTES))
            self.heavy = True
        else:
            values = self._take(message)
            self.name, self.version = values.get("model_name", ""), values.get("model_version", "")
            typed = sum(len(item.get("contents", b"")) for item in values.get("inputs", ()))
            self.heavy = typed > _HEAVY_BYTES

    def _take(self, message: Buffer) -> Values:
        values = self._values = _envelope(message)
        self.identity = values.get("id", "").encode()
        return values

    def decode(self, model: Model, limits: Limits) -> Prepared:
        incoming, template = self._incoming, self._template
        message = incoming.message
        if template is not None and isinstance(message, Octets):
            request = template.request
            if request.wanted is not None:
                oip.check_wanted(request, model.config.outputs)
            prepared = template.prepare(model, message, limits)
        else:
            values = self._values
            if values is None and isinstance(message, Compressed):
                values = self._take(message.whole(limits.max_body_bytes))
            assert values is not None  # noqa: S101 - it is known from the beginning where it is not compressed
            request = _request(values, Access(self._regions, incoming.peer, limits.max_body_bytes))
            oip.check_wanted(request, model.config.outputs)
            prepared = prepare(model, request.inputs, limits, request)
            if isinstance(message, Octets) and not self.heavy:
                self._templates.learn(message, self.name, self.version, request)
        request.hurry(prepared, incoming.received_ns)
        return prepared

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Reply:
        template = self._template
        if template is None:
            parts = _response(model, prepared.note, self.identity, outputs)
        elif template.raw:
            parts = template.encode(model, self.identity, outputs)
        else:
            parts = _response(model, template.request, self.identity, outputs)
        if self._stream:
            return Reply([wire.begin(2, sum(map(len, parts))), *parts])
        return Reply(parts)

    def refuse(self, code: int, text: str) -> Reply:
        if not self._stream:
            return Reply(code=status.from_http(code), text=text)
        identity = {"id": self.identity.decode()}
        return Reply([wire.encode(m.STREAM_RESPONSE, {"error_message": text, "infer_response": identity})])


def _envelope(message: Buffer) -> Values:
    """All but the typed contents, which wait for decode; tensors stay where they are."""
    large = len(message) > _HEAVY_BYTES and not isinstance(message, memoryview)
    return wire.decode(m.INFER_REQUEST, memoryview(message) if large else message, max_items=MAX_ITEMS)


def _peek(head: bytes) -> tuple[str, str]:
    """Model and version of a request whose beginning this is: every encoder writes them first."""
    found = {1: "", 2: ""}
    pos = 0
    while pos < len(head) and head[pos] in (0x0A, 0x12):
        size, start = wire.number_at(head, pos + 1)
        if start + size > len(head):
            break
        found[head[pos] >> 3] = head[start : start + size].decode("utf-8", "replace")
        pos = start + size
    if not found[1]:
        raise InputError("a compressed request must begin with model_name")
    return found[1], found[2]


def _request(values: Values, memory: Access) -> oip.InferRequest:
    """Raises InputError."""
    items = values.get("inputs", ())
    if not items:
        raise InputError("the request has no inputs")
    raw = values.get("raw_input_contents", ())
    left = iter(raw)
    inputs: dict[str, Array] = {}
    for number, item in enumerate(items):
        name = item.get("name", "")
        if not name or name in inputs:
            raise InputError(f"inputs[{number}]: a name is missing or given twice")
        inputs[name] = _input(name, item, left if len(raw) else None, memory)
    unused = sum(1 for _ in left)
    if unused:
        raise InputError(f"{unused} raw_input_contents more than inputs that want them")
    wanted = tuple(_wanted(item, memory) for item in values.get("outputs", ()))
    if len({item.name for item in wanted}) != len(wanted):
        raise InputError("an output is asked for twice")
    schedule = oip.schedule(_parameters(values, "the request"))
    return oip.InferRequest(values.get("id"), inputs, wanted or None, True, memory, *schedule)


def _input(name: str, item: Values, raw: Iterator[Buffer] | None, memory: Access) -> Array:
    """One input: from shared memory, else the next raw contents (where a request has any), else its own."""
    where = f"input {name[:_SHORT]!r}"
    datatype = item.get("datatype", "")
    shape = item["shape"].tolist() if "shape" in item else []
    if datatype not in DTYPES and datatype != "BYTES":
        known = ", ".join(DTYPES)
        raise InputError(f"{where}: datatype {datatype[:_SHORT]!r} is not supported", f"known: {known}")
    if len(shape) > _MAX_RANK or not all(0 <= size <= _MAX_SIZE for size in shape):
        raise InputError(f"{where}: shape must be up to {_MAX_RANK} sizes")
    span = oip.span_of(_parameters(item, where), where, memory)
    if "contents" in item and (span is not None or raw is not None):
        raise InputError(f"{where}: its data is in contents and elsewhere, too")
    if span is not None:
        return _raw(where, datatype, memory.read(span), shape)
    if raw is None:
        return _typed(where, item.get("contents", b""), datatype, math.prod(shape)).reshape(shape)
    octets = next(raw, None)
    if octets is None:
        raise InputError(f"{where}: there are fewer raw_input_contents than inputs")
    return _raw(where, datatype, octets, shape)


def _raw(where: str, datatype: str, octets: Buffer, shape: list[int]) -> Array:
    count = math.prod(shape)
    if datatype == "BYTES":
        return _strings(where, octets, count).reshape(shape)
    dtype = DTYPES[datatype]
    if len(octets) != count * dtype.itemsize:
        wanted = count * dtype.itemsize
        raise InputError(f"{where}: {len(octets)} bytes, {datatype} of shape {shape} has {wanted}")
    array: Array = np.frombuffer(octets, dtype).reshape(shape)
    if datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is 0 or 1")
    return array if array.flags.aligned else array.copy()


def _typed(where: str, octets: Buffer, datatype: str, count: int) -> Array:
    """Values from InferTensorContents; only as many as the shape says, in the field of the data type."""
    kind = _CONTENTS.get(datatype)
    contents = wire.decode(m.CONTENTS, octets)
    if kind is None or set(contents) - {kind}:
        field = kind or "raw_input_contents"
        raise InputError(
            f"{where}: {datatype} is sent in {field}, not in {', '.join(contents) or 'contents'}"
        )
    values = contents.get(kind, ())
    if len(values) != count:
        raise InputError(f"{where}: the shape wants {count} values, {kind} has {len(values)}")
    if datatype == "BYTES":
        result = np.empty(count, object)
        result[:] = [bytes(value) for value in values]
        return result
    dtype = DTYPES[datatype]
    if not count:
        return np.empty(0, dtype)
    array = np.asarray(values)
    if dtype.itemsize < array.dtype.itemsize:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InputError(f"{where}: a value is out of range for {datatype}")
    return array.astype(dtype, copy=False)


def _strings(where: str, raw: Buffer, count: int) -> Array:
    """BYTES: each value after its length in four little-endian octets."""
    if count * 4 > len(raw):
        raise InputError(f"{where}: {len(raw)} bytes are too few for {count} values")
    result = np.empty(count, object)
    pos = 0
    for index in range(count):
        size = int.from_bytes(raw[pos : pos + 4], "little")
        pos += 4
        if len(raw) - pos < size:
            raise InputError(f"{where}: value {index} is cut short")
        result[index] = bytes(raw[pos : pos + size])
        pos += size
    if pos != len(raw):
        raise InputError(f"{where}: {len(raw) - pos} bytes follow the last value")
    return result


def _wanted(item: Values, memory: Access) -> oip.Wanted:
    name = item.get("name", "")
    where = f"output {name[:_SHORT]!r}"
    if not name:
        raise InputError("an output without a name")
    parameters = _parameters(item, where)
    classes = parameters.get("classification", 0)
    if type(classes) is not int or not 0 <= classes <= _MAX_SIZE:
        raise InputError(f"{where}: classification must be a number of classes")
    span = oip.span_of(parameters, where, memory)
    if span is not None:
        memory.check(span)
    return oip.Wanted(name, True, classes, span)


def _parameters(item: Values, where: str) -> dict[str, Any]:
    """Names to values. Raises InputError for one that is empty."""
    parameters = {}
    for name, value in item.get("parameters", {}).items():
        if not value:
            raise InputError(f"{where}: parameter {name[:_SHORT]!r} has no value")
        parameters[name] = next(iter(value.values()))
    return parameters


def _response(
    model: Model, request: oip.InferRequest, identity: bytes, outputs: dict[str, Array]
) -> list[Buffer]:
    """A ModelInferResponse in pieces: large tensors are sent from where they are."""
    config = model.config
    wanted = request.wanted or tuple(oip.Wanted(spec.name, True) for spec in config.outputs)
    entries: list[Values] = []
    blobs: list[Buffer] = []
    for item in wanted:
        blob: bytes | memoryview
        array = outputs.get(item.name)
        if array is None:
            raise EngineError(f"the engine gave no output {item.name!r}")
        if item.classes:
            labels = config.labels if item.name == config.outputs[0].name else ()
            batched = oip.specs_batched(config.outputs, item.name)
            texts, shape = oip.classify(array, item.classes, labels, batched=batched)
            datatype, blob = "BYTES", b"".join(struct.pack("<I", len(t)) + t for t in map(str.encode, texts))
        else:
            datatype, shape, blob = dtype_name(array.dtype), list(array.shape), oip.raw(array)
        entry: Values = {"name": item.name, "datatype": datatype, "shape": shape}
        if item.span is not None and request.memory is not None:
            request.memory.write(item.span, blob)
            blob = b""  # clients find an output's octets by its place
        blobs.append(blob)
        entries.append(entry)
    head = {
        "model_name": model.name,
        "model_version": model.version,
        "id": identity.decode(),
        "outputs": entries,
    }
    parts: list[Buffer] = [wire.encode(m.INFER_RESPONSE, head)]
    for octets in blobs:
        parts += [wire.begin(6, len(octets)), octets]
    return parts
