"""Forms as bytes, whole and broken. An HTTP client's own forms: tests/conformance/test_rest.py."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit_agent.serve import multipart

TYPE = b"multipart/form-data; boundary=xYz"


def form(*parts: bytes, end: bytes = b"--xYz--\r\n") -> bytes:
    return b"".join(b"--xYz\r\n" + part + b"\r\n" for part in parts) + end


def part(name: str = "x", data: bytes = b"1", extra: str = "") -> bytes:
    return f'Content-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + data


def test_parts_in_their_order() -> None:
    typed = b'content-disposition: form-data; name=y; filename="a;name=b.png"\r\n'
    typed += b"Content-Type: Image/PNG; q=1\r\n\r\n"
    found = multipart.parse(form(part(data=b"\r\n--xY\r\n\0\xff"), typed + b"2", part("\u00e9", b"")), TYPE)
    assert [(p.name, p.data, p.content_type) for p in found] == [
        ("x", b"\r\n--xY\r\n\0\xff", ""),
        ("y", b"2", "image/png"),
        ("\u00e9", b"", ""),
    ]


def test_what_comes_before_and_after_does_not_matter() -> None:
    body = b"preamble\r\n" + form(part()) + b"epilogue --xYz"
    assert [p.data for p in multipart.parse(body, b'multipart/form-data; boundary="xYz"; a=b')] == [b"1"]


@settings(deadline=None)
@given(st.lists(st.tuples(st.text("abz_09 \u00e9"), st.binary(max_size=40)), min_size=1, max_size=5))
def test_every_form_comes_back(parts: list[tuple[str, bytes]]) -> None:
    found = multipart.parse(form(*(part(name, data) for name, data in parts)), TYPE)
    assert [(p.name, p.data) for p in found] == parts


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (form(part()), b"multipart/form-data", "without a boundary"),
        (form(part()), b"multipart/form-data; boundary=" + b"a" * 71, "without a boundary"),
        (form(part()), b"multipart/form-data; boundary=other", "does not hold its boundary"),
        (b"", TYPE, "does not hold its boundary"),
        (form(part(), end=b""), TYPE, "cut short"),
        (form(part())[:-6], TYPE, "cut short"),
        (form(b"\r\n\r\n1"), TYPE, "broken header"),
        (form(b"no header"), TYPE, "no header"),
        (form(b"Broken\r\n\r\n1"), TYPE, "broken header"),
        (form(b"Content-Disposition: form-data\r\n\r\n1"), TYPE, "no name"),
        (form(b'Content-Disposition: attachment; name="x"\r\n\r\n1'), TYPE, "no name"),
        (form(b'Content-Disposition: form-data; name="\xff"\r\n\r\n1'), TYPE, "not UTF-8"),
        (form(part(extra="; " + "a" * 5000)), TYPE, "too large"),
        (form(*[part()] * 257), TYPE, "more than 256"),
    ],
)
def test_a_broken_form_is_refused(body: bytes, content_type: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        multipart.parse(body, content_type)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_nothing_but_a_typed_error_escapes(noise: bytes, at: int) -> None:
    whole = form(part(), part("y", b"2"))
    for body in (noise, whole[:at], whole[:at] + noise + whole[at:]):
        with contextlib.suppress(InputError):
            multipart.parse(body, TYPE)
