"""Infer requests as bytes: what is taken, what is refused, and that nothing else happens."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, InputError
from edgekit.runtimes._base import DTYPE_NAMES, DTYPES
from edgekit_agent.serve import oip

SPECS = (TensorSpec("y", "FP32", (-1, 3)), TensorSpec("z", "INT64", (2,)))


def tensor(**fields: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **fields}


def body(*tensors: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"inputs": list(tensors), **fields}).encode()


@given(
    array=st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: hnp.arrays(
            DTYPES[name],
            hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
            elements={"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else None,
        )
    ),
    nested=st.booleans(),
    pad=st.integers(0, 7),
)
def test_every_tensor_arrives_as_it_was_sent(array: np.ndarray[Any, Any], nested: bool, pad: int) -> None:
    name = DTYPE_NAMES[array.dtype]
    common = {"name": "x", "datatype": name, "shape": list(array.shape)}
    data = array.tolist() if nested and array.ndim else array.ravel().tolist()
    found = oip.decode(body({**common, "data": data}), None).inputs["x"]
    assert found.dtype == array.dtype and found.shape == array.shape and np.array_equal(found, array)
    raw = array.tobytes()
    head = body({**common, "parameters": {"binary_data_size": len(raw)}}) + b" " * pad
    found = oip.decode(head + raw, len(head)).inputs["x"]
    assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == raw
    assert found.flags.aligned


@pytest.mark.parametrize(
    ("request_body", "words"),
    [
        (b"", "failed to parse"),
        (b"{bad", "failed to parse"),
        (b"\xff\xfe", "failed to parse"),
        (b"[" * 100_000, "failed to parse"),
        (b"[]", "must be a JSON object"),
        (b"{}", "no inputs"),
        (b'{"inputs": {}}', "list of objects"),
        (b'{"inputs": [1]}', "list of objects"),
        (body(tensor(), tensor()), "given twice"),
        (body(tensor(), id=7), "id must be a string"),
        (body(tensor(name="")), "name must be"),
        (body(tensor(datatype="FP99")), "not supported"),
        (body(tensor(datatype="BYTES", data=["a", "b"])), "not supported"),
        (body(tensor(shape=[-1])), "shape must be"),
        (body(tensor(shape=[2.0])), "shape must be"),
        (body(tensor(shape=[True, 2])), "shape must be"),
        (body(tensor(shape=[1] * 17)), "shape must be"),
        (body(tensor(shape=[10**4000] * 16)), "shape must be"),
        (body(tensor(shape=[3])), "wants 3 values, data has 2"),
        (body(tensor(shape=[2**40] * 8)), "values, data has 2"),
        (body(tensor(data=7)), "list of numbers"),
        (body(tensor(data=["1", "2"])), "data is not FP32"),
        (body(tensor(data=[[1], 2])), "data is not FP32"),
        (body(tensor(data=[None, 1])), "data is not FP32"),
        (body(tensor(data=[True, False])), "data is not FP32"),
        (body(tensor(data=[1e39, 1])), "out of range"),
        (body(tensor(data=[10**400, 1])), "out of range"),
        (body(tensor(datatype="INT8", data=[1, 128])), "out of range"),
        (body(tensor(datatype="UINT64", data=[1, -1])), "out of range"),
        (body(tensor(datatype="INT8", data=[1.0, 2.0])), "data is not INT8"),
        (body(tensor(datatype="BOOL", data=[1, 0])), "data is not BOOL"),
        (body(tensor(data=[1, "a" * 100_000], shape=[2])), "data is not FP32"),
        (body({"name": "x", "datatype": "FP32", "shape": [1]}), "no data"),
        (body(tensor(parameters=[])), "must be an object"),
        (body(tensor(parameters={"binary_data_size": 8})), "left in the body"),
        (body(tensor(parameters={"binary_data_size": 4})), "must be 8"),
        (body(tensor(parameters={"binary_data_size": "8"})), "must be 8"),
        (body(tensor(parameters={"shared_memory_region": "r"})), "shared memory"),
        (body(tensor(), outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (body(tensor(), outputs=[{"name": "y", "parameters": {"classification": -1}}]), "classification"),
        (body(tensor(), outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data"),
    ],
)
def test_mistakes_are_named(request_body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        oip.decode(request_body, None)
    assert len(caught.value.message) < 600


def test_the_binary_part_must_fit_exactly() -> None:
    head = body(tensor(parameters={"binary_data_size": 8}))
    raw = np.array([1, 2], "<f4").tobytes()
    assert oip.decode(head + raw, len(head)).inputs["x"].tolist() == [1.0, 2.0]
    for message, size, words in (
        (head + raw[:-1], len(head), "left in the body"),
        (head + raw + b"x", len(head), "1 bytes follow"),
        (head, len(head) + 1, "does not fit"),
        (head, 0, "does not fit"),
        (head + raw, len(head) - 1, "failed to parse"),
    ):
        with pytest.raises(InputError, match=words):
            oip.decode(message, size)
    flags = body(tensor(datatype="BOOL", parameters={"binary_data_size": 2}))
    with pytest.raises(InputError, match="0 or 1"):
        oip.decode(flags + b"\x01\x02", len(flags))


@given(data=st.binary(max_size=200), size=st.none() | st.integers(-5, 300))
def test_any_bytes_are_taken_or_refused(data: bytes, size: int | None) -> None:
    with contextlib.suppress(InputError):
        oip.decode(data, size)


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "FP32", "BOOL", ""]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=30,
    )
)
def test_any_json_is_taken_or_refused(document: Any) -> None:
    fields = document if isinstance(document, dict) else {}
    with contextlib.suppress(InputError):
        oip.decode(json.dumps({"inputs": [document], **fields}).encode(), None)


def encode(request: oip.InferRequest, y: list[list[float]], labels: tuple[str, ...] = ()) -> Any:
    outputs: dict[str, Any] = {"y": np.array(y, np.float32), "z": np.array([5, 6], np.int64)}
    return oip.encode("m", "1", request, SPECS, outputs, labels)


def asked(*outputs: dict[str, Any], **fields: Any) -> oip.InferRequest:
    return oip.decode(body(tensor(), outputs=list(outputs), **fields), None)


def test_answers_mix_json_and_binary_in_the_order_asked() -> None:
    request = asked({"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}, id="ab\ud800")
    answer = encode(request, [[1, 2, 3]])
    head = json.loads(answer.body[: answer.json_size])
    assert head["id"] == "ab\ud800" and [entry["name"] for entry in head["outputs"]] == ["z", "y"]
    assert head["outputs"][1]["data"] == [1.0, 2.0, 3.0] and "data" not in head["outputs"][0]
    assert answer.body[answer.json_size :] == np.array([5, 6], "<i8").tobytes()
    plain = encode(asked(), [[1, 2, 3]])
    assert plain.json_size == 0 and len(json.loads(plain.body)["outputs"]) == 2
    everything = encode(asked(parameters={"binary_data_output": True}), [[1, 2, 3]])
    assert len(everything.body) - everything.json_size == 12 + 16


def test_classification_ranks_and_labels_the_first_output_only() -> None:
    request = asked(
        {"name": "y", "parameters": {"classification": 2}}, {"name": "z", "parameters": {"classification": 9}}
    )
    first, second = json.loads(encode(request, [[1, 3, 2], [0, -1, 0]], ("a", "b", "c")).body)["outputs"]
    assert first["shape"] == [2, 2] and first["datatype"] == "BYTES"
    assert first["data"] == ["3.000000:1:b", "2.000000:2:c", "0.000000:0:a", "0.000000:2:c"]
    assert second == {"name": "z", "datatype": "BYTES", "shape": [2], "data": ["6:1", "5:0"]}


def test_unknown_outputs_and_values_that_json_lacks() -> None:
    with pytest.raises(InputError, match="unknown output 'w', the model has y, z"):
        oip.check_wanted(asked({"name": "w"}), SPECS)
    with pytest.raises(EngineError, match="NaN or infinity"):
        encode(asked(), [[math.nan, 1, 2]])
    binary = encode(asked({"name": "y", "parameters": {"binary_data": True}}), [[math.inf, 1, 2]])
    assert np.isinf(np.frombuffer(binary.body[-12:], "<f4")[0])
