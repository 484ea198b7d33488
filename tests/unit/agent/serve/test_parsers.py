"""Both parsers of HTTP/1.1 see the same requests, however the bytes are cut; the strict one in detail."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.parser_httptools import Parser as Llhttp
from edgekit_agent.serve.parser_python import Parser as Python
from edgekit_agent.serve.sink import BadRequest
from tests.attacks.http_cases import INNER, REFUSED

Seen = tuple[bytes, bytes, str, list[tuple[bytes, bytes]], bytes, bool]


class Recorder:
    """A sink that remembers whole requests."""

    def __init__(self, kind: type[Llhttp] | type[Python]) -> None:
        self.parser = kind(self)
        self.requests: list[Seen] = []
        self.ended = False

    def on_message_begin(self) -> None:
        self.url, self.body, self.head_done = b"", b"", False
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:  # trailers are dropped by the one and ignored by the connection of the other
            self.headers.append((name.lower(), value.strip(b" \t")))  # as the connection does

    def on_headers_complete(self) -> None:
        self.head_done = True

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        if self.ended:
            return
        parser = self.parser
        keep = parser.keep_alive()
        seen = (parser.method(), self.url, parser.version(), self.headers, self.body, keep)
        self.requests.append(seen)
        self.ended = not keep  # what follows is nobody's business

    def head_without_upgrade(self) -> bytes:
        return b""


def parse(kind: Any, *parts: bytes) -> tuple[list[Seen], bool]:
    """The requests, and whether all bytes were taken."""
    recorder = Recorder(kind)
    try:
        for part in parts:
            recorder.parser.feed(part)
    except BadRequest:
        return recorder.requests, recorder.ended
    return recorder.requests, True


def cut(message: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({place % (len(message) + 1) for place in places} | {0, len(message)})
    return [message[a:b] for a, b in pairwise(edges)]


TOKEN = st.text("abcXYZ019-_.!#", min_size=1, max_size=8).map(str.encode)
VALUE = st.text('abc xyz09,;="\t\xe9', max_size=12).map(lambda text: text.strip().encode("latin-1"))
CHUNK = st.tuples(st.binary(min_size=1, max_size=40), st.sampled_from([b"", b";a=b", b";x"]))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A well-formed request."""
    name = TOKEN.filter(lambda n: n.lower() not in (b"connection", b"upgrade"))
    fields = [b"Host: x", *(b"%s: %s" % pair for pair in draw(st.lists(st.tuples(name, VALUE), max_size=4)))]
    body = b""
    match draw(st.sampled_from(["none", "length", "chunks"])):
        case "length":
            body = draw(st.binary(max_size=60))
            fields.append(b"Content-Length:%d" % len(body))
        case "chunks":
            fields.append(b"Transfer-Encoding: %s" % draw(st.sampled_from([b"chunked", b"Chunked"])))
            parts = draw(st.lists(CHUNK, max_size=4))
            body = b"".join(b"%x%s\r\n%s\r\n" % (len(part), more, part) for part, more in parts)
            body += b"0\r\n" + draw(st.sampled_from([b"", b"X-Trailer: 1\r\n"])) + b"\r\n"
    if draw(st.booleans()):
        fields.append(b"Connection: " + draw(st.sampled_from([b"close", b"keep-alive", b"Keep-Alive, x"])))
    draw(st.randoms()).shuffle(fields)
    first = b"%s /%s HTTP/1.%d" % (
        draw(st.sampled_from([b"GET", b"POST", b"PUT"])), draw(TOKEN), draw(st.sampled_from([1, 1, 1, 0]))
    )  # fmt: skip
    if first.endswith(b"0"):
        fields = [field for field in fields if not field.startswith(b"Transfer")]
        body = body if any(field.startswith(b"Content-Length") for field in fields) else b""
    return b"\r\n".join([first, *fields]) + b"\r\n\r\n" + body


@given(st.lists(messages(), min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=8))
def test_good_requests_are_seen_alike_however_they_are_cut(good: list[bytes], places: list[int]) -> None:
    stream = b"".join(good)
    whole, taken = parse(Python, stream)
    assert taken and 1 <= len(whole) <= len(good)
    assert parse(Python, *cut(stream, places)) == (whole, True)
    assert parse(Llhttp, *cut(stream, places))[0] == whole


@settings(max_examples=400)
@given(
    st.one_of(messages(), st.sampled_from(sorted(REFUSED.values()))),
    st.lists(
        st.tuples(st.integers(0, 10_000), st.sampled_from(["", "twice", *"\r\n\t :;,0fF\0\x0b\xa0-+"])),
        max_size=3,
    ),
    st.lists(st.integers(0, 10_000), max_size=3),
)
@example(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [], [])
def test_the_strict_parser_takes_nothing_that_llhttp_sees_otherwise(
    message: bytes, edits: list[tuple[int, str]], places: list[int]
) -> None:
    data = bytearray(message + INNER)
    for place, what in edits:
        at = place % len(data)
        data[at : at + 1] = bytes(data[at : at + 1]) * 2 if what == "twice" else what.encode("latin-1")
    strict, taken = parse(Python, bytes(data))
    assert parse(Python, *cut(bytes(data), places)) == (strict, taken)
    other, _ = parse(Llhttp, bytes(data))
    both = min(len(strict), len(other))
    assert strict[:both] == other[:both]


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_at_once(case: str) -> None:
    """By the parser itself, or by the connection's rules about fields, which this recorder does not have."""
    elsewhere = (
        "field: no Host",
        "field: two Hosts",
        "HTTP/1.0",
        "HTTP/1.2",
        "HTTP/3.0",
        "HTTP/0.9",
        "CONNECT",
    )
    found, taken = parse(Python, REFUSED[case], INNER)
    assert (not taken and not found) or any(word in case for word in elsewhere), found


def test_a_header_sent_byte_by_byte_costs_no_more_than_its_length() -> None:
    recorder = Recorder(Python)
    message = b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a \t" * 8000 + b"\x01\r\n\r\n"
    with pytest.raises(BadRequest):
        for byte in message:
            recorder.parser.feed(bytes([byte]))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 5000, 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 5000, 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"a" * 5000, 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 0),
    ],
)
def test_bounds(data: bytes, status: int) -> None:
    recorder = Recorder(Python)
    recorder.parser = Python(recorder, 4096)
    if not status:
        recorder.parser.feed(data[:18])
        assert recorder.requests[0][2] == "2.0"  # the connection answers 505
        return
    with pytest.raises(BadRequest) as caught:
        recorder.parser.feed(data)
    assert caught.value.status == status
