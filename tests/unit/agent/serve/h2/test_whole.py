"""The usual request in one go is what it would be frame by frame."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.grpc.h2 import errors as e
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.h2.machine import Machine
from edgekit_agent.serve.grpc.h2.output import Around
from edgekit_agent.serve.grpc.h2.sink import Config
from edgekit_agent.serve.grpc.h2.stream import Stream
from tests.unit.agent.serve.h2.client import (
    DONE,
    HELLO,
    OK,
    REQUEST,
    Frame,
    Peer,
    Recorder,
    data,
    goaway,
    split,
)

CONFIG = Config(max_streams=4, window=300, connection_window=70_000, max_block_bytes=4096)
FIRST = b"\x83\x86\x40\x05:path\x04/a/b\x40\x03x-a\x01b"
AGAIN = b"\x83\x86\xbf\xbe"
"""The same fields, once the table has them."""
OTHER = b"\x83\x86\x40\x05:path\x04/c/d"
"""Moves what AGAIN refers to: the same octets then mean another path, and so something malformed."""
AROUND = Around(OK, DONE)


@dataclass
class Planner(Recorder):
    """Takes whole requests, and notes them as the parts that they would come in."""

    whole: int = 0

    def on_request(self, stream: Stream) -> None:
        super().on_request(stream)
        stream.head.plan = self

    def on_whole(self, stream: Stream, data: bytes, start: int, end: int) -> None:
        self.whole += 1
        self.on_request(stream)
        self.on_data(stream, data[start:end])
        self.on_end(stream)


class Whole(Stream):
    """Goes to the planner that made the plan."""

    def on_whole(self, data: bytes, start: int, end: int) -> None:
        self.head.plan.on_whole(self, data, start, end)


def planner(config: Config | None = None) -> tuple[Peer, Planner]:
    peer, sink = Peer(config), Planner()
    peer.sink = peer.machine.sink = sink
    peer.machine.kind = Whole
    return peer, sink


def request(number: int, body: bytes = b"body", block: bytes = AGAIN) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS, number, block) + data(number, body, end=True)


def as_grpcio(number: int, body: bytes = b"body", block: bytes = AGAIN, more: int = 5) -> bytes:
    """With what it adds to windows."""
    head = frame(frames.HEADERS, frames.END_HEADERS, number, block) + frames.window_update(number, more)
    return head + data(number, body, end=True) + frames.window_update(0, 46)


def settled() -> tuple[Peer, Planner]:
    """Two requests have come: the table is filled, and the header that repeats is known."""
    peer, sink = planner(CONFIG)
    peer.send(request(1, block=FIRST) + request(3))
    assert sink.whole == 0
    for stream in list(peer.machine.streams.values()):
        finish(peer, stream)
    return peer, sink


def finish(peer: Peer, stream: Stream) -> list[Frame]:
    peer.machine.headers(stream, OK, end=True)
    return peer.take()


def test_requests_that_repeat() -> None:
    peer, sink = settled()
    for number in range(5, 101, 2):
        body = bytes((number,)) * (4 if number % 4 == 1 else 200)
        peer.send(request(number, body))
        assert sink.bodies[number] == body and sink.ended[-1] == number
        assert sink.requests[-1].head.path == b"/a/b"
        assert [f.stream for f in finish(peer, peer.machine.streams[number])] == [number]
    assert sink.whole == 48


def test_windows_that_grpcio_widens_with_each_request() -> None:
    peer, sink = settled()
    before = peer.machine.output.window
    for number in range(5, 101, 2):
        assert not peer.send(as_grpcio(number)) and sink.ended[-1] == number
        assert peer.machine.streams[number].send_window == 65535 + 5
        finish(peer, peer.machine.streams[number])
    assert sink.whole == 48 and peer.machine.output.window == before + 48 * 46
    peer.send(as_grpcio(101) + as_grpcio(103))
    assert sink.whole == 50 and peer.machine.output.window == before + 50 * 46


@pytest.mark.parametrize(("more", "code"), [(0, e.PROTOCOL_ERROR), (frames.MAX_WINDOW, e.FLOW_CONTROL_ERROR)])
def test_a_window_that_is_widened_wrongly(more: int, code: int) -> None:
    peer, sink = settled()
    peer.send(as_grpcio(5))
    assert [f.payload[3] for f in peer.send(as_grpcio(7, more=more)) if f.kind == frames.RST_STREAM] == [code]
    assert sink.ended[-1] == 5 and sink.reset == [7]
    assert (
        goaway(peer.send(as_grpcio(9) + frames.window_update(0, frames.MAX_WINDOW))) == e.FLOW_CONTROL_ERROR
    )


def test_widening_that_brings_nothing_is_a_flood() -> None:
    peer, _ = settled()
    peer.send(as_grpcio(5))
    for _ in range(990):
        assert not peer.send(frames.window_update(0, 1))
    assert goaway(peer.send(frames.window_update(0, 1) * 20)) == e.ENHANCE_YOUR_CALM


def test_several_in_one_piece_and_the_limit_of_streams() -> None:
    peer, sink = settled()
    answer = peer.send(b"".join(request(number) for number in range(5, 17, 2)))
    assert sink.whole == 4 and [(f.kind, f.stream) for f in answer] == [
        (frames.RST_STREAM, 13),
        (frames.RST_STREAM, 15),
    ]
    assert [f.payload[3] for f in answer] == [e.REFUSED_STREAM] * 2


def test_the_same_block_after_the_table_has_changed() -> None:
    peer, sink = settled()
    peer.send(request(5))
    finish(peer, peer.machine.streams[5])
    swapped = b"\x83\x86\x40\x05:path\x04/c/d\x40\x03x-a\x01b"
    peer.send(request(7, block=swapped))
    finish(peer, peer.machine.streams[7])
    peer.send(request(9))
    assert [stream.head.path for stream in sink.requests] == [b"/a/b"] * 3 + [b"/c/d"] * 2
    assert sink.whole == 1
    finish(peer, peer.machine.streams[9])
    answer = peer.send(request(11, block=OTHER) + request(13))
    assert [(f.kind, f.stream) for f in answer] == [(frames.RST_STREAM, 13)], (
        "no path, and a late pseudo-field"
    )


def test_a_table_that_shrinks_forgets() -> None:
    peer, sink = settled()
    peer.send(request(5, block=b"\x20" + REQUEST))
    assert goaway(peer.send(request(7))) == e.COMPRESSION_ERROR and sink.whole == 0


@pytest.mark.parametrize(
    ("octets", "code"),
    [
        (request(6), e.PROTOCOL_ERROR),
        (request(3), e.STREAM_CLOSED),
        (request(5)[:21] + b"\0\0\0\7" + request(5)[25:], e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 5, AGAIN) + request(7), e.PROTOCOL_ERROR),
    ],
)
def test_broken_rules_are_seen(octets: bytes, code: int) -> None:
    peer, _ = settled()
    if code == e.STREAM_CLOSED:
        peer.send(request(5))
    assert goaway(peer.send(octets)) == code


def test_a_body_beyond_the_window_or_the_length() -> None:
    peer, sink = settled()
    answer = peer.send(request(5, bytes(301)))
    assert [(f.kind, f.payload[3]) for f in answer] == [(frames.RST_STREAM, e.FLOW_CONTROL_ERROR)]
    block = AGAIN + hpack.encode([(b"content-length", b"4")])
    peer.send(request(7, block=block) + request(9, b"bodies", block=block) + request(11, block=block))
    assert sink.ended == [1, 3, 7, 11] and sink.reset == [5, 9] and sink.whole == 1


def test_the_connections_window_is_renewed() -> None:
    peer, sink = settled()
    renewed = 0
    for number in range(5, 1005, 2):
        renewed += sum(
            int.from_bytes(f.payload, "big")
            for f in peer.send(request(number, bytes(300)))
            if f.kind == frames.WINDOW_UPDATE
        )
        finish(peer, peer.machine.streams[number])
    assert sink.whole > 490 and 500 * 300 - renewed < CONFIG.connection_window // 2


def test_no_new_ones_when_we_have_left() -> None:
    peer, sink = settled()
    peer.send(request(5))
    peer.machine.leave()
    ping = next(f for f in peer.take() if f.kind == frames.PING)
    peer.send(frame(frames.PING, frames.ACK, 0, ping.payload))
    peer.send(request(7))
    assert list(peer.machine.streams) == [5] and sink.whole == 1


BLOCKS = st.sampled_from([AGAIN] * 6 + [FIRST, OTHER, REQUEST, AGAIN + b"\x5c\x014", b"\x20" + FIRST])
BODIES = st.sampled_from([b"x", b"body", bytes(250), bytes(310), b""])
FRAMES = st.sampled_from(
    [
        frame(frames.PING, 0, 0, bytes(8)),
        frames.window_update(0, 5),
        frame(frames.PRIORITY, 0, 3, bytes(5)),
        frame(77, 0, 1, b"abc"),
        frames.rst_stream(3, 8),
    ]
)
PIECES = st.lists(FRAMES | st.tuples(BODIES, BLOCKS), max_size=25)


@given(PIECES, st.integers(0, 2**32))
@settings(max_examples=400, deadline=None)
def test_as_frame_by_frame(pieces: list[bytes | tuple[bytes, bytes]], seed: int) -> None:
    """Two machines hear the same, cut anywhere; one of them knows no whole requests."""
    chance = random.Random(seed)
    stream, number = HELLO + request(1, block=FIRST) + request(3), 5
    for piece in pieces:
        if isinstance(piece, bytes):
            stream += piece
        else:
            make = as_grpcio if chance.random() < 0.5 else request
            stream += make(number, *piece)
            number += chance.choice((2, 2, 2, 2, 0, 1, 4))
    fast, slow = Peer(CONFIG, hello=False), Peer(CONFIG, hello=False)
    fast.sink = fast.machine.sink = Planner()
    fast.machine.kind = Whole
    while stream:
        size = chance.choice((10, 40, 100, 1000, 100_000))
        cut, stream = stream[:size], stream[size:]
        answer = chance.random()
        for peer in (fast, slow):
            peer.machine.receive(cut, peer.now)
            if answer < 0.7:
                for one in list(peer.machine.streams.values()):
                    if one.remote_done:
                        reply(peer.machine, one)
        assert fast.take() == slow.take()
        assert_same(fast, slow)


def reply(machine: Machine, stream: Stream) -> None:
    if not machine.answer(stream, AROUND, [b"an ", b"answer"], 9):
        machine.headers(stream, OK)
        machine.data(stream, b"an answer")
        machine.end(stream, DONE)


def assert_same(fast: Peer, slow: Peer) -> None:
    one, other = fast.machine, slow.machine
    assert fast.sink.bodies == slow.sink.bodies and fast.sink.ended == slow.sink.ended
    assert fast.sink.reset == slow.sink.reset
    assert [*one.streams] == [*other.streams] and one.closed == other.closed and one.error == other.error
    assert one.window == other.window and one.last_stream == other.last_stream
    assert one.output.window == other.output.window
    assert one.guard.left >= other.guard.left, "updates of windows beside a request cost nothing"
    for number, stream in one.streams.items():
        twin = other.streams[number]
        assert stream.receive_window == twin.receive_window and stream.received == twin.received
        assert stream.send_window == twin.send_window and stream.remote_done == twin.remote_done


def test_an_answer_in_one_is_the_same_octets() -> None:
    for body in (b"x", bytes(5000)):
        made = []
        for one in (True, False):
            peer = Peer()
            finish(peer, peer.request(1, end=True))
            stream = peer.request(3, end=True)
            if one:
                assert peer.machine.answer(stream, AROUND, [body[:1], memoryview(body[1:])], len(body))
            else:
                peer.machine.headers(stream, OK)
                peer.machine.data(stream, body)
                peer.machine.end(stream, DONE)
            made.append(split(peer.machine.output.take()))
            assert stream.closed and not peer.machine.streams
            assert peer.machine.output.window == 65535 - len(body)
        assert made[0] == made[1]


def test_an_answer_that_does_not_fit_is_left_to_the_long_way() -> None:
    peer = Peer()
    first = peer.request(1, end=True)
    assert not peer.machine.answer(first, AROUND, [b"x"], 1), "the first block says that we use no table"
    finish(peer, first)
    stream = peer.request(3, end=True)
    assert not peer.machine.answer(stream, AROUND, [bytes(16385)], 16385), "larger than a frame"
    peer.send(frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\5"))
    assert not peer.machine.answer(stream, AROUND, [bytes(6)], 6), "larger than the window"
    assert not peer.take()
    assert peer.machine.answer(stream, AROUND, [bytes(5)], 5)
    peer.take()
    assert not peer.machine.answer(stream, AROUND, [bytes(5)], 5) and not peer.take(), "it has ended"
