"""JSON values as tensors of the model's types: what is taken, what is refused, and what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.errors import EngineError, InputError
from edgekit.runtimes._base import DTYPE_NAMES, DTYPES
from edgekit_agent.serve import jsons, values

ANY_ARRAY = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(
        DTYPES[name],
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=1, max_side=3),
        elements={"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else None,
    )
)


@settings(deadline=None)
@given(ANY_ARRAY)
def test_every_array_comes_back_through_json(array: np.ndarray[Any, Any]) -> None:
    text = jsons.dumps(values.plain(array))
    found = values.array("x", json.loads(text), DTYPE_NAMES[array.dtype])
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=6), st.booleans())
def test_every_byte_comes_back_through_json(items: list[bytes], binary: bool) -> None:
    array = values.flat("x", list(items), "BYTES").reshape(1, -1)
    written = json.loads(jsons.dumps(values.plain(array, binary=binary)))
    assert values.array("x", written, "BYTES").tolist() == [items]
    if binary:
        assert all(set(item) == {"b64"} for item in written[0])


def test_empty_lists_are_dimensions_of_size_0() -> None:
    assert values.array("x", [], "FP32").shape == (0,)
    assert values.array("x", [[], []], "FP32").shape == (2, 0)
    assert values.plain(np.empty((2, 0), object)) == [[], []]


@pytest.mark.parametrize(
    ("value", "datatype", "words"),
    [
        ([[1, 2], [3]], "FP32", "differ in length (1, 2)"),
        ([1, [2]], "FP32", "found lists"),
        ([[1], [[2]]], "FP32", "found lists"),
        (json.loads("[" * 17 + "]" * 17), "FP32", "more than 16 deep"),
        (["1"], "FP32", "found text"),
        ([None], "FP32", "found null"),
        ([True], "FP32", "found booleans"),
        ([1.5], "INT8", "found decimals"),
        ([1.0], "INT8", "found decimals"),
        ([1], "BOOL", "found integers"),
        ([{"b64": "AA=="}], "FP32", "found objects"),
        ([128], "INT8", "out of range for INT8"),
        ([-1], "UINT8", "out of range for UINT8"),
        ([2**64], "INT64", "out of range"),
        ([1e39], "FP32", "out of range for FP32"),
        ([1e999], "FP64", "out of range"),
        ([float("nan")], "FP32", "out of range"),
        ([10**400], "FP64", "out of range"),
        ([65520], "FP16", "out of range for FP16"),
        ([1], "BYTES", "text or {'b64': ...} wanted, found integers"),
        ([{"b64": "A"}], "BYTES", "base64"),
        ([{"b64": "A*=="}], "BYTES", "input x"),
        ([{"b64": 1}], "BYTES", "found objects"),
        ([{"b64": "AA==", "more": 1}], "BYTES", "found objects"),
        (["\ud800"], "BYTES", "surrogates not allowed"),
    ],
)
def test_what_would_change_its_meaning_is_refused(value: Any, datatype: str, words: str) -> None:
    with pytest.raises(InputError, match=r"^input x: ") as caught:
        values.array("input x", value, datatype)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "shape", "wanted"),
    [
        ([1, 2, 3, 4], (-1, 4), (1, 4)),
        ([1, 2, 3, 4, 5, 6, 7, 8], (-1, 4), (2, 4)),
        ([[1, 2], [3, 4]], (-1, 4), (1, 4)),
        ([[1, 2], [3, 4]], (-1, 2), (2, 2)),
        ([[1, 2], [3, 4]], (-1, -1), (2, 2)),
        ([1, 2, 3], (-1, -1), (1, 3)),
        (7, (-1, 1), (1, 1)),
        (7, (), ()),
        ([7], (1, 1), (1, 1)),
        (7, (-1,), (1,)),
    ],
)
def test_values_fill_a_shape(value: Any, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    found = values.fit("x", value, "INT32", shape)
    assert found.shape == wanted
    assert found.ravel().tolist() == np.ravel(value).tolist()


@pytest.mark.parametrize(
    ("value", "shape"), [([1, 2, 3], (-1, 4)), ([1, 2], (1,)), ([1, 2], ()), ([], (1,)), ([1], (-1, 0))]
)
def test_values_that_do_not_fill_a_shape_are_refused(value: Any, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="do not fill"):
        values.fit("x", value, "INT32", shape)


def test_raw_bytes_are_samples() -> None:
    sent = np.arange(12, dtype="<i2").reshape(2, 3, 2)
    assert np.array_equal(values.raw("x", sent.tobytes(), "INT16", (3, 2)), sent)
    assert values.raw("x", b"\xff\0", "BYTES", ()).tolist() == [b"\xff\0"]
    assert values.raw("x", b"\xff\0", "BYTES", (1,)).tolist() == [[b"\xff\0"]]


@pytest.mark.parametrize(
    ("data", "datatype", "shape", "words"),
    [
        (b"123", "INT16", (1,), "3 bytes are not a whole number of samples of 2 bytes"),
        (b"", "INT16", (1,), "0 bytes"),
        (b"12", "INT16", (0,), "whole number"),
        (b"12", "INT16", (-1,), "cannot tell the shape"),
        (b"12", "BYTES", (2,), "one value"),
        (b"\x02", "BOOL", (1,), "a BOOL is 0 or 1"),
    ],
)
def test_raw_bytes_that_are_no_samples_are_refused(
    data: bytes, datatype: str, shape: tuple[int, ...], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        values.raw("x", data, datatype, shape)


def test_bytes_that_are_not_text_are_base64() -> None:
    array = values.flat("x", [b"\xff", "\u00e9".encode()], "BYTES")
    assert values.plain(array) == [{"b64": base64.b64encode(b"\xff").decode()}, "\u00e9"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_nan_in_an_answer_is_the_fault_of_who_brought_it(bad: float, datatype: str) -> None:
    answer = np.array([1, bad], DTYPES[datatype])
    with (
        pytest.raises(InputError, match="input 'x' holds NaN"),
        values.Blame({"n": np.array([1]), "x": answer}),
    ):
        values.plain(answer)
    with pytest.raises(EngineError, match="an output holds NaN"), values.Blame({"x": np.array([1.0])}):
        values.plain(answer)
    with pytest.raises(ZeroDivisionError), values.Blame({"x": answer}):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("datatype", "value", "client"),
    [
        ("FP32", 3e38, True),
        ("FP32", -1e30, True),
        ("FP32", 1e15, False),
        ("FP64", 1e200, True),
        ("FP64", 1e100, False),
        ("FP16", 6e4, True),
        ("FP16", 1000, False),
    ],
)
def test_who_sends_what_any_model_overflows_on_is_to_blame(datatype: str, value: float, client: bool) -> None:
    """A client must not have a release taken back by numbers that are finite, but only just."""
    inputs = {"x": np.array([1, value], DTYPES[datatype])}
    with pytest.raises(InputError if client else EngineError), values.Blame(inputs):
        values.check_finite(np.array([np.inf]))
