"""Frames of one body that come together are taken in one go, and mean what they mean one by one."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.sink import Chunk, Config
from edgekit_agent.serve.grpc.h2.stream import Stream
from tests.unit.agent.serve.h2.client import REQUEST, Frame, Peer, data

SIZES = (1023, 1024, 1500, 4096)
Part = tuple[int, int, int, bool]
"""Stream, octets of a frame, how many of them, and whether the last one ends the stream."""


def told(answer: list[Frame]) -> tuple[Counter[int], list[tuple[int, int, bytes]]]:
    """Octets that the windows of each stream grew by, and every other frame."""
    grown: Counter[int] = Counter()
    for one in answer:
        if one.kind == frames.WINDOW_UPDATE:
            grown[one.stream] += struct.unpack(">I", one.payload)[0]
    return grown, [(f.kind, f.stream, f.payload) for f in answer if f.kind != frames.WINDOW_UPDATE]


def outcome(octets: bytes, step: int, config: Config, length: int) -> dict[str, Any]:
    peer = Peer(config)
    peer.request(1)
    block = REQUEST + hpack.encode([(b"content-length", b"%d" % length)]) if length >= 0 else REQUEST
    peer.request(3, block=block)
    answer = [frame for at in range(0, len(octets), step) for frame in peer.send(octets[at : at + step])]
    machine = peer.machine
    windows = {number: stream.receive_window for number, stream in machine.streams.items()}
    grown, others = told(answer)
    # The connection's window is renewed behind a run, not within it: what the peer may send is what counts.
    used = grown.pop(0, 0) - machine.window
    assert machine.closed or machine.window >= machine.least_window
    return {
        "bodies": peer.sink.bodies, "ended": peer.sink.ended, "reset": peer.sink.reset,
        "told": (grown, others), "windows": windows, "used": used, "error": machine.error,
        "frames": machine.frames, "mid": machine.mid_frame,
    }  # fmt: skip


parts = st.tuples(st.sampled_from((1, 3)), st.sampled_from(SIZES), st.integers(1, 5), st.booleans())


@settings(max_examples=150, deadline=None)
@example([(3, 1500, 8, False), (3, 4096, 5, False), (1, 1024, 4, False)], 4096, 70_000, -1, 0)
@given(
    st.lists(parts, min_size=1, max_size=4),
    st.sampled_from((4096, 10_000, 1 << 20)),
    st.sampled_from((70_000, 1 << 20)),
    st.sampled_from((-1, 4096, 6000, 9000)),
    st.integers(0, 40),
)
def test_together_or_in_pieces(
    found: list[Part], window: int, connection: int, length: int, cut: int
) -> None:
    octets = b""
    for number, size, count, last in found:
        for index in range(count):
            octets += data(number, bytes([index]) * size, end=last and index == count - 1)
    octets = octets[: len(octets) - cut]
    config = Config(window=window, connection_window=connection)
    assert outcome(octets, len(octets), config, length) == outcome(octets, 509, config, length)


def test_one_call_for_many_frames() -> None:
    chunks: list[int] = []

    class Counting(Peer):
        def on_data(self, stream: Stream, chunk: Chunk) -> None:
            chunks.append(len(chunk))

    peer = Counting(Config(window=1 << 20))
    peer.sink.on_data = peer.on_data  # type: ignore[method-assign]
    peer.request(1)
    peer.send(data(1, bytes(16384)) * 8 + data(1, b"end", end=True))
    assert chunks == [8 * 16384, 3] and peer.sink.ended == [1]
