"""Infer requests that repeat mean what the parser would have found, and the answers are the same octets."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from edgekit.errors import EdgekitError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve.grpc.oip_infer import Codec
from edgekit_agent.serve.grpc.oip_templates import Templates
from edgekit_agent.serve.grpc.patterns import MAX_ID
from edgekit_agent.serve.grpc.service import Arrived
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.shared_memory import Regions
from tests.unit.agent.serve.test_templates import model

VIEW_FROM = 150
LIMITS = Limits(max_batch=20_000)
SERVED = model({"a": (-1, 2), "b": (-1, 3)}, {"y": (-1, 2), "z": (-1, 1)})


def request(tensors: dict[str, Array], **fields: Any) -> bytes:
    inputs = [
        pb.ModelInferRequest.InferInputTensor(name=name, datatype=dtype_name(array.dtype), shape=array.shape)
        for name, array in tensors.items()
    ]
    raw = [array.tobytes() for array in tensors.values()]
    made = pb.ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=raw, **fields)
    return bytes(made.SerializeToString())


def number(value: int) -> pb.InferParameter:
    return pb.InferParameter(int64_param=value)


def wanted(name: str, **parameters: int) -> pb.ModelInferRequest.InferRequestedOutputTensor:
    made = pb.ModelInferRequest.InferRequestedOutputTensor(name=name)
    for key, value in parameters.items():
        made.parameters[key].int64_param = value
    return made


def ask(
    message: bytes, templates: Templates, to: Model = SERVED, *, stream: bool = False
) -> tuple[bool, dict[str, bytes], bytes, int]:
    """Whether it was recognized, the inputs, the answer, its priority. Raises InputError."""
    whole = memoryview(bytearray(message)) if len(message) >= VIEW_FROM else message  # as framing.py has it
    codec = Codec(Arrived(whole, 1_000, 0, {}), Regions(), templates, stream)
    prepared = codec.decode(to, LIMITS)
    outputs = {
        spec.name: np.arange(prepared.samples * spec.shape[1], dtype=np.float32).reshape(prepared.samples, -1)
        for spec in to.config.outputs
    }
    parts = codec.encode(to, prepared, outputs).parts
    for array in prepared.inputs.values():
        assert array.flags.aligned
    found = {name: array.tobytes() + str(array.shape).encode() for name, array in prepared.inputs.items()}
    return codec._template is not None, found, b"".join(parts), prepared.priority + prepared.deadline_ns


def tensors(rows: int, seed: int = 0) -> dict[str, Array]:
    chance = np.random.default_rng(seed)
    return {name: chance.standard_normal((rows, n)).astype(np.float32) for name, n in (("b", 3), ("a", 2))}


@pytest.mark.parametrize("rows", [1, 3, 3000])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model_version": "1"},
        {"id": "x"},
        {"id": "x" * MAX_ID, "outputs": [wanted("z")]},
        {"outputs": [wanted("z"), wanted("y")]},
        {"outputs": [wanted("y", classification=2), wanted("z")]},
        {"parameters": {"priority": number(2), "timeout": number(9)}},
    ],
)  # fmt: skip
def test_the_second_time_is_like_the_first(rows: int, stream: bool, fields: dict[str, Any]) -> None:
    templates, seen = Templates(), []
    for number in range(4):
        if "id" in fields and number:
            fields = fields | {"id": str(number) * number}
        message = request(tensors(rows, number), **fields)
        known, *ours = ask(message, templates, stream=stream)
        _, *theirs = ask(message, Templates(), stream=stream)
        assert ours == theirs
        seen.append(known)
        if not stream:
            answer = pb.ModelInferResponse.FromString(ours[1])
            assert answer.id == fields.get("id", "") and answer.model_name == "m"
            asked = [one.name for one in fields.get("outputs", ())] or ["y", "z"]
            assert [one.name for one in answer.outputs] == asked
    assert seen == [False, True, True, True]


def test_with_and_without_an_id_are_the_same_request() -> None:
    templates = Templates()
    ids = ["", "a", "", "b" * MAX_ID, "c" * (MAX_ID + 1), "é", ""]
    seen = []
    for number, identity in enumerate(ids):
        message = request(tensors(1, number), id=identity)
        known, *ours = ask(message, templates)
        assert ours == [*ask(message, Templates())[1:]]
        assert pb.ModelInferResponse.FromString(ours[1]).id == identity
        seen.append(known)
    assert seen == [False, True, True, True, False, False, True]


@pytest.mark.parametrize(
    "made",
    [
        request({"a": np.ones((1, 2), bool), "b": np.ones((1, 3), bool)}),
        request({}),
        b"\x0a\x01m" + request(tensors(1)),
        request(tensors(1)) + b"\x1a\x01x",
        request(tensors(1)) + b"\x40\x00",
        b"\xfa\x7f\x02ab" + request(tensors(1)),
        request(tensors(1), parameters={"k" * 3000: pb.InferParameter(bool_param=True)}),
    ],
)
def test_what_is_not_kept(made: bytes) -> None:
    templates = Templates()
    to = model({"a": (-1, 2), "b": (-1, 3)}, {"y": (-1, 1)}, "BOOL") if b"BOOL" in made else SERVED
    for _ in range(2):
        try:
            assert not ask(made, templates, to)[0]
        except InputError:
            continue
    assert not templates.known


def test_another_release_is_asked_what_it_can_answer() -> None:
    templates = Templates()
    new = model({"a": (-1, 2), "b": (-1, 3)}, {"w": (-1, 2)})
    other = model({"a": (-1, 2), "b": (-1, 9)}, {"y": (-1, 2)})
    named, unnamed = request(tensors(1), outputs=[wanted("y")]), request(tensors(1))
    for message in (named, unnamed, named, unnamed):
        ask(message, templates)
    with pytest.raises(InputError, match="unknown output 'y'"):
        ask(named, templates, new)
    with pytest.raises(InputError, match="expected shape"):
        ask(unnamed, templates, other)
    known, _, answer, _ = ask(unnamed, templates, new)
    assert known and pb.ModelInferResponse.FromString(answer).outputs[0].name == "w"


def test_the_memory_is_bounded_and_the_latest_stay() -> None:
    templates = Templates()
    messages = [
        request(tensors(1), model_version="1", parameters={str(n): pb.InferParameter(bool_param=True)})
        for n in range(40)
    ]
    for message in messages:
        ask(message, templates)
        assert ask(messages[0], templates)[0], "used all the time"
    assert len(templates.known) == 16
    assert [ask(message, templates)[0] for message in (messages[39], messages[2])] == [True, False]


BASE = [
    request(tensors(1)), request(tensors(2), id="seven"), request(dict(sorted(tensors(1).items()))),
    request(tensors(1), outputs=[wanted("z")]), request(tensors(1), model_version="1", id="7"),
]  # fmt: skip


@given(st.integers(0, 2**32))
@settings(max_examples=500, deadline=None)
def test_any_octets_as_the_parser_finds_them(seed: int) -> None:
    """Messages that are learned, then damaged in a few places: recognized or not, the same comes out."""
    chance = random.Random(seed)
    templates = Templates()
    for message in chance.sample(BASE, 3):
        ask(message, templates)
    for _ in range(20):
        damaged = bytearray(chance.choice(BASE))
        for _ in range(chance.randrange(4)):
            place = chance.randrange(len(damaged))
            match chance.randrange(4):
                case 0:
                    damaged[place] = chance.randrange(256)
                case 1:
                    damaged[place:place] = chance.choice(
                        (b"\x1a\x01x", b"\x1a\x00", b"\x3a\x00", b"\x12\x011", b"z")
                    )
                case 2:
                    del damaged[place : place + chance.randrange(1, 6)]
                case _:
                    damaged[-chance.randrange(1, 20)] = chance.randrange(256)
        results = []
        for with_them in (templates, Templates()):
            try:
                results.append(ask(bytes(damaged), with_them)[1:])
            except EdgekitError as exc:
                results.append((str(exc),))  # type: ignore[arg-type]
        assert results[0] == results[1]
