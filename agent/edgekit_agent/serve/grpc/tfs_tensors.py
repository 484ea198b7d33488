"""tensorflow.TensorProto and tensorflow.Example to arrays and back.

Source: tensorflow/core/framework/tensor.proto, core/example/feature.proto.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgekit.bundle.model import TensorSpec
from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import oip
from edgekit_agent.serve.grpc import tfs_messages as m
from edgekit_agent.serve.grpc import varints, wire
from edgekit_agent.serve.grpc.framing import Buffer
from edgekit_agent.serve.grpc.wire import Values

_MAX_RANK = 16
_MAX_SIZE = 1 << 40
_SHORT = 120
_NAMES = {number: name for name, number in m.DATA_TYPES.items()}
_FIELDS = {
    "FP32": ("float_val", 5),
    "FP64": ("double_val", 6),
    "INT32": ("int_val", 7),
    "INT16": ("int_val", 7),
    "INT8": ("int_val", 7),
    "UINT16": ("int_val", 7),
    "UINT8": ("int_val", 7),
    "BYTES": ("string_val", 8),
    "INT64": ("int64_val", 10),
    "BOOL": ("bool_val", 11),
    "FP16": ("half_val", 13),
    "UINT32": ("uint32_val", 16),
    "UINT64": ("uint64_val", 17),
}
AS_THEY_LIE = ("FP32", "FP64", "BOOL")
"""Packed numbers of fixed size, and of 0 and 1, are their memory."""


def decode(name: str, octets: Buffer, max_bytes: int) -> Array:
    """A TensorProto as an array of no more than `max_bytes`. Raises InputError.

    Fewer values than the shape has are filled up with the last one, as tensor.proto says.
    """
    where = f"input {name[:_SHORT]!r}"
    large = len(octets) > 65536 and not isinstance(octets, memoryview)
    values = wire.decode(m.TENSOR, memoryview(octets) if large else octets)
    datatype = _NAMES.get(values.get("dtype", 0), "")
    if not datatype:
        raise InputError(
            f"{where}: data type {values.get('dtype', 0)} is not supported", f"known: {', '.join(_FIELDS)}"
        )
    shape = _shape(where, values.get("tensor_shape", {}))
    count = math.prod(shape)
    itemsize = 16 if datatype == "BYTES" else DTYPES[datatype].itemsize
    if count * itemsize > max_bytes:
        raise InputError(f"{where}: {datatype} of shape {shape} is larger than the {max_bytes} bytes allowed")
    content = values.get("tensor_content", b"")
    if len(content):
        return _content(where, content, datatype, shape)
    field = _FIELDS[datatype][0]
    found = values.get(field, ())
    if len(found) > count or (count and not len(found)):
        raise InputError(f"{where}: shape {shape} wants {count} values, {field} has {len(found)}")
    return _filled(where, found, datatype, count).reshape(shape)


def encode(array: Array) -> list[Buffer]:
    """A TensorProto in pieces, with the values in the field of their type: clients read it directly."""
    datatype = dtype_name(array.dtype)
    shape = {"dim": [{"size": size} for size in array.shape]}
    head = wire.encode(m.TENSOR, {"dtype": m.DATA_TYPES[datatype], "tensor_shape": shape})
    number = _FIELDS[datatype][1]
    if datatype in AS_THEY_LIE:
        octets = oip.raw(array)
    elif datatype == "FP16":
        octets = varints.encode(array.ravel().view(np.uint16))
    else:
        octets = varints.encode(array.ravel())
    return [head, wire.begin(number, len(octets)), octets] if len(octets) else [head]


def nest(field: int, parts: Sequence[Buffer]) -> list[Buffer]:
    """A message in pieces as the field of another."""
    return [wire.begin(field, sum(map(len, parts))), *parts]


def examples(octets: Buffer, specs: Sequence[TensorSpec], most: int) -> dict[str, Array]:
    """An Input of up to `most` examples: every input of the model, one row for each. Raises InputError."""
    values = wire.decode(m.INPUT, octets)
    listed = values.get("example_list") or values.get("example_list_with_context") or {}
    items = listed.get("examples", [])
    context = _features(listed.get("context", {}))
    if not 0 < len(items) <= most:
        raise InputError(f"Input is empty or has more than {most} examples")
    rows = [{**context, **_features(item)} for item in items]
    names = {name for row in rows for name in row}
    unknown = names - {spec.name for spec in specs}
    if unknown:
        known = ", ".join(spec.name for spec in specs)
        raise InputError(f"unknown input {min(unknown)[:_SHORT]!r}, the model has {known}")
    return {spec.name: np.concatenate([_feature(row, spec) for row in rows]) for spec in specs}


def _shape(where: str, values: Values) -> list[int]:
    shape = [dim.get("size", 0) for dim in values.get("dim", ())]
    if (
        values.get("unknown_rank")
        or len(shape) > _MAX_RANK
        or not all(0 <= size <= _MAX_SIZE for size in shape)
    ):
        raise InputError(f"{where}: tensor_shape must be up to {_MAX_RANK} sizes")
    return shape


def _content(where: str, content: Buffer, datatype: str, shape: list[int]) -> Array:
    if datatype == "BYTES":
        raise InputError(f"{where}: text is sent in string_val")
    dtype = DTYPES[datatype]
    if len(content) != math.prod(shape) * dtype.itemsize:
        wanted = math.prod(shape) * dtype.itemsize
        raise InputError(
            f"{where}: tensor_content has {len(content)} bytes, {datatype} of shape {shape} {wanted}"
        )
    array: Array = np.frombuffer(content, dtype).reshape(shape)
    if datatype == "BOOL" and array.view(np.uint8).max() > 1:
        raise InputError(f"{where}: a BOOL is 0 or 1")
    return array if array.flags.aligned else array.copy()


def _filled(where: str, found: Any, datatype: str, count: int) -> Array:
    if datatype == "BYTES":
        texts = np.empty(count, object)
        texts[:] = (
            [bytes(value) for value in found] + [bytes(found[-1])] * (count - len(found)) if count else []
        )
        return texts
    dtype = DTYPES[datatype]
    if not count:
        return np.empty(0, dtype)
    numbers = np.asarray(found)
    if datatype == "FP16":
        numbers = _fit(where, numbers, np.dtype("<u2"), datatype).view(dtype)
    elif dtype.itemsize < numbers.dtype.itemsize:
        numbers = _fit(where, numbers, dtype, datatype)
    if len(numbers) == count:
        return numbers
    result = np.empty(count, dtype)
    result[: len(numbers)], result[len(numbers) :] = numbers, numbers[-1]
    return result


def _fit(where: str, numbers: Array, dtype: np.dtype[Any], datatype: str) -> Array:
    limits = np.iinfo(dtype)
    if numbers.size and (numbers.min() < limits.min or numbers.max() > limits.max):
        raise InputError(f"{where}: a value is out of range for {datatype}")
    return numbers.astype(dtype)


def _features(example: Values) -> dict[str, Values]:
    return {name: feature or {} for name, feature in example.get("features", {}).get("feature", {}).items()}


def _feature(features: Mapping[str, Values], spec: TensorSpec) -> Array:
    """One row of an input: floats from float_list or int64_list, integers and booleans from int64_list."""
    where = f"input {spec.name!r}"
    if spec.shape[:1] != (-1,):
        raise InputError(f"{where} has no batch; use predict")
    if spec.name not in features:
        raise InputError(f"{where} is missing in an example")
    kind = next(iter(features[spec.name]), "")
    found = features[spec.name].get(kind, {}).get("value", ())
    row = _values(where, kind, found, spec.datatype)
    free = [size for size in spec.shape[1:] if size == -1]
    fixed = math.prod(size for size in spec.shape[1:] if size != -1)
    if len(free) > 1 or (not free and len(row) != fixed) or (free and (not fixed or len(row) % fixed)):
        raise InputError(f"{where}: {len(row)} values do not fill a row of shape {list(spec.shape[1:])}")
    return row.reshape((1, *spec.shape[1:]))


def _values(where: str, kind: str, found: Any, datatype: str) -> Array:
    if datatype == "BYTES" and kind == "bytes_list":
        texts = np.empty(len(found), object)
        texts[:] = [bytes(value) for value in found]
        return texts
    dtype = DTYPES.get(datatype)
    numbers = np.asarray(found)
    if dtype is not None and len(numbers):
        if dtype.kind == "f" and kind in ("float_list", "int64_list"):
            return numbers.astype(dtype)
        if dtype.kind in "iu" and kind == "int64_list":
            return _fit(where, numbers, dtype, datatype)
        if dtype.kind == "b" and kind == "int64_list" and 0 <= numbers.min() <= numbers.max() <= 1:
            return numbers.astype(dtype)
    raise InputError(f"{where}: {kind or 'no list'} does not hold {datatype}")
