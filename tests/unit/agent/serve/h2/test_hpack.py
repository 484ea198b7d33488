"""Header compression: RFC 7541's examples, another implementation as the judge, and bombs."""

from __future__ import annotations

import contextlib

import hpack as other
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.grpc.h2 import hpack, huffman
from edgekit_agent.serve.grpc.h2.errors import COMPRESSION_ERROR, H2Error

HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
NAMES = st.sampled_from([b"te", b":path", b"accept", b"x-one", b"x-two", b"content-type", b"a" * 200])
LARGE = b"a value that is large"  # stands for one: hypothesis cannot print a failure of hundreds of kilobytes
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=60) | st.just(LARGE)), max_size=12)


def large(fields: list[hpack.Field]) -> list[hpack.Field]:
    return [(name, b"v" * 3000 if value == LARGE else value) for name, value in fields]


def decoder(max_list: int = 65536, fields: int = 1000) -> hpack.Decoder:
    return hpack.Decoder(max_list, fields)


def test_requests_of_rfc_7541_c4() -> None:
    """Appendix C.4: three requests with Huffman coding on one connection."""
    coding = decoder()
    common = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/")]
    first = coding.decode(bytes.fromhex("828684418cf1e3c2e5f23a6ba0ab90f4ff"))
    assert first == [*common, (b":authority", b"www.example.com")]
    assert coding.table_size == 57
    second = coding.decode(bytes.fromhex("828684be5886a8eb10649cbf"))
    assert second == [*common, (b":authority", b"www.example.com"), (b"cache-control", b"no-cache")]
    third = coding.decode(bytes.fromhex("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"))
    assert third == [
        (b":method", b"GET"),
        (b":scheme", b"https"),
        (b":path", b"/index.html"),
        (b":authority", b"www.example.com"),
        (b"custom-key", b"custom-value"),
    ]
    assert coding.table_size == 164


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_huffman_undoes_another_encoder(text: bytes) -> None:
    assert huffman.decode(HUFFMAN.encode(text)) == text


@given(st.binary(max_size=40))
@settings(deadline=None)
def test_huffman_judges_as_another_decoder(data: bytes) -> None:
    def theirs() -> bytes | None:
        with contextlib.suppress(other.HPACKDecodingError):
            return bytes(other.huffman_table.decode_huffman(data))
        return None

    def ours() -> bytes | None:
        with contextlib.suppress(H2Error):
            return huffman.decode(data)
        return None

    assert ours() == theirs()


@given(st.lists(st.tuples(FIELDS, st.booleans(), st.sampled_from([None, 0, 100, 4096])), max_size=6))
@settings(deadline=None)
def test_blocks_of_another_encoder(blocks: list[tuple[list[hpack.Field], bool, int | None]]) -> None:
    """One connection: the dynamic table grows, shrinks, overflows, and both sides agree all the time."""
    encoder, coding = other.Encoder(), decoder()
    for few, packed, size in blocks:
        fields = large(few)
        if size is not None:
            encoder.header_table_size = size
        assert coding.decode(encoder.encode(fields, huffman=packed)) == fields
        assert coding.table_size == encoder.header_table._current_size <= hpack.TABLE_SIZE


@given(st.lists(st.binary(max_size=80), max_size=5))
@settings(max_examples=400, deadline=None)
def test_anything_is_decoded_or_refused(blocks: list[bytes]) -> None:
    """As another decoder would, on one table; nothing but H2Error, and the table keeps its bound."""
    coding, judge = decoder(), other.Decoder(max_header_list_size=1 << 20)
    for block in blocks:
        try:
            fields = coding.decode(block)
        except H2Error as exc:
            assert exc.code == COMPRESSION_ERROR
            return
        assert fields == [(bytes(name), bytes(value)) for name, value in judge.decode(block, raw=True)]
        assert coding.table_size <= hpack.TABLE_SIZE


@given(FIELDS)
@settings(deadline=None)
def test_what_we_encode_another_decodes(few: list[hpack.Field]) -> None:
    fields = large(few)
    judge = other.Decoder(max_header_list_size=1 << 20)
    judge.header_table_size = 0
    judge.max_allowed_table_size = 0
    found = judge.decode(hpack.NO_TABLE + hpack.encode(fields), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in found] == fields


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("80", "index 0"),
        ("be", "index 62 of an empty table"),
        ("ff80808080", "a number that ends early"),
        ("ffffffffff0f", "a number beyond 2^28"),
        ("40", "no name"),
        ("4003616263", "no value"),
        ("00036162", "a name that ends early"),
        ("0084ffffffff00", "the end-of-string symbol"),
        ("008100" + "00", "padding that is not ones"),
        ("0082ffff00", "padding of more than seven bits"),
        ("8220", "a size update behind a field"),
        ("3fe21f", "a table larger than announced"),
    ],
)
def test_refused(block: str, why: str) -> None:
    with pytest.raises(H2Error) as caught:
        decoder().decode(bytes.fromhex(block))
    assert caught.value.code == COMPRESSION_ERROR, why


def test_a_bomb_is_counted_and_not_kept() -> None:
    """One large entry, then thousands of one-octet references to it: 4 KiB each when unpacked."""
    coding = decoder(max_list=16384)
    entry = b"\x40\x01a" + hpack._encode_integer(4000, 7, 0) + b"v" * 4000
    assert coding.decode(entry + b"\xbe" * 20000) is None
    assert coding.decode(b"\xbe") == [(b"a", b"v" * 4000)], "the table is right all the same"


def test_more_fields_than_allowed() -> None:
    assert decoder(fields=3).decode(b"\x82" * 3) is not None
    assert decoder(fields=3).decode(b"\x82" * 4) is None


def test_an_entry_larger_than_the_table_empties_it() -> None:
    coding = decoder()
    coding.decode(b"\x40\x01a\x01b")
    assert coding.table_size == 34
    coding.decode(b"\x40\x01a" + hpack._encode_integer(5000, 7, 0) + b"v" * 5000)
    assert coding.table_size == 0
