"""JSON with and without orjson: the same documents either way."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit_agent.serve import jsons

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=["orjson", "json"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "json":
        monkeypatch.setattr(jsons, "orjson", None)
    return name


@given(value=values)
def test_both_read_the_same(value: Any) -> None:
    text = json.dumps(value).encode()
    assert jsons.loads(text) == json.loads(text) == jsons.loads(memoryview(text))


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[1,]", b"\xff", b'"\xed\xa0\x80"', b"[" * 100_000, b"nul", b"1 2"]
)
def test_rubbish_is_an_error(kind: str, text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        jsons.loads(text)


def test_what_orjson_refuses_is_read_all_the_same(kind: str) -> None:
    found = jsons.loads(rb'{"x": [NaN, -Infinity, 1e999], "id": "\ud800"}')
    assert np.isnan(found["x"][0]) and found["x"][1:] == [-np.inf, np.inf] and found["id"] == "\ud800"


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_arrays_are_written_as_their_values(kind: str, name: str) -> None:
    @settings(deadline=None)
    @given(hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
    def check(array: Array) -> None:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            with pytest.raises(ValueError, match=r"JSON"):
                jsons.dumps({"data": jsons.numbers(array)})
            return
        for form in (array, array.T):
            data = json.loads(jsons.dumps({"data": jsons.numbers(form)}))["data"]
            assert np.array_equal(np.array(data, array.dtype), form.ravel())

    check()


def test_half_a_character_goes_back_as_it_came(kind: str) -> None:
    document = {"id": "\ud800", "data": jsons.numbers(np.array([1, 2], np.int8))}
    assert json.loads(jsons.dumps(document)) == {"id": "\ud800", "data": [1, 2]}
