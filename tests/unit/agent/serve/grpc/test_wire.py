"""Protocol buffers against Google's own implementation, with the messages that the services use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor as pb
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2, service_pb2

from edgekit_agent.serve.grpc import oip_messages as m
from edgekit_agent.serve.grpc import varints, wire
from edgekit_agent.serve.grpc.wire import Message, WireError, many, one

OFFICIAL = {
    m.NAMED: service_pb2.ModelMetadataRequest,
    m.LIVE: service_pb2.ServerLiveResponse,
    m.READY: service_pb2.ServerReadyResponse,
    m.SERVER_METADATA: service_pb2.ServerMetadataResponse,
    m.MODEL_METADATA: service_pb2.ModelMetadataResponse,
    m.INFER_REQUEST: service_pb2.ModelInferRequest,
    m.CONTENTS: service_pb2.InferTensorContents,
    m.INFER_RESPONSE: service_pb2.ModelInferResponse,
    m.STREAM_RESPONSE: service_pb2.ModelStreamInferResponse,
    m.CONFIG_RESPONSE: service_pb2.ModelConfigResponse,
    m.STATISTICS: service_pb2.ModelStatisticsResponse,
    m.INDEX_REQUEST: service_pb2.RepositoryIndexRequest,
    m.INDEX: service_pb2.RepositoryIndexResponse,
    m.REPOSITORY_MODEL: service_pb2.RepositoryModelLoadRequest,
    m.REGION_NAME: service_pb2.SystemSharedMemoryStatusRequest,
    m.REGION: service_pb2.SystemSharedMemoryRegisterRequest,
    m.REGIONS: service_pb2.SystemSharedMemoryStatusResponse,
    m.TRACE_REQUEST: service_pb2.TraceSettingRequest,
    m.TRACE_RESPONSE: service_pb2.TraceSettingResponse,
    m.LOG_SETTINGS: service_pb2.LogSettingsRequest,
}
KINDS = {
    pb.FieldDescriptor.TYPE_INT32: "int32",
    pb.FieldDescriptor.TYPE_INT64: "int64",
    pb.FieldDescriptor.TYPE_UINT32: "uint32",
    pb.FieldDescriptor.TYPE_UINT64: "uint64",
    pb.FieldDescriptor.TYPE_ENUM: "enum",
    pb.FieldDescriptor.TYPE_BOOL: "bool",
    pb.FieldDescriptor.TYPE_FLOAT: "float",
    pb.FieldDescriptor.TYPE_DOUBLE: "double",
    pb.FieldDescriptor.TYPE_STRING: "string",
    pb.FieldDescriptor.TYPE_BYTES: "bytes",
    pb.FieldDescriptor.TYPE_MESSAGE: "message",
}


def compare(ours: Message, theirs: Any) -> None:
    """Every field of our table is theirs: number, type, repeated or not, member of a oneof or not."""
    for field in ours.fields:
        official = theirs.fields_by_name[field.name]
        assert official.number == field.number, field
        if field.kind == "map":
            assert official.message_type.GetOptions().map_entry
            assert field.message is not None
            compare(field.message, official.message_type)
            continue
        # A message that is decoded later is bytes at first: the same on the wire.
        same = {KINDS[official.type]} | ({"bytes"} if official.message_type else set())
        assert field.kind in same and official.is_repeated == field.repeated, field
        assert field.always == (official.containing_oneof is not None), field
        if field.message is not None:
            compare(field.message, official.message_type)


@pytest.mark.parametrize("ours", OFFICIAL, ids=lambda ours: ours.name)
def test_tables_are_the_official_ones(ours: Message) -> None:
    compare(ours, OFFICIAL[ours].DESCRIPTOR)


def test_enumerations() -> None:
    kinds = model_config_pb2.ModelInstanceGroup.Kind
    assert dict(kinds.items()) == m.KINDS
    assert {value.name: value.number for value in model_config_pb2.DataType.DESCRIPTOR.values} == m.DATA_TYPES


# --- any values, both ways


def scalars(kind: str) -> st.SearchStrategy[Any]:
    bits = {
        "int32": (-(1 << 31), 1 << 31),
        "int64": (-(1 << 63), 1 << 63),
        "uint32": (0, 1 << 32),
        "uint64": (0, 1 << 64),
    }
    if kind in bits:
        return st.integers(bits[kind][0], bits[kind][1] - 1)
    return {
        "enum": st.integers(0, 14),
        "bool": st.booleans(),
        "float": st.floats(width=32, allow_nan=False),
        "double": st.floats(allow_nan=False),
        "string": st.text(max_size=5),
        "bytes": st.binary(max_size=5),
    }[kind]


def values_of(message: Message, depth: int = 4) -> st.SearchStrategy[dict[str, Any]]:
    """Anything that fits a table; of a oneof one member at most is set by the caller's luck."""
    fields: dict[str, st.SearchStrategy[Any]] = {}
    for field in message.fields:
        if field.kind == "map":
            assert field.message is not None
            inner = values_of(field.message, depth - 1).map(lambda entry: entry.get("value"))
            fields[field.name] = st.dictionaries(
                st.text(max_size=3), inner.filter(lambda v: v is not None), max_size=2
            )
            continue
        if field.kind == "message":
            assert field.message is not None
            if not depth:
                continue
            one_value: st.SearchStrategy[Any] = values_of(field.message, depth - 1)
        else:
            one_value = scalars(field.kind)
        fields[field.name] = st.lists(one_value, max_size=4) if field.repeated else one_value
    chosen = st.fixed_dictionaries({}, optional=fields)
    oneof = [field.name for field in message.fields if field.always]
    return chosen.map(lambda made: {k: v for k, v in made.items() if k not in oneof[1:]}) if oneof else chosen


SAMPLES = (
    m.CONTENTS,
    m.MODEL_METADATA,
    m.STATISTICS,
    m.CONFIG_RESPONSE,
    m.STREAM_RESPONSE,
    m.TRACE_RESPONSE,
    m.LOG_SETTINGS,
)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.name)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_what_we_write_google_reads_and_back(message: Message, data: st.DataObject) -> None:
    made = data.draw(values_of(message))
    octets = wire.encode(message, made)
    official = OFFICIAL[message].FromString(octets)
    again = wire.encode(message, plain(wire.decode(message, official.SerializeToString(deterministic=True))))
    assert OFFICIAL[message].FromString(again) == official
    assert plain(wire.decode(message, octets)) == plain(wire.decode(message, memoryview(again)))


def plain(value: Any) -> Any:
    """Arrays and views as lists and bytes."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return bytes(value) if isinstance(value, memoryview) else value


@given(st.binary(max_size=120))
@settings(max_examples=500, deadline=None)
@example(b"\x0a\xff\xff\xff\xff\x0f")
@example(b"\x0b" * 100)
def test_any_octets_are_a_message_or_an_error(octets: bytes) -> None:
    for message in (m.INFER_REQUEST, m.CONTENTS, m.LOG_SETTINGS, m.TRACE_REQUEST):
        try:
            wire.decode(message, octets)
        except WireError:
            continue
        # What we take, Google takes too, except for what lies in fields that we skip or keep for later.


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_what_google_takes_we_take(octets: bytes) -> None:
    """Group fields (wire types 3 and 4), which proto3 has not had for a decade, aside."""
    try:
        official = service_pb2.InferTensorContents.FromString(octets)
    except Exception:
        return
    try:
        ours = wire.decode(m.CONTENTS, octets)
    except WireError as exc:
        assert "wire type" in str(exc)
        return
    for name, found in ours.items():
        theirs = list(getattr(official, name))
        same = [
            a == b or (math.isnan(a) and math.isnan(b))
            for a, b in zip(plain(found), theirs, strict=True)
            if isinstance(a, float)
        ]
        assert all(same) if same else plain(found) == theirs


# --- bounds


def test_numbers_packed_and_not() -> None:
    packed = service_pb2.InferTensorContents(int_contents=[1, -1, 300]).SerializeToString()
    loose = b"\x10\x01" + b"\x10" + b"\xff" * 9 + b"\x01" + b"\x10\xac\x02"
    mixed = packed + loose
    assert wire.decode(m.CONTENTS, loose)["int_contents"].tolist() == [1, -1, 300]
    assert wire.decode(m.CONTENTS, mixed)["int_contents"].tolist() == [1, -1, 300] * 2


def test_octets_stay_where_they_are() -> None:
    octets = memoryview(service_pb2.ModelInferRequest(raw_input_contents=[b"x" * 1000]).SerializeToString())
    raw = wire.decode(m.INFER_REQUEST, octets)["raw_input_contents"][0]
    assert isinstance(raw, memoryview) and raw.obj is octets.obj


def test_too_many_elements() -> None:
    octets = b"\x3a\x00" * 100
    assert len(wire.decode(m.INFER_REQUEST, octets, max_items=100)["raw_input_contents"]) == 100
    with pytest.raises(WireError, match="more than"):
        wire.decode(m.INFER_REQUEST, octets, max_items=99)
    with pytest.raises(WireError, match="more than"):
        wire.decode(m.INFER_REQUEST, b"\xf8\x7f\x00" * 100, max_items=99)


def test_too_deep() -> None:
    loop = Message("Loop")
    field = one(1, "loop", message=loop)
    loop.fields, loop.by_tag = (field,), {0x0A: field}
    octets = b""
    for _ in range(30):
        octets = b"\x0a" + wire.number(len(octets)) + octets
    with pytest.raises(WireError, match="deep"):
        wire.decode(loop, octets)


def test_unknown_names_are_a_bug() -> None:
    with pytest.raises(KeyError):
        wire.encode(m.LIVE, {"alive": True})


@pytest.mark.parametrize(
    "octets",
    ["0a05616263", "0a", "08", "0d000000", "09", "02", "0bff", "0a02fffe", "f0ffffffffffffffffff7f00"],
)
def test_refused(octets: str) -> None:
    message = Message("Test", one(1, "text"), many(2, "numbers", "float"))
    with pytest.raises(WireError):
        wire.decode(message, bytes.fromhex(octets))


# --- packed integers


@given(
    st.lists(st.integers(-(1 << 63), (1 << 64) - 1), max_size=200),
    st.sampled_from(["<i4", "<i8", "<u4", "<u8", "?"]),
)
@settings(deadline=None)
def test_varints_as_google_packs_them(numbers: list[int], kind: str) -> None:
    octets = b"".join(map(wire.number, numbers))
    dtype = np.dtype(kind)
    found = varints.decode(octets, dtype)
    wide = np.array([number & (1 << 64) - 1 for number in numbers], np.uint64)
    expected = wide != 0 if kind == "?" else wide.astype(dtype)
    assert found.dtype == dtype and found.tolist() == expected.tolist()
    assert varints.count(octets) == len(numbers)
    if kind != "?":
        again = b"".join(map(wire.number, expected.tolist()))
        assert varints.encode(expected) == again


def test_varints_longer_than_a_slab() -> None:
    numbers = np.arange(100_000, dtype=np.int64) * 1_000_003
    octets = varints.encode(numbers)
    assert (varints.decode(octets, numbers.dtype) == numbers).all()
    assert (
        service_pb2.InferTensorContents.FromString(wire.begin(3, len(octets)) + octets).int64_contents
        == numbers.tolist()
    )


@pytest.mark.parametrize(
    "octets",
    [b"\x80", b"\xff" * 200, b"\x01" * 200 + b"\x80", b"\x80" * 70_000 + b"\x01", b"\xff" * 10 + b"\x01"],
)
def test_varints_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match=r"cut short|ten octets"):
        varints.decode(octets, np.dtype("<i8"))
