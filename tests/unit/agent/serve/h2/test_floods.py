"""Cheap frames without use end the connection; what real clients do never does."""

from __future__ import annotations

import itertools

import pytest

from edgekit_agent.serve.grpc.h2 import errors as e
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.h2.sink import Config
from tests.unit.agent.serve.h2.client import DONE, OK, REQUEST, Peer, data

END = frames.END_HEADERS | frames.END_STREAM
NUMBERS = range(1, 20_001, 2)


def requests(flags: int, *more: bytes) -> list[bytes]:
    return [frame(frames.HEADERS, flags, number, REQUEST) for number in NUMBERS]


FLOODS = {
    "ping": [frame(frames.PING, 0, 0, bytes(8))],
    "ping answers": [frame(frames.PING, frames.ACK, 0, bytes(8))],
    "settings": [frame(frames.SETTINGS, 0, 0)],
    "settings that move windows": [
        frames.settings({frames.INITIAL_WINDOW_SIZE: 0}),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 1000}),
    ],
    "acknowledgements": [frame(frames.SETTINGS, frames.ACK, 0)],
    "priority": [frame(frames.PRIORITY, 0, 1, bytes(5))],
    "unknown": [frame(0x50, 0, 0)],
    "goaway": [frames.goaway(0, 0)],
    "connection windows": [frames.window_update(0, 1)],
    "stream windows": [frames.window_update(1, 1)],
    "empty data": [data(1, b"")],
    "padding only": [data(1, b"", pad=10)],
    "one octet at a time": [data(1, b"x")],
    "late resets": [frames.rst_stream(3, 8)],
}


@pytest.mark.parametrize("name", FLOODS)
def test_repeated_frames(name: str) -> None:
    peer = Peer()
    peer.request(1)
    peer.request(3, end=True)
    peer.machine.headers(peer.machine.streams[3], OK, end=True)
    for count, item in enumerate(itertools.cycle(FLOODS[name])):
        if peer.refused(item) == e.ENHANCE_YOUR_CALM:
            break
        assert count < 1100, "nobody stops it"
    assert peer.machine.closed and not peer.machine.streams and count >= 90


def test_rapid_reset() -> None:
    """CVE-2023-44487: requests that are cancelled at once."""
    peer = Peer()
    for count, number in enumerate(NUMBERS):
        request = frame(frames.HEADERS, END, number, REQUEST)
        if peer.refused(request + frames.rst_stream(number, e.CANCEL)) == e.ENHANCE_YOUR_CALM:
            break
        assert count < 250, "nobody stops it"
    assert count > 100


def test_rapid_reset_with_work_that_goes_on() -> None:
    """Work that a reset does not stop keeps its place: no more than `max_streams` are ever begun."""
    peer = Peer(Config(max_streams=10))
    for number in range(1, 101, 2):
        peer.send(frame(frames.HEADERS, END, number, REQUEST))
        if number in peer.machine.streams:
            peer.machine.streams[number].busy = True
        peer.send(frames.rst_stream(number, e.CANCEL))
    assert len(peer.sink.requests) == 10 == peer.machine.orphans


@pytest.mark.parametrize(
    "provoke",
    [
        lambda number: frames.window_update(number, 0),
        lambda number: frames.window_update(number, frames.MAX_WINDOW),
        lambda number: data(number, b"x" * 100),
        lambda number: frame(frames.HEADERS, END, number, REQUEST),
    ],
)
def test_resets_that_the_server_is_provoked_into(provoke) -> None:  # type: ignore[no-untyped-def]
    """CVE-2025-8671: the client never resets anything itself."""
    peer = Peer()
    for count, number in enumerate(NUMBERS):
        request = frame(frames.HEADERS, END, number, REQUEST)
        if peer.refused(request + provoke(number)) == e.ENHANCE_YOUR_CALM:
            break
        assert count < 150, "nobody stops it"
    assert count > 50


def test_malformed_requests() -> None:
    peer = Peer()
    codes = [peer.refused(frame(frames.HEADERS, END, number, b"\x82")) for number in NUMBERS[:150]]
    assert e.ENHANCE_YOUR_CALM in codes


def test_more_requests_than_allowed() -> None:
    peer = Peer(Config(max_streams=1))
    codes = [peer.refused(request) for request in requests(frames.END_HEADERS)[:300]]
    assert e.ENHANCE_YOUR_CALM in codes


def test_continuation_without_end() -> None:
    peer = Peer()
    peer.send(frame(frames.HEADERS, frames.END_STREAM, 1, REQUEST))
    codes = [peer.refused(frame(frames.CONTINUATION, 0, 1, b"\x00\x01a\x01b")) for _ in range(40)]
    assert e.ENHANCE_YOUR_CALM in codes


def test_a_header_block_that_grows() -> None:
    peer = Peer(Config(max_block_bytes=20_000))
    peer.send(frame(frames.HEADERS, frames.END_STREAM, 1, REQUEST))
    assert peer.refused(frame(frames.CONTINUATION, 0, 1, b"\x00" * 19_000)) == -1
    assert peer.refused(frame(frames.CONTINUATION, 0, 1, b"\x00" * 2000)) == e.ENHANCE_YOUR_CALM


def test_requests_with_large_headers() -> None:
    peer = Peer(Config(max_list_bytes=1000))
    big = REQUEST + hpack.encode([(b"a", b"b" * 1000)])
    codes = [peer.refused(frame(frames.HEADERS, END, number, big)) for number in NUMBERS[:200]]
    assert e.ENHANCE_YOUR_CALM in codes


def test_small_windows_opened_octet_by_octet() -> None:
    """Section 10.5: a client that takes its answer one octet per WINDOW_UPDATE."""
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    stream = peer.request(end=True)
    peer.machine.headers(stream, OK)
    peer.machine.data(stream, bytes(10_000))
    peer.machine.end(stream, DONE)
    codes = [peer.refused(frames.window_update(1, 1)) for _ in range(1100)]
    assert e.ENHANCE_YOUR_CALM in codes


def test_time_forgives() -> None:
    peer = Peer()
    for _ in range(3000):
        peer.now += 0.05
        assert peer.refused(frame(frames.PING, 0, 0, bytes(8))) == -1


def test_what_real_clients_do_is_no_flood() -> None:
    """A request with a PING, window updates and an empty last frame each, as fast as can be."""
    peer = Peer()
    for number in NUMBERS[:3000]:
        stream = peer.request(number)
        peer.send(data(number, b"\x00\x00\x00\x00\x03") + data(number, b"abc") + data(number, b"", end=True))
        peer.send(frame(frames.PING, 0, 0, bytes(8)))
        peer.machine.headers(stream, OK)
        peer.machine.data(stream, b"answer")
        peer.machine.end(stream, DONE)
        peer.send(frames.window_update(0, 6) + frames.window_update(number, 6))
        assert not peer.machine.closed


def test_a_large_answer_with_an_update_per_frame_is_no_flood() -> None:
    peer = Peer()
    stream = peer.request(end=True)
    peer.machine.headers(stream, OK)
    peer.machine.data(stream, bytes(16 << 20))
    peer.machine.end(stream, DONE)
    got = 0
    while peer.machine.streams:
        for item in peer.take():
            if item.kind == frames.DATA:
                got += len(item.payload)
                size = len(item.payload)
                peer.machine.receive(frames.window_update(0, size) + frames.window_update(1, size), peer.now)
        peer.machine.resume(peer.now)
        assert not peer.machine.closed
    assert got + sum(len(f.payload) for f in peer.take() if f.kind == frames.DATA) == 16 << 20
