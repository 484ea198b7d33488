"""Requests that repeat an earlier one's JSON mean what parsing would have found, whatever serves by then."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._pace import Pace
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.metrics import Counters
from edgekit_agent.serve.infer import Prepared, run
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.oip_http import Codec
from edgekit_agent.serve.shared_memory import Regions
from edgekit_agent.serve.templates import Template, Templates
from tests.support.serving import config

LIMITS = Limits()


class Nothing:
    thread_safe = True

    def close(self) -> None:
        pass


def model(
    inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]], kind: str = "FP32"
) -> Model:
    made = config(
        "reference",
        tuple(TensorSpec(name, kind, shape) for name, shape in inputs.items()),
        tuple(TensorSpec(name, kind, shape) for name, shape in outputs.items()),
        ("m",),
    )
    return Model("m", "1", made, Nothing(), Pace(1.0), Gate(1), Counters())  # type: ignore[arg-type]


def request(tensors: dict[str, Array], **fields: Any) -> Request:
    items = [
        {
            "name": name,
            "datatype": dtype_name(array.dtype),
            "shape": list(array.shape),
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    head = json.dumps({"inputs": items, **fields}).encode()
    headers = {b"inference-header-content-length": b"%d" % len(head)}
    body = head + b"".join(array.tobytes() for array in tensors.values())
    return Request(b"POST", b"/", headers, body, True, time.perf_counter_ns())


def decode(message: Request, to: Model, templates: Templates) -> tuple[Codec, Prepared]:
    codec = Codec(message, Regions(), templates)
    return codec, codec.decode(to, LIMITS)


def text(response: Response) -> bytes:
    return response.body + b"".join(response.tail)


@pytest.mark.parametrize("rows", [1, 3, 20_000])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"parameters": {"binary_data_output": True}},
        {"id": "é", "outputs": [{"name": "z", "parameters": {"binary_data": True}}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True, "classification": 2}}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": True}}, {"name": "z"}]},
    ],
)
def test_the_second_time_is_like_the_first(rows: int, fields: dict[str, Any]) -> None:
    served, templates = model({"a": (-1, 2), "b": (-1, 3)}, {"y": (-1, 2), "z": (-1, 1)}), Templates()
    limits = Limits(max_batch=rows)
    random = np.random.default_rng(0)
    seen = []
    for _ in range(3):
        tensors = {
            name: random.standard_normal((rows, n)).astype(np.float32) for name, n in (("b", 3), ("a", 2))
        }
        outputs = {"y": tensors["a"] * 2, "z": tensors["b"][:, :1]}
        message = request(tensors, **fields)
        codec, fresh = Codec(message, Regions(), templates), Codec(message, Regions(), Templates())
        ours, theirs = codec.decode(served, limits), fresh.decode(served, limits)
        seen.append(isinstance(ours.note, Template))
        for name, array in theirs.inputs.items():
            assert ours.inputs[name].tobytes() == array.tobytes() and ours.inputs[name].shape == array.shape
        answer, wanted = codec.encode(served, ours, outputs), fresh.encode(served, theirs, outputs)
        assert text(answer) == text(wanted) and answer.json_size == wanted.json_size
        assert answer.content_type == wanted.content_type and ours.samples == theirs.samples == rows
    assert seen == [False, True, True]


def test_another_release_is_asked_what_it_can_answer() -> None:
    templates = Templates()
    old, new = model({"x": (-1, 2)}, {"y": (-1, 2)}), model({"x": (-1, 2)}, {"w": (-1, 2)})
    other = model({"x": (-1, 5)}, {"y": (-1, 2)})
    x = np.ones((1, 2), np.float32)
    named = request({"x": x}, outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    unnamed = request({"x": x}, parameters={"binary_data_output": True})
    for message in (named, named, unnamed, unnamed):
        codec, prepared = decode(message, old, templates)
        assert b'"y"' in codec.encode(old, prepared, {"y": x}).body
    with pytest.raises(InputError, match="unknown output 'y'"):
        decode(named, new, templates)
    with pytest.raises(InputError, match="expected shape"):
        decode(unnamed, other, templates)
    codec, prepared = decode(unnamed, new, templates)
    assert isinstance(prepared.note, Template) and b'"w"' in codec.encode(new, prepared, {"w": x}).body


class Sums(Nothing):
    """y: the sum of each row."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.broken = False

    def run(self, inputs: dict[str, Array]) -> dict[str, Array]:
        self.runs.append(len(inputs["x"]))
        if self.broken and len(inputs["x"]) > 2:
            raise EngineError("too many")
        return {"y": inputs["x"].sum(axis=1, keepdims=True)}


@pytest.mark.parametrize("kind", ["FP32", "INT64", "UINT8"])
@pytest.mark.parametrize("broken", [False, True])
def test_small_inputs_are_joined_as_bytes(kind: str, broken: bool) -> None:
    """The first of each length is parsed, the second looked at; the others come as bytes."""
    served, templates, engine = model({"x": (-1, 3)}, {"y": (-1, 1)}, kind), Templates(), Sums()
    engine.broken = broken
    served.session = engine  # type: ignore[assignment]
    rows = [np.arange(3 * n).reshape(n, 3).astype(DTYPES[kind]) + n for n in (1, 2, 1, 2, 1, 2)]
    batch = [decode(request({"x": one}), served, templates)[1] for one in rows]
    assert [one.layout is not None for one in batch] == [False] * 4 + [True] * 2
    for first in (0, 4, 5):
        results = run(served, batch[first:]).results
        for row, result in zip(rows[first:], results, strict=True):
            assert not isinstance(result, Exception)
            np.testing.assert_array_equal(result["y"], row.sum(axis=1, keepdims=True))
    assert engine.runs[0] == 9 and (len(engine.runs) > 3) == broken


def test_large_inputs_are_not_joined_as_bytes() -> None:
    served, templates = model({"x": (-1, 3)}, {"y": (-1, 1)}), Templates()
    x = np.ones((2000, 3), np.float32)
    for _ in range(3):
        codec = Codec(request({"x": x}), Regions(), templates)
        prepared = codec.decode(served, Limits(max_batch=2000))
    assert isinstance(prepared.note, Template) and prepared.layout is None
    np.testing.assert_array_equal(prepared.inputs["x"], x)


def test_priority_and_timeout_count_from_each_request() -> None:
    served, templates = model({"x": (-1, 2)}, {"y": (-1, 2)}), Templates()
    for _ in range(2):
        message = request({"x": np.ones((1, 2), np.float32)}, parameters={"timeout": 5000, "priority": 1})
        _, prepared = decode(message, served, templates)
        assert prepared.priority == 4 and prepared.deadline_ns == message.received_ns + 5_000_000


@pytest.mark.parametrize(
    "parameters", [{"timeout": -1}, {"timeout": 1.5}, {"timeout": True}, {"priority": 10}]
)
def test_odd_timeouts_and_priorities_are_refused(parameters: dict[str, Any]) -> None:
    served = model({"x": (-1, 2)}, {"y": (-1, 2)})
    with pytest.raises(InputError, match=r"timeout|priority"):
        decode(request({"x": np.ones((1, 2), np.float32)}, parameters=parameters), served, Templates())


def test_what_must_be_looked_at_each_time_is_not_remembered() -> None:
    templates = Templates()
    served = model({"x": (-1, 2)}, {"y": (-1, 2)}, "BOOL")
    good = request({"x": np.array([[True, False]])})
    for _ in range(2):
        _, prepared = decode(good, served, templates)
        assert not isinstance(prepared.note, Template)
    good.body = good.body[:-1] + b"\x02"
    with pytest.raises(InputError, match="BOOL"):
        decode(good, served, templates)
    numbers = model({"x": (-1, 2)}, {"y": (-1, 2)})
    written = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    body = json.dumps({"inputs": [written]}).encode()
    headers = {b"inference-header-content-length": b"%d" % len(body)}
    for _ in range(2):
        _, prepared = decode(Request(b"POST", b"/", headers, body, True, 0), numbers, templates)
        assert not isinstance(prepared.note, Template)


def test_a_body_of_another_length_is_parsed_and_refused() -> None:
    served, templates = model({"x": (-1, 2)}, {"y": (-1, 2)}), Templates()
    message = request({"x": np.ones((1, 2), np.float32)})
    decode(message, served, templates)
    for body in (message.body + b"x", message.body[:-1]):
        with pytest.raises(InputError, match="bytes"):
            decode(Request(b"POST", b"/", message.headers, body, True, 0), served, templates)


def test_the_memory_is_bounded() -> None:
    served, templates = model({"x": (-1, 2)}, {"y": (-1, 2)}), Templates()
    for number in range(1000):
        decode(request({"x": np.ones((1, 2), np.float32)}, id=str(number)), served, templates)
    decode(request({"x": np.ones((1, 2), np.float32)}, id="x" * 5000), served, templates)
    assert len(templates._known) <= 64
    assert max(len(head) for head, _ in templates._known) < 2048
