"""JSON requests that repeat an earlier one but for their numbers mean what parsing would have found."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import EdgekitError
from edgekit_agent.serve import jsons, oip
from edgekit_agent.serve.infer import Prepared
from edgekit_agent.serve.json_templates import JsonTemplate, JsonTemplates
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.oip_http import Codec
from edgekit_agent.serve.shared_memory import Regions
from edgekit_agent.serve.templates import Templates
from tests.unit.agent.serve.test_templates import model

SERVED = model({"x": (-1, 2)}, {"y": (-1, 2), "z": (-1, 1)})
LIMITS = Limits()

VALUES = [
    *("[3,4]", "[[3.5,-4]]", "[16777217, 1e-50]", "[1]", "[1,2,3]", "[true,1]", '["1",2]', "[null,1]"),
    *("[1e39,0]", "[1e999,0]", "[NaN,1]", "[Infinity,1]", "[1" + "0" * 400 + ",1]"),
    *("", "7", "{}", '"x"', "[1,2", "1,2]", '[1,2],"data":[5,6]', '[1,2],"shape":[2,1]', "[1,2]} ,{"),
    "[" * 3000 + "1" + "]" * 3000,
]


@pytest.fixture(params=["orjson", "json"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "json":
        monkeypatch.setattr(jsons, "orjson", None)


def document(data: Any, **fields: Any) -> dict[str, Any]:
    """A request for one row, or what `fields` of the input say."""
    item = {"name": "x", "datatype": "FP32", "shape": [1, 2], **fields.pop("item", {}), "data": data}
    return {"inputs": [item], **fields}


def ask(body: bytes, templates: Templates, to: Model = SERVED) -> tuple[bytes | str, Prepared | None]:
    """The answer's text, or the refusal's."""
    codec = Codec(Request(b"POST", b"/", {}, body, True, 7), Regions(), templates)
    try:
        prepared = codec.decode(to, LIMITS)
        (x,) = prepared.inputs.values()
        answer: Response = codec.encode(to, prepared, {"y": x * 2, "z": x[:, :1]})
    except EdgekitError as exc:
        return str(exc), None
    return answer.body + b"".join(answer.tail), prepared


def short(prepared: Prepared | None) -> bool:
    return prepared is not None and isinstance(prepared.note, JsonTemplate)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"parameters": {"timeout": 5000, "priority": 1}},
        {"outputs": [{"name": "z"}, {"name": "y"}]},
        {"outputs": [{"name": "y", "parameters": {"classification": 1}}]},
        {"parameters": {"binary_data_output": True}},
        {"item": {"parameters": {"note": '"data": [1, 2], é'}}},
        {"item": {"parameters": {"data": [1, 2]}}},
        {"item": {"shape": [2, 2]}},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_the_second_time_is_like_the_first(fields: dict[str, Any], indent: int | None) -> None:
    templates = Templates()
    rows = fields.get("item", {}).get("shape", [1])[0]
    random = np.random.default_rng(0)
    seen = []
    for turn in range(4):
        data: Any = random.standard_normal((rows, 2)).round(3 + turn).tolist()
        if turn < 2:
            data = [number for row in data for number in row]  # flat, and later nested
        body = json.dumps(document(data, **fields), indent=indent, ensure_ascii=False).encode()
        ours, prepared = ask(body, templates)
        theirs, fresh = ask(body, Templates())
        assert ours == theirs and prepared is not None and fresh is not None
        assert prepared.samples == fresh.samples == rows
        assert (prepared.priority, prepared.deadline_ns) == (fresh.priority, fresh.deadline_ns)
        assert not short(fresh)
        seen.append(short(prepared))
    # What looks like the numbers' place is not taken for it; parsing goes on doing the work.
    assert seen == [False, *["'data'" not in str(fields)] * 3]


@given(st.data())
def test_whatever_stands_for_the_numbers(data: st.DataObject) -> None:
    """Other values, and damage anywhere: the same answer or refusal as without a memory."""
    templates = Templates()
    first = json.dumps(document([1, 2])).encode()
    ask(first, templates)
    value = data.draw(st.sampled_from(VALUES))
    body = bytearray(first.replace(b"[1, 2]}", value.encode() + b"}"))
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert ask(bytes(body), templates)[0] == ask(bytes(body), Templates())[0]


def test_another_release_is_asked_what_it_can_answer() -> None:
    templates = Templates()
    body = json.dumps(document([1, 2], outputs=[{"name": "z"}])).encode()
    for _ in range(2):
        ask(body, templates)
    text, _ = ask(body, templates, model({"x": (-1, 2)}, {"y": (-1, 2)}))
    assert "unknown output 'z'" in str(text)
    text, _ = ask(json.dumps(document([1, 2])).encode(), templates, model({"x": (-1, 5)}, {"y": (-1, 2)}))
    assert "expected shape" in str(text)


def test_an_answer_that_json_cannot_carry() -> None:
    templates = Templates()
    for _ in range(3):
        codec = Codec(
            Request(b"POST", b"/", {}, json.dumps(document([1, 2])).encode(), True, 0), Regions(), templates
        )
        prepared = codec.decode(SERVED, LIMITS)
        with pytest.raises(EdgekitError, match="NaN or infinity"):
            codec.encode(SERVED, prepared, {"y": np.array([[np.nan, 1]]), "z": np.ones((1, 1))})
        codec.encode(SERVED, prepared, {"y": np.ones((1, 2)), "z": np.ones((1, 1))})


def test_the_memory_is_bounded_and_ids_are_not_kept() -> None:
    templates = Templates()
    ask(json.dumps(document([1, 2], id="7")).encode(), templates)
    assert not templates.whole._known
    for number in range(3000):
        ask(json.dumps(document([1, 2], parameters={"turn": number})).encode(), templates)
    ask(json.dumps(document([1, 2], parameters={"text": "x" * 5000})).encode(), templates)
    known = templates.whole._known
    assert len(known) == 16 and max(len(one.before) + len(one.after) for one in known) < 4096
    # One that never repeats itself is hardly looked at; one that does is found all the same.
    steady = json.dumps(document([1, 2], parameters={"steady": True})).encode()
    assert any(short(ask(steady, templates)[1]) for _ in range(600))


def test_large_bodies_are_parsed_on_their_own_thread_as_ever() -> None:
    wide = model({"x": (-1, 20_000)}, {"y": (-1, 2), "z": (-1, 1)})
    templates = Templates()
    item = {"shape": [1, 20_000]}
    for _ in range(2):
        _, prepared = ask(json.dumps(document([0.125] * 20_000, item=item)).encode(), templates, wide)
        assert prepared is not None and not short(prepared)


def test_refusals_name_the_input() -> None:
    templates = Templates()
    for _ in range(2):
        ask(json.dumps(document([1, 2])).encode(), templates)
    text, _ = ask(json.dumps(document(["a", 2])).encode(), templates)
    assert text == "input 'x': data is not FP32"


def test_an_input_in_shared_memory_beside_data_elsewhere() -> None:
    """Found by benchmarks/fuzz.py: the answer was 500."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2]}
    parsed = oip.decode(json.dumps({"inputs": [{**tensor, "data": [1, 2]}]}).encode(), None)
    where = {"shared_memory_region": "r", "shared_memory_byte_size": 8}
    body = json.dumps({"other": {"data": [1, 2]}, "inputs": [{**tensor, "parameters": where}]}).encode()
    known = JsonTemplates()
    known.learn(body, parsed)
    assert known.find(body) is None
