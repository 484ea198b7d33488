"""Messages of gRPC out of pieces, compressed ones, timeouts, texts of errors."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.grpc import framing, status
from edgekit_agent.serve.grpc.framing import Compressed, DamagedError, Messages, TooLargeError, prefix
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.room import Buffers


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=8),
    st.lists(st.integers(1, 40)),
    st.booleans(),
)
@settings(deadline=None)
def test_messages_come_whole_whatever_the_pieces(
    messages: list[tuple[bool, bytes]], cuts: list[int], views: bool
) -> None:
    stream = b"".join(bytes((flag,)) + prefix(len(body))[1:] + body for flag, body in messages)
    found: list[tuple[bool, bytes]] = []
    reader = Messages(1000)
    while stream:
        size = cuts.pop() if cuts else len(stream)
        piece, stream = stream[:size], stream[size:]
        reader.feed(memoryview(piece) if views else piece)
        while (taken := reader.take()) is not None:
            found.append((taken[0], bytes(taken[1])))
    assert found == messages and reader.empty


def test_what_a_message_lacks() -> None:
    reader = Messages(1000)
    assert reader.missing() == 0
    reader.feed(b"\0\0")
    assert reader.missing() == 3
    reader.feed(prefix(10)[2:] + b"abc")
    assert reader.missing() == 7 and reader.take() is None
    reader.feed(b"defghij" + b"\0")
    assert reader.take() == (False, b"abcdefghij")
    assert reader.missing() == 4


def test_a_message_in_one_piece_is_not_copied() -> None:
    reader = Messages(1 << 20)
    piece = memoryview(prefix(100_000) + bytes(100_000))
    reader.feed(piece)
    taken = reader.take()
    assert taken is not None and isinstance(taken[1], memoryview) and taken[1].obj is piece.obj


@pytest.mark.parametrize("size", [100_000, 100_001, 100_013])
def test_a_message_in_pieces_ends_aligned(size: int) -> None:
    """Its last tensor, of a multiple of 16 octets, can be used where it lies."""
    reader = Messages(1 << 20)
    body = bytes(range(256)) * (size // 256 + 1)
    for piece in (prefix(size)[:3], prefix(size)[3:], body[:7], body[7:size]):
        reader.feed(piece)
    assert reader.missing() == 0
    taken = reader.take()
    assert taken is not None and taken[1] == body[:size] and reader.empty
    reader = Messages(1 << 20)
    for piece in (prefix(size) + body[:7], body[7:size]):
        reader.feed(piece)
    taken = reader.take()
    assert taken is not None and taken[1] == body[:size] and isinstance(taken[1], memoryview)
    assert np.frombuffer(taken[1], np.uint8)[-96:].view("<f8").flags.aligned


def test_large_messages_of_one_size_share_a_buffer() -> None:
    """Once the one before is not used any more, and never before half of the message has come."""
    buffers, size = Buffers(1 << 20), 100_000
    whole = prefix(size) + bytes(range(250)) * (size // 250)

    def received() -> memoryview:
        reader = Messages(1 << 20, buffers)
        for begin in range(0, len(whole), 30_000):
            reader.feed(whole[begin : begin + 30_000])
        taken = reader.take()
        assert taken is not None and taken[1] == whole[5:] and isinstance(taken[1], memoryview)
        return taken[1]

    first, second = received(), received()
    used = {id(first.obj), id(second.obj)}
    assert len(used) == 2
    del first, second
    assert id(received().obj) in used
    reader = Messages(1 << 30, buffers)
    announced = prefix(1 << 29) + bytes(1000)
    tracemalloc.start()
    reader.feed(announced)
    reader.feed(bytes(1000))
    assert tracemalloc.get_traced_memory()[1] < 10_000
    tracemalloc.stop()


def test_size_is_checked_by_the_prefix() -> None:
    reader = Messages(1000)
    reader.feed(prefix(1001))
    for action in (reader.missing, reader.take):
        with pytest.raises(RpcError) as caught:
            action()
        assert caught.value.code == status.RESOURCE_EXHAUSTED


def test_an_unknown_flag() -> None:
    reader = Messages(1000)
    reader.feed(b"\x02\0\0\0\0")
    with pytest.raises(RpcError):
        reader.take()


@pytest.mark.parametrize(("name", "pack"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_compressed(name: bytes, pack) -> None:  # type: ignore[no-untyped-def]
    data = bytes(range(256)) * 100
    packed = pack(data)
    message = Compressed(memoryview(packed), name)
    assert message.head(100) == data[:100] and message.head(1 << 20) == data
    assert message.whole(len(data)) == data
    with pytest.raises(TooLargeError, match="unpacks to more") as caught:
        message.whole(len(data) - 1)
    assert status.from_http(caught.value.http_status) == status.RESOURCE_EXHAUSTED
    for broken in (packed[:-1], packed + b"x", b"nonsense"):
        with pytest.raises(DamagedError, match=r"damaged|cut short"):
            Compressed(broken, name).whole(1 << 20)


def test_a_bomb_stays_small() -> None:
    bomb = Compressed(zlib.compress(bytes(64 << 20)), b"deflate")
    assert len(bomb.head(1000)) == 1000
    with pytest.raises(TooLargeError):
        bomb.whole(1 << 20)


@pytest.mark.parametrize("name", [b"br", b"identity", b""])
def test_encodings_that_are_not_known(name: bytes) -> None:
    with pytest.raises(RpcError):
        Compressed(b"", name)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [(None, 0), (b"1H", 3600 * 10**9), (b"2M", 120 * 10**9), (b"3S", 3 * 10**9), (b"4m", 4 * 10**6),
     (b"5u", 5000), (b"6n", 6), (b"0n", 1), (b"99999999S", 99999999 * 10**9)],
)  # fmt: skip
def test_timeouts(text: bytes | None, wanted: int) -> None:
    assert framing.timeout_ns(text) == wanted


@pytest.mark.parametrize("text", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S"])
def test_timeouts_that_are_malformed(text: bytes) -> None:
    with pytest.raises(RpcError):
        framing.timeout_ns(text)


def test_texts_of_errors() -> None:
    assert status.quote("100% of \u00fc\n") == b"100%25 of %C3%BC%0A"
    assert len(status.quote("%" * 5000)) <= 3 * 1024
    assert status.trailers(5, "no") == [(b"grpc-status", b"5"), (b"grpc-message", b"no")]
    assert [status.from_http(code) for code in (400, 404, 422, 500, 503, 504, 413)] == [3, 5, 3, 13, 14, 4, 8]
