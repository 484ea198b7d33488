"""Whatever comes as a body of a REST protocol: arrays of the model's types, or a typed error in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.bundle.model import TensorSpec
from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES
from edgekit_agent.serve import http_tools, oip, tfs_http, torchserve, values
from tests.unit.agent.serve.test_multipart import TYPE, form, part

SPECS = (TensorSpec("x", "FP32", (-1, 2)), TensorSpec("n", "UINT8", (-1,)), TensorSpec("t", "BYTES", (-1,)))
NAMES = ("x", "n", "t", "data", "instances", "b64", "parameters", "y")
MEDIA = (b"", b"application/json", b"text/plain", b"application/x-www-form-urlencoded", b"image/png", TYPE)
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
    | st.sampled_from([0, 1, 255, 256, -1, 1e39, 2**64, "AA==", "\ud800"])
)  # fmt: skip
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=16,
)
Read = Callable[[Any], Mapping[str, Array]]
READERS: dict[str, Read] = {
    "rows": lambda document: tfs_http.rows(document, SPECS),
    "rows of one": lambda document: tfs_http.rows(document, SPECS[:1]),
    "rows of text": lambda document: tfs_http.rows(document, SPECS[2:]),
    "columns": lambda document: tfs_http.columns(document, SPECS),
    "examples": lambda document: tfs_http.examples({"examples": document}, SPECS, 8),
    "context": lambda document: tfs_http.examples({"examples": [{}], "context": document}, SPECS, 8),
    "torchserve": lambda document: torchserve.read(json.dumps(document).encode(), MEDIA[1], SPECS)[0],
    "generate": lambda document: {s.name: values.fit("x", document, s.datatype, s.shape) for s in SPECS},
}


def check(read: Callable[[], Mapping[str, Array]]) -> None:
    try:
        arrays = read()
    except InputError as exc:
        text = str(exc)
        assert text and "\n" not in text and len(text) < 600
        return
    known = {spec.name: spec.datatype for spec in SPECS}
    for name, array in arrays.items():
        if known[name] == "BYTES":
            assert all(isinstance(item, bytes) for item in array.ravel().tolist())
        else:
            assert array.dtype == DTYPES[known[name]]


@pytest.mark.parametrize("name", READERS)
def test_documents(name: str) -> None:
    read = READERS[name]

    @settings(max_examples=150, deadline=None)
    @given(DOCUMENTS | st.lists(st.dictionaries(st.sampled_from(NAMES[:3]), DOCUMENTS), max_size=3))
    def run(document: Any) -> None:
        check(lambda: read(document))

    run()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(MEDIA), st.integers(0, 3))
def test_bytes(body: bytes, media: bytes, shape: int) -> None:
    body = (body, b"[" + body, form(part("x", body)), form(part("t", body), part("n", b"[1]")))[shape]
    for specs in (SPECS, SPECS[:1], SPECS[1:2], SPECS[2:]):
        check(lambda specs=specs: torchserve.read(body, media, specs)[0])  # type: ignore[misc]


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"name": st.just("x"), "datatype": st.sampled_from(["FP32", "UINT8", "BYTES", "?"])},
        optional={"shape": DOCUMENTS, "data": DOCUMENTS, "parameters": DOCUMENTS},
    ),
    st.binary(max_size=16),
)
def test_infer_requests(tensor: dict[str, Any], tail: bytes) -> None:
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "y", **tensor}]}).encode()
    for body, size in ((head, None), (head + tail, len(head)), (head[: len(tail)], None)):
        try:
            (array,) = oip.decode(body, size).inputs.values()
        except InputError as exc:
            assert "\n" not in str(exc)
        else:
            assert array.dtype in (np.dtype("<f4"), np.dtype("u1"))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_are_a_surprise_as_json(text: bytes) -> None:
    for read in (http_tools.json_value, http_tools.json_object):
        try:
            read(text)
        except InputError as exc:
            assert "\n" not in str(exc)
