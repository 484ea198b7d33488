"""Anything may come: the machine never raises, its memory is bounded, and another implementation agrees."""

from __future__ import annotations

import random
from itertools import chain

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.h2.sink import Config
from tests.unit.agent.serve.h2.client import DONE, HELLO, OK, REQUEST, Peer, split

BLOCKS = st.sampled_from(
    [REQUEST, b"", b"\x82", DONE, REQUEST + b"\x40\x03x-a\x01b", REQUEST + b"\xbe", REQUEST[:7]]
) | st.binary(max_size=40)
NUMBERS = st.sampled_from([0, 1, 1, 3, 3, 5, 7, 2, frames.MAX_STREAM, 1 << 31 | 1])
FLAGS = st.sampled_from([0, 1, 4, 5, 5, 8, 0x0D, 0x20, 0x2D, 0xFF])
KINDS = st.integers(0, 10)
PAYLOADS = st.one_of(
    BLOCKS,
    st.binary(max_size=30),
    st.integers(0, (1 << 32) - 1).map(lambda number: number.to_bytes(4, "big")),
    st.builds(
        lambda key, value: key.to_bytes(2, "big") + value.to_bytes(4, "big"),
        st.integers(0, 8),
        st.integers(0, 1 << 31),
    ),
    st.integers(0, 70_000).map(bytes),
)
FRAMES = st.builds(frame, KINDS, FLAGS, NUMBERS, PAYLOADS)
PIECES = st.lists(FRAMES | st.binary(max_size=20), max_size=25)


def limits(peer: Peer) -> None:
    """What must hold whatever came."""
    machine, config = peer.machine, peer.machine.config
    assert len(machine.streams) + machine.orphans <= config.max_streams
    assert len(machine._rest) <= config.max_block_bytes + 9
    assert machine.blocks._bytes <= config.max_block_bytes or machine.closed
    assert machine.blocks.decoder.table_size <= hpack.TABLE_SIZE
    assert len(machine.blocks._memo) <= 64 and len(machine.gone) <= 512
    assert all(stream.receive_window >= 0 for stream in machine.streams.values())
    assert machine.output.window >= 0
    assert machine.output.pending_bytes == sum(
        len(view) for stream in machine.streams.values() for view in stream.pending or ()
    )
    if machine.closed:
        assert machine.error and not machine.streams


@given(PIECES, st.integers(0, 2**32), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_octets(pieces: list[bytes], seed: int, hello: bool) -> None:
    """Frames good and bad, cut anywhere, with answers in between."""
    chance = random.Random(seed)
    peer = Peer(Config(max_streams=4, window=2000, max_block_bytes=4096, max_list_bytes=2000), hello=False)
    stream = (HELLO if hello else b"") + b"".join(pieces)
    while stream:
        size = chance.choice((1, 3, 9, 50, 1000, 100_000))
        peer.machine.receive(stream[:size], peer.now)
        stream = stream[size:]
        for request in list(peer.machine.streams.values()):
            if request.id in peer.sink.bodies and chance.random() < 0.3 and not request.local_done:
                request.busy = chance.random() < 0.5
                _answer(peer, chance, request)
        limits(peer)
        split(peer.machine.output.take())
    peer.machine.fail(0, "the connection is gone")
    limits(peer)


def _answer(peer: Peer, chance: random.Random, request) -> None:  # type: ignore[no-untyped-def]
    machine = peer.machine
    match chance.randrange(4):
        case 0:
            machine.headers(request, OK, end=True)
        case 1:
            machine.reset(request, 8)
        case 2:
            machine.headers(request, OK)
            machine.data(request, bytes(chance.choice((0, 1, 20_000, 200_000))))
            machine.end(request, chance.choice((DONE, b"")))
        case _:
            machine.grant(request, chance.choice((1, 1000)))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_another_implementation_as_the_client(draws: st.DataObject) -> None:
    """hyper-h2 speaks to the machine: echoed bodies arrive whole, whatever windows and frame sizes are."""
    chance = random.Random(draws.draw(st.integers(0, 2**32)))
    ours, theirs = chance.choice((1, 1000, 70_000)), chance.choice((0, 1, 5000, 65535, 1 << 20))
    peer = Peer(Config(window=ours), hello=False)
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding=None))
    client.initiate_connection()
    client.update_settings(
        {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: theirs,
            h2.settings.SettingCodes.MAX_FRAME_SIZE: chance.choice((16384, 100_000)),
            h2.settings.SettingCodes.HEADER_TABLE_SIZE: chance.choice((0, 100, 4096, 10_000)),
        }
    )
    longest = min(40_000, 50 * min(ours, theirs or 40_000))
    bodies = {
        number: draws.draw(st.integers(0, longest)) * b"ab"
        for number in range(1, 2 * chance.randrange(1, 6), 2)
    }
    left = dict(bodies)
    got: dict[int, bytearray] = {number: bytearray() for number in bodies}
    echoed: dict[int, int] = {}
    done: set[int] = set()
    client.receive_data(b"".join(frame(f.kind, f.flags, f.stream, f.payload) for f in peer.greeting))
    for number in bodies:
        name = bytes(chance.choice(b"abc") for _ in range(3))
        fields = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"x"),
            (b"x-" + name, name * 50),
        ]
        client.send_headers(number, fields)
    for _ in range(100_000):
        for number in list(left):
            size = min(
                client.local_flow_control_window(number), client.max_outbound_frame_size, len(left[number])
            )
            if size or not left[number]:
                pad = (
                    chance.choice((None, None, 0))
                    if size + 1 < client.local_flow_control_window(number)
                    else None
                )
                client.send_data(number, left[number][:size], pad_length=pad)
                left[number] = left[number][size:]
            if not left[number]:
                client.end_stream(number)
                del left[number]
        peer.machine.receive(client.data_to_send(), peer.now)
        assert not peer.machine.closed, peer.machine.error
        for request in list(peer.machine.streams.values()):
            body = peer.sink.bodies[request.id]
            new = len(body) - echoed.setdefault(request.id, 0)
            if not echoed[request.id] and (new or request.remote_done):
                peer.machine.headers(request, OK)
            if new:
                peer.machine.data(request, bytes(body[-new:]))
                peer.machine.grant(request, new)
                echoed[request.id] += new
            if request.remote_done and not request.local_done:
                peer.machine.end(request, DONE)
        limits(peer)
        peer.now += 1.0
        # Frame by frame: hyper-h2 notices a larger frame size only with the next call.
        answer = [frame(f.kind, f.flags, f.stream, f.payload) for f in split(peer.machine.output.take())]
        for event in chain.from_iterable(map(client.receive_data, answer)):
            if isinstance(event, h2.events.DataReceived):
                assert event.stream_id is not None and event.data is not None
                got[event.stream_id] += event.data
                if event.flow_controlled_length:
                    client.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                done.add(event.stream_id or 0)
        if not theirs:
            for number in bodies:
                if number not in done:
                    client.increment_flow_control_window(30_000, number)
        peer.machine.resume(peer.now)
        if done == set(bodies):
            break
    assert {number: bytes(body) for number, body in got.items()} == bodies
    assert not peer.machine.streams
