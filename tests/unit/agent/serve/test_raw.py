"""Which bodies are a pipeline's, and what a model without one says to them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit_agent.serve import raw
from edgekit_agent.serve.message import Request

JPEG, PNG, WAV = b"\xff\xd8\xff\xe0rest", b"\x89PNG\r\n\x1a\nrest", b"RIFF\0\0\0\0WAVErest"


def request(kind: str | None, body: bytes = b"") -> Request:
    headers = {} if kind is None else {b"content-type": kind.encode()}
    return Request(b"POST", b"/v2/models/m/infer", headers, body, True, 0)


def model(*kinds: str) -> Any:
    return SimpleNamespace(processor=SimpleNamespace(content_types=kinds) if kinds else None)


@pytest.mark.parametrize(
    ("kind", "body", "meant"),
    [
        ("image/jpeg", b"", True),
        ("IMAGE/PNG ; q=1", b"", True),
        ("audio/wav", b"", True),
        ("application/json", JPEG, False),
        ("application/json", b"{}", False),
        (None, b"{}", False),
        (None, JPEG, True),
        ("application/octet-stream", PNG, True),
        ("application/x-www-form-urlencoded", WAV, True),
        ("application/x-www-form-urlencoded", b"RIFF\0\0\0\0AVI rest", False),
    ],
)
def test_files_are_told_by_type_or_by_their_first_bytes(kind: str | None, body: bytes, meant: bool) -> None:
    assert raw.is_raw(request(kind, body), None) is meant
    assert raw.is_raw(request(kind, body), model("audio/wav")) is meant


def test_a_text_is_json_where_the_model_takes_no_texts() -> None:
    """Browsers send JSON as text/plain when they are not told otherwise."""
    assert not raw.is_raw(request("text/plain;charset=UTF-8", b"{}"), None)
    assert not raw.is_raw(request("text/plain", b"{}"), model())
    assert not raw.is_raw(request("text/plain", b"{}"), model("audio/wav"))
    assert raw.is_raw(request("text/plain;charset=UTF-8", b"hello"), model("text/plain"))


def test_what_a_model_does_not_take_is_415() -> None:
    with pytest.raises(raw.NotTaken, match="takes tensors, not image/jpeg") as refused:
        raw.prepare(model(), "image/jpeg", JPEG)
    assert refused.value.http_status == 415
    with pytest.raises(raw.NotTaken, match="takes audio/wav, not image/gif"):
        raw.prepare(model("audio/wav"), "image/gif", b"")
    with pytest.raises(raw.NotTaken) as refused:
        raw.prepare(model(), "image/" + "x" * 10_000, b"")
    assert len(refused.value.message) < 200


def test_only_short_texts_are_light() -> None:
    assert raw.heavy(request("image/jpeg", JPEG)) and raw.heavy(request("audio/wav", WAV))
    assert raw.heavy(request("text/plain", b"a" * 5000))
    assert not raw.heavy(request("text/plain", b"a" * 50))
