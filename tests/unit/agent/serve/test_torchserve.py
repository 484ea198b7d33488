"""What TorchServe's request bodies mean for a model, without a server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgekit.bundle.model import TensorSpec
from edgekit.errors import InputError
from edgekit_agent.serve import torchserve
from tests.unit.agent.serve.test_multipart import TYPE, form, part

ONE = (TensorSpec("x", "FP32", (-1, 2)),)
TWO = (TensorSpec("a", "INT32", (-1,)), TensorSpec("b", "FP32", (-1, 2)))
TEXT = (TensorSpec("t", "BYTES", (-1,)),)
FIXED = (TensorSpec("x", "FP32", (2,)),)
FORM = TYPE.decode()
RAW = np.array([[1, 2], [3, 4]], "<f4").tobytes()


def read(body: bytes, media: str, specs: tuple[TensorSpec, ...]) -> tuple[dict[str, Any], bool, bool]:
    arrays, how = torchserve.read(body, media.encode(), specs)
    return {name: array.tolist() for name, array in arrays.items()}, how.single, how.envelope


@pytest.mark.parametrize(
    ("body", "media", "specs", "wanted"),
    [
        (b"[1, 2]", "application/json", ONE, ({"x": [[1, 2]]}, True, False)),
        (b"[[1, 2]]", "application/json", ONE, ({"x": [[1, 2]]}, False, False)),
        (b"[[1, 2], [3, 4]]", "Application/JSON; a=b", ONE, ({"x": [[1, 2], [3, 4]]}, False, False)),
        (b'{"x": [1, 2]}', "application/json", ONE, ({"x": [[1, 2]]}, True, False)),
        (b'{"data": [1, 2]}', "application/json", ONE, ({"x": [[1, 2]]}, True, False)),
        (b'{"body": [[1, 2]]}', "application/json", ONE, ({"x": [[1, 2]]}, False, False)),
        (b'{"instances": [[1, 2]]}', "application/json", ONE, ({"x": [[1, 2]]}, False, True)),
        (b'{"a": 1, "b": [1, 2]}', "application/json", TWO, ({"a": [1], "b": [[1, 2]]}, True, False)),
        (b'[{"a": 1, "b": [1, 2]}]', "application/json", TWO, ({"a": [1], "b": [[1, 2]]}, False, False)),
        (b" [1, 2]", "application/x-www-form-urlencoded", ONE, ({"x": [[1, 2]]}, True, False)),
        (b"x=[1,%202]", "application/x-www-form-urlencoded", ONE, ({"x": [[1, 2]]}, True, False)),
        (b"a=1&b=[1,2]", "application/x-www-form-urlencoded", TWO, None),
        (b"[1, 2]", "text/plain", ONE, ({"x": [[1, 2]]}, True, False)),
        (b"[1, 2]", "", ONE, ({"x": [[1, 2]]}, True, False)),
        (RAW, "", ONE, ({"x": [[1, 2], [3, 4]]}, False, False)),
        (RAW, "application/octet-stream", ONE, ({"x": [[1, 2], [3, 4]]}, False, False)),
        (RAW[:8], "image/png", ONE, ({"x": [[1, 2]]}, True, False)),
        (RAW[:8], "", FIXED, ({"x": [1, 2]}, False, False)),
        (b"[5]", "text/plain", TEXT, ({"t": [b"[5]"]}, True, False)),
        (b'"[5]"', "application/json", TEXT, ({"t": [b"[5]"]}, True, False)),
        (b'{"b64": "/w=="}', "application/json", TEXT, ({"t": [b"\xff"]}, True, False)),
        (b"\xff", "image/jpeg", TEXT, ({"t": [b"\xff"]}, True, False)),
        (form(part("data", b"[1, 2]")), FORM, ONE, ({"x": [[1, 2]]}, True, False)),
        (form(part("x", RAW)), FORM, ONE, ({"x": [[1, 2], [3, 4]]}, False, False)),
        (
            form(part("data", b"[1,2]"), part("data", RAW[8:])), FORM, ONE,
            ({"x": [[1, 2], [3, 4]]}, False, False),
        ),
        (
            form(part("a", b"[7]"), part("b", b"[1,2]")), FORM, TWO,
            ({"a": [7], "b": [[1, 2]]}, False, False),
        ),
        (form(part("data", b"[hi")), FORM, TEXT, ({"t": [b"[hi"]}, True, False)),
    ],
)  # fmt: skip
def test_bodies(body: bytes, media: str, specs: tuple[TensorSpec, ...], wanted: Any) -> None:
    if wanted is None:
        with pytest.raises(InputError):
            read(body, media, specs)
    else:
        assert read(body, media, specs) == wanted


@pytest.mark.parametrize(
    ("body", "media", "specs", "words"),
    [
        (b"[1, 2", "application/json", ONE, "failed to parse"),
        (b"\xff", "application/json", ONE, "failed to parse"),
        (b"NaN", "application/json", FIXED, "out of range"),
        (b"[1, 2", "", ONE, "5 bytes are not a whole number"),
        (b"", "", ONE, "0 bytes are not"),
        (b"[[1], [1, 2]]", "application/json", ONE, "differ in length"),
        (b"[1, 2]", "application/json", TWO, "several inputs"),
        (RAW, "application/octet-stream", TWO, "several inputs"),
        (b'{"y": [1, 2]}', "application/json", ONE, "unknown input 'y'"),
        (b'{"x": [1, 2], "data": [1, 2]}', "application/json", ONE, "given twice"),
        (b"x", "application/x-www-form-urlencoded", ONE, "form is damaged"),
        (b"&".join([b"x=1"] * 300), "application/x-www-form-urlencoded", ONE, "form is damaged"),
        (form(), FORM, ONE, "no parts|boundary"),
        (form(part("y")), FORM, ONE, "unknown input 'y'"),
        (form(part("x", b"[1,2]"), part("x", b"[1,2,3]")), FORM, ONE, "differ in shape"),
        (b"x", "multipart/form-data", ONE, "boundary"),
    ],
)
def test_bodies_that_are_refused(body: bytes, media: str, specs: tuple[TensorSpec, ...], words: str) -> None:
    with pytest.raises(InputError, match=words):
        read(body, media, specs)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "BadRequestException"), (405, "MethodNotAllowedException"),
        (404, "ResourceNotFoundException"), (500, "InternalServerException"),
        (503, "ServiceUnavailableException"), (504, "GatewayTimeoutException"),
    ],
)  # fmt: skip
def test_errors_have_torchserves_shape(status: int, kind: str) -> None:
    answer = torchserve.error(status, "why\n\t{}")
    assert json.loads(answer.body) == {"code": status, "type": kind, "message": "why??{}"}
    assert answer.status == status
