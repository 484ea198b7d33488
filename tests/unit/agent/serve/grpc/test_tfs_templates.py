"""Predict requests that repeat mean what the parser would have found, and the answers are the same octets."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import EdgekitError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve.grpc import tfs_messages as m
from edgekit_agent.serve.grpc import varints, wire
from edgekit_agent.serve.grpc.tfs_infer import Predict
from edgekit_agent.serve.grpc.tfs_templates import Templates
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model
from tests.unit.agent.serve.test_templates import model

LIMITS = Limits(max_batch=20_000)
KINDS = ("FP32", "FP64", "INT32", "INT64", "UINT8", "BOOL", "FP16")


def served(kind: str = "FP32") -> Model:
    return model({"a": (-1, 2), "b": (-1, 3)}, {"y": (-1, 2), "z": (-1, 1)}, kind)


def proto(array: Array, field: str = "tensor_content") -> bytes:
    shape = {"dim": [{"size": size} for size in array.shape]}
    head = {"dtype": m.DATA_TYPES[dtype_name(array.dtype)], "tensor_shape": shape}
    if field == "tensor_content":
        return wire.encode(m.TENSOR, {**head, field: array.tobytes()})
    number = next(one.number for one in m.TENSOR.fields if one.name == field)
    octets = array.tobytes() if field in ("float_val", "double_val") else varints.encode(array.ravel())
    return wire.encode(m.TENSOR, head) + wire.begin(number, len(octets)) + octets


VIEW_FROM = 150


def request(tensors: dict[str, Array], field: str = "tensor_content", **fields: Any) -> bytes:
    spec = {"name": "m", "signature_name": "serving_default"}
    inputs = {name: proto(array, field) for name, array in tensors.items()}
    return wire.encode(m.PREDICT_REQUEST, {"model_spec": spec, "inputs": inputs, **fields})


def ask(message: bytes, templates: Templates, to: Model) -> tuple[bool, dict[str, bytes], bytes]:
    """Whether it was recognized, the inputs, the answer. Raises InputError."""
    whole = memoryview(bytearray(message)) if len(message) >= VIEW_FROM else message  # as framing.py has it
    codec = Predict(templates, whole)
    prepared = codec.decode(to, LIMITS)
    rows = prepared.samples
    outputs = {
        spec.name: (np.arange(rows * spec.shape[1]) * 77 % 251)
        .reshape(rows, -1)
        .astype(prepared.inputs["a"].dtype)
        for spec in to.config.outputs
    }
    parts = codec.encode(to, prepared, outputs).parts
    found = {name: array.tobytes() + str(array.shape).encode() for name, array in prepared.inputs.items()}
    return codec._template is not None, found, b"".join(parts)


def tensors(rows: int, seed: int = 0, kind: str = "FP32") -> dict[str, Array]:
    chance = np.random.default_rng(seed)
    dtype = {"FP32": np.float32, "FP64": np.float64, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8,
             "BOOL": np.bool_, "FP16": np.float16}[kind]  # fmt: skip
    return {name: chance.integers(0, 2, (rows, n)).astype(dtype) for name, n in (("b", 3), ("a", 2))}


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fields", [{}, {"output_filter": ["z"]}])
def test_the_second_time_is_like_the_first(rows: int, kind: str, fields: dict[str, Any]) -> None:
    templates, to, seen = Templates(), served(kind), []
    for number in range(3):
        message = request(tensors(rows, number, kind), **fields)
        known, *ours = ask(message, templates, to)
        assert ours == [*ask(message, Templates(), to)[1:]]
        seen.append(known)
    assert seen == ([False] * 3 if kind == "BOOL" else [False, True, True])


@pytest.mark.parametrize(
    ("field", "kind", "kept"),
    [("float_val", "FP32", True), ("double_val", "FP64", True), ("int_val", "INT32", False)],
)
def test_values_in_the_field_of_their_type(field: str, kind: str, kept: bool) -> None:
    templates, to = Templates(), served(kind)
    for number in range(3):
        message = request(tensors(2, number, kind), field)
        known, *ours = ask(message, templates, to)
        assert ours == [*ask(message, Templates(), to)[1:]] and known == (kept and number > 0)


def test_a_field_of_another_type_is_not_taken_for_the_values() -> None:
    """As many octets in float_val as in double_val, of which the latter counts."""
    to, templates = model({"a": (-1, 2)}, {"y": (-1, 2)}, "FP64"), Templates()
    for number in (1.0, 2.0, 3.0):
        a = np.full((1, 2), number)
        tensor = proto(a, "double_val") + wire.begin(5, 16) + np.full(4, number, np.float32).tobytes()
        message = wire.encode(m.PREDICT_REQUEST, {"model_spec": {"name": "m"}, "inputs": {"a": tensor}})
        _, found, _ = ask(message, templates, to)
        assert found["a"].startswith(a.tobytes())
    assert len(templates.known) == 3, "what differs in the other field is another message"


def test_values_that_are_filled_up_are_parsed_each_time() -> None:
    to, templates = model({"a": (-1, 2)}, {"y": (-1, 2)}), Templates()
    shape = {"dim": [{"size": 1}, {"size": 2}]}
    for number in (1.0, 2.0):
        one = np.float32(number).tobytes()
        for tensor in (wire.begin(5, 4) + one, (wire.begin(5, 4) + one) * 2):
            tensor = wire.encode(m.TENSOR, {"dtype": 1, "tensor_shape": shape}) + tensor
            message = wire.encode(m.PREDICT_REQUEST, {"model_spec": {"name": "m"}, "inputs": {"a": tensor}})
            known, found, _ = ask(message, templates, to)
            assert found["a"].startswith(one * 2) and not known


def test_another_release_is_asked_what_it_can_answer() -> None:
    templates, to = Templates(), served()
    new = model({"a": (-1, 2), "b": (-1, 3)}, {"w": (-1, 2)})
    filtered, plain = request(tensors(1), output_filter=["y"]), request(tensors(1))
    for message in (filtered, plain, filtered, plain):
        ask(message, templates, to)
    with pytest.raises(InputError, match="alias not found"):
        ask(filtered, templates, new)
    known, _, answer = ask(plain, templates, new)
    assert known and list(wire.decode(m.PREDICT_RESPONSE, answer)["outputs"]) == ["w"]


BASE = [
    request(tensors(1)), request(tensors(2), "float_val"), request(tensors(1), output_filter=["z", "y"]),
    request(dict(sorted(tensors(1).items()))),
]  # fmt: skip


@given(st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_any_octets_as_the_parser_finds_them(seed: int) -> None:
    """Messages that are learned, then damaged in a few places: recognized or not, the same comes out."""
    chance = random.Random(seed)
    templates, to = Templates(), served()
    for message in chance.sample(BASE, 3):
        ask(message, templates, to)
    for _ in range(20):
        damaged = bytearray(chance.choice(BASE))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[place] = chance.randrange(256)
                case 1:
                    damaged[place:place] = chance.choice(
                        (b"\x1a\x01z", b"\x12\x00", b"\x0a\x03\x0a\x01m", b"q")
                    )
                case _:
                    del damaged[place : place + chance.randrange(1, 6)]
        results = []
        for with_them in (templates, Templates()):
            try:
                results.append(ask(bytes(damaged), with_them, to)[1:])
            except EdgekitError as exc:
                results.append((str(exc),))  # type: ignore[arg-type]
            except KeyError:
                results.append(("no input a",))  # type: ignore[arg-type]
        assert results[0] == results[1]
