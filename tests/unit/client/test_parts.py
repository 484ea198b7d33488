"""Addresses, heads, tensors and values: everything of the client that needs no socket."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekit.client import Client, _tensors
from edgekit.client._address import DEFAULT, ENVIRONMENT, Address, choose, parse
from edgekit.client._http import Ask, NotAnAgent, parse_head, room
from edgekit.client._model import Array, Tensor, as_input
from edgekit.dtypes import DTYPE_NAMES, DTYPES
from edgekit.errors import DataError, InputError

HERE = Address(host="127.0.0.1", port=8000)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/a.sock", Address(path="/run/a.sock")),
        ("unix:///run/a.sock", Address(path="/run/a.sock")),
        ("unix:a.sock", Address(path="a.sock")),
        ("/run/a.sock", Address(path="/run/a.sock")),
        ("http://127.0.0.1:8000", HERE),
        ("http://127.0.0.1:8000/", HERE),
        ("127.0.0.1:8000", HERE),
        ("https://board-7.local:8443", Address(host="board-7.local", port=8443, tls=True)),
        ("http://[::1]:80", Address(host="::1", port=80)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    ["", "unix:", "http://", "http://x", "http://x:0", "http://x:70000", "http://x:1/v2", "ftp://x:1",
     "http://u:p@x:1", "http://x:1?q", "x:1\r\nEvil: yes", "http://x y:1", "unix:/a\0b"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert caught.value.hint


def test_which_address_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    assert tuple(map(str, choose(None))) == DEFAULT
    monkeypatch.setenv(ENVIRONMENT, "unix:/a, http://127.0.0.1:8000,")
    assert choose(None) == (Address(path="/a"), HERE)
    assert choose(Path("/b")) == (Address(path="/b"),)
    assert choose(["/b", "127.0.0.1:8000"]) == (Address(path="/b"), HERE)
    with pytest.raises(InputError):
        choose([])


@pytest.mark.parametrize(
    ("text", "local"),
    [("/a", True), ("127.3.2.1:1", True), ("[::1]:1", True), ("localhost:1", True),
     ("127.0.0.1.example.com:1", False), ("10.0.0.1:1", False), ("localhost.example.com:1", False)],
)  # fmt: skip
def test_what_is_this_machine(text: str, local: bool) -> None:
    assert parse(text).is_local is local


def test_a_token_never_travels_in_the_clear() -> None:
    for address in ("https://10.0.0.1:8000", "http://127.0.0.1:8000", "unix:/a"):
        Client(address, token="secret").close()
    with pytest.raises(InputError, match="in the clear"):
        Client(["unix:/a", "http://10.0.0.1:8000"], token="secret")
    for token in ("two words", "new\nline", "ä"):
        with pytest.raises(InputError):
            Client("unix:/a", token=token)


@pytest.mark.parametrize(
    "options", [{"timeout_s": 0}, {"timeout_s": math.nan}, {"retries": -1}, {"connections": 0}]
)
def test_settings_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Client("unix:/a", **options)


def test_a_request_head() -> None:
    ask = Ask("POST", "/v2/models/m/infer", 0.0, (b"{}", b"1234"), 2, "Accept: */*\r\n")
    assert ask.head(HERE) == (
        b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n"
        b"Inference-Header-Content-Length: 2\r\nContent-Type: application/octet-stream\r\n"
        b"Content-Length: 6\r\n\r\n"
    )
    assert b"Content-Length" not in Ask("GET", "/v2", 0.0).head(HERE)


def test_an_answers_head() -> None:
    head = parse_head(
        b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12 \r\nInference-Header-Content-Length: 5", HERE, 99
    )
    assert (head.status, head.length, head.json_size, head.keep_alive) == (200, 12, 5, True)
    assert (room(head) + 5) % 64 == 0
    busy = parse_head(b"HTTP/1.0 503 Busy\r\nContent-Length: 0\r\nRetry-After: 7", HERE, 99)
    assert (busy.retry_after_s, busy.keep_alive) == (7.0, False)
    dated = parse_head(
        b"HTTP/1.1 503\r\nContent-Length: 0\r\nRetry-After: Fri, 1 Jan 2027 00:00:00 GMT", HERE, 9
    )
    assert dated.retry_after_s == 1.0
    assert not parse_head(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: a, Close", HERE, 9).keep_alive


@pytest.mark.parametrize(
    "data",
    [
        b"", b"SSH-2.0-OpenSSH", b"HTTP/2 200 OK\r\nContent-Length: 0",
        b"HTTP/1.1 OK\r\nContent-Length: 0",
        b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK\r\nContent-Length: -1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1e3",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n folded: x", b"HTTP/1.1 200 OK\r\nContent-Length : 1",
        b"HTTP/1.1 200 OK\nContent-Length: 1", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nno colon",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nInference-Header-Content-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
    ],
)  # fmt: skip
def test_heads_that_are_refused(data: bytes) -> None:
    with pytest.raises(NotAnAgent):
        parse_head(data, HERE, 99)


# --- tensors


def answered(outputs: list[dict[str, Any]], tail: bytes = b"") -> tuple[memoryview, int | None]:
    text = json.dumps({"model_name": "m", "model_version": "1", "outputs": outputs}).encode()
    return memoryview(text + tail), len(text) if tail else None


def encoded(array: Array, name: str) -> tuple[bytes, bytes | memoryview]:
    """The JSON and the tensor of a request with one input."""
    blob = _tensors.raw(array, name)
    return _tensors.encode({"x": (array, name)}, {"x": blob}, {}), blob


@given(
    st.sampled_from(sorted(DTYPES)).flatmap(
        lambda name: hnp.arrays(
            DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
        )
    )
)
def test_every_array_survives_the_wire(array: np.ndarray[Any, Any]) -> None:
    name = DTYPE_NAMES[array.dtype]
    document, blobs = encoded(array, name)
    (sent,) = json.loads(document)["inputs"]
    assert sent["shape"] == list(array.shape) and sent["parameters"]["binary_data_size"] == array.nbytes
    body, size = answered([sent], bytes(blobs))
    found = _tensors.decode(body, size)["x"]
    assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=8))
def test_texts_survive_the_wire(texts: list[str | bytes]) -> None:
    array, name = as_input(np.array([*texts, ""], object)[:-1], Tensor("x", "BYTES", (-1,)))
    document, blobs = encoded(array, name)
    (sent,) = json.loads(document)["inputs"]
    body, size = answered([sent], bytes(blobs))
    assert list(_tensors.decode(body, size)["x"]) == [t.encode() if isinstance(t, str) else t for t in texts]


def test_foreign_byte_order_and_strides() -> None:
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    sent, name = as_input(array, Tensor("x", "INT32", (-1, 2)))
    _, blob = encoded(sent, name)
    assert bytes(blob) == np.ascontiguousarray(array, "<i4").tobytes()


def test_answers_in_json() -> None:
    body, _ = answered(
        [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2.5]},
            {"name": "c", "datatype": "BYTES", "shape": [2], "data": ["0.9:1:yes", "0.1:0"]},
        ]
    )
    found = _tensors.decode(body, None)
    assert found["y"].dtype == np.float32 and found["y"].tolist() == [[1.0, 2.5]]
    assert found["c"].tolist() == [b"0.9:1:yes", b"0.1:0"] and (found.model, found.version) == ("m", "1")


Y = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
BINARY = {"parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("outputs", "tail"),
    [
        ([Y], b""),
        ([Y | {"data": [1]}], b""),
        ([Y | {"data": ["a", "b"]}], b""),
        ([Y | {"data": 3}], b""),
        ([Y | {"datatype": "FP8", "data": [1, 2]}], b""),
        ([Y | {"shape": [-1, 2], "data": [1, 2]}], b""),
        ([Y | {"shape": "12", "data": [1, 2]}], b""),
        ([Y | {"name": 7, "data": [1, 2]}], b""),
        ([Y | BINARY], b"1234567"),
        ([Y | BINARY], b"123456789"),
        ([Y | {"parameters": {"binary_data_size": 4}}], b"1234"),
        ([Y | {"parameters": {"binary_data_size": -4}}], b"1234"),
        ([Y | {"parameters": {"binary_data_size": True}}], b"1"),
        ([Y | BINARY, Y | BINARY], b"1234567812345678"),
        ([{"name": "t", "datatype": "BYTES", "shape": [1], **BINARY}], struct.pack("<I", 5) + b"1234"),
        ([{"name": "t", "datatype": "BYTES", "shape": [1], **BINARY}], struct.pack("<I", 3) + b"1234"),
        ([{"name": "t", "datatype": "BYTES", "shape": [1 << 40], **BINARY}], bytes(8)),
        ([{"name": "t", "datatype": "BYTES", "shape": [1], "data": [1]}], b""),
        ("text", b""),
        ([1], b""),
    ],
)
def test_answers_that_are_refused(outputs: Any, tail: bytes) -> None:
    body, size = answered(outputs, tail)
    with pytest.raises(_tensors.Malformed):
        _tensors.decode(body, size)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"outputs": null}'])
def test_bodies_that_are_no_answer(text: bytes) -> None:
    with pytest.raises(_tensors.Malformed):
        _tensors.decode(memoryview(text), None)


@given(st.binary(max_size=300), st.integers(1, 300))
def test_any_bytes_are_an_answer_or_refused(data: bytes, size: int) -> None:
    if size <= len(data):
        with pytest.raises(_tensors.Malformed):
            _tensors.decode(memoryview(data), size)


def test_what_an_error_says() -> None:
    assert _tensors.error_text(memoryview(b'{"error":"no such model"}'), "?") == "no such model"
    assert _tensors.error_text(memoryview(b"<html>gateway"), "?") == "<html>gateway"
    assert _tensors.error_text(memoryview(b'{"error":{"code":1}}'), "?") == "?"
    assert len(_tensors.error_text(memoryview(b"x" * 10_000), "?")) == 200


# --- values


REAL = Tensor("x", "FP32", (-1, 2))
STORED = Tensor("x", "FP32", (-1, 2), stored_datatype="INT8")


@pytest.mark.parametrize(
    ("value", "tensor", "datatype"),
    [
        (np.zeros((1, 2), np.float32), REAL, "FP32"),
        (np.zeros((1, 2), np.float64), REAL, "FP32"),
        ([[1, 2.5]], REAL, "FP32"),
        ([[1, 2]], REAL, "FP32"),
        (np.zeros((1, 2), np.uint8), REAL, "FP32"),
        (np.zeros((1, 2), np.int8), STORED, "INT8"),
        (np.zeros((1, 2), np.float16), STORED, "FP32"),
        ([[1, 2]], Tensor("x", "INT64", (-1, 2)), "INT64"),
        (np.array([1, 255]), Tensor("x", "UINT8", (-1,)), "UINT8"),
        (np.array([True]), Tensor("x", "BOOL", (-1,)), "BOOL"),
        (["a", "b"], Tensor("x", "BYTES", (-1,)), "BYTES"),
    ],
)
def test_values_that_keep_their_meaning(value: Any, tensor: Tensor, datatype: str) -> None:
    array, name = as_input(value, tensor)
    assert name == datatype and array.shape == np.asarray(value).shape
    if name != "BYTES":
        assert array.dtype == DTYPES[datatype] and np.array_equal(array, np.asarray(value))


@pytest.mark.parametrize(
    ("value", "tensor", "text"),
    [
        (np.zeros((1, 2), np.int32), STORED, "may mean either"),
        ([[1, 2]], STORED, "may mean either"),
        (np.zeros((1, 2)), Tensor("x", "INT8", (-1, 2)), "takes INT8, not FP64"),
        (np.array([256]), Tensor("x", "UINT8", (-1,)), "out of range"),
        (np.array([-1]), Tensor("x", "UINT8", (-1,)), "out of range"),
        (np.array([1e39]), Tensor("x", "FP32", (-1,)), "out of range"),
        (np.array([True]), REAL, "not BOOL"),
        (np.array([1]), Tensor("x", "BOOL", (-1,)), "takes BOOL"),
        (np.array([1j]), REAL, "complex"),
        (["a"], REAL, "takes FP32"),
        ([1], Tensor("x", "BYTES", (-1,)), "takes texts"),
        ([[1], [1, 2]], REAL, "not an array"),
    ],
)
def test_values_that_would_change_their_meaning(value: Any, tensor: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        as_input(value, tensor)


def test_importing_the_client_is_light() -> None:
    code = (
        "import sys, edgekit; edgekit.Client('unix:/a').close();"
        "names = {n.partition('.')[0] for n in sys.modules if getattr(sys.modules[n], '__file__', None)};"
        "print(*sorted(names - set(sys.stdlib_module_names) - {'numpy'}));"
        "print(*sorted(n for n in sys.modules if n.startswith('edgekit')));"
        "print({'asyncio', 'ssl'} & set(sys.modules) or '')"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=_env())
    assert done.returncode == 0, done.stderr
    strangers, ours, heavy = done.stdout.splitlines()
    assert strangers == "edgekit" and heavy == ""
    assert all(
        name in ("edgekit", "edgekit.errors", "edgekit.dtypes") or "client" in name for name in ours.split()
    )


def _env() -> dict[str, str]:
    """-S keeps editable installs' hooks (and what they import) away, so the folders are named."""
    folders = [str(Path(__file__).parents[3]), str(Path(np.__file__).parents[1])]
    return {"PYTHONPATH": ":".join(folders), "PATH": "/usr/bin"}
