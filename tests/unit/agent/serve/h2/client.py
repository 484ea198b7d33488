"""The other side of a machine: frames by hand, and what came back taken apart."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.h2.machine import Machine
from edgekit_agent.serve.grpc.h2.sink import Chunk, Config
from edgekit_agent.serve.grpc.h2.stream import Stream

REQUEST = hpack.encode(
    [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/a.B/C"),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]
)
OK = hpack.encode([(b":status", b"200")])
DONE = hpack.encode([(b"grpc-status", b"0")])
HELLO = frames.PREFACE + frame(frames.SETTINGS, 0, 0)


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


def split(data: bytes) -> list[Frame]:
    """Whole frames; fails on anything else."""
    found = []
    while data:
        upper, lower, kind, flags, number = frames.HEAD.unpack_from(data)
        size = upper << 8 | lower
        assert len(data) >= 9 + size
        found.append(Frame(kind, flags, number, data[9 : 9 + size]))
        data = data[9 + size :]
    return found


@dataclass
class Recorder:
    """A sink that notes everything and answers nothing by itself."""

    requests: list[Stream] = field(default_factory=list)
    bodies: dict[int, bytearray] = field(default_factory=dict)
    ended: list[int] = field(default_factory=list)
    reset: list[int] = field(default_factory=list)

    def on_request(self, stream: Stream) -> None:
        assert stream.id not in self.bodies
        self.requests.append(stream)
        self.bodies[stream.id] = bytearray()

    def on_data(self, stream: Stream, chunk: Chunk) -> None:
        assert len(chunk)
        assert stream.id not in self.ended and stream.id not in self.reset
        self.bodies[stream.id] += chunk

    def on_end(self, stream: Stream) -> None:
        assert stream.id not in self.ended and stream.id not in self.reset
        self.ended.append(stream.id)

    def on_reset(self, stream: Stream) -> None:
        assert stream.id not in self.reset
        self.reset.append(stream.id)


class Peer:
    """A machine with a recorder; `send` returns what it answers."""

    def __init__(self, config: Config | None = None, *, hello: bool = True) -> None:
        self.sink = Recorder()
        self.now = 100.0
        self.machine = Machine(self.sink, config or Config(), self.now)
        self.greeting = split(self.machine.output.take())
        if hello:
            assert [f.kind for f in self.send(HELLO)] == [frames.SETTINGS]

    def send(self, data: bytes) -> list[Frame]:
        self.machine.receive(data, self.now)
        return self.take()

    def take(self) -> list[Frame]:
        return split(self.machine.output.take())

    def request(self, number: int = 1, *, end: bool = False, block: bytes = REQUEST) -> Stream:
        flags = frames.END_HEADERS | (frames.END_STREAM if end else 0)
        self.send(frame(frames.HEADERS, flags, number, block))
        return self.machine.streams[number]

    def refused(self, data: bytes) -> int:
        """The code of the GOAWAY that ends the connection; -1 when it goes on."""
        return goaway(self.send(data))


def goaway(answer: list[Frame]) -> int:
    for item in answer:
        if item.kind == frames.GOAWAY:
            return int(struct.unpack(">II", item.payload[:8])[1])
    return -1


def reset_code(answer: list[Frame], stream: int = 1) -> int:
    """The code of the RST_STREAM of `stream`; -1 when there is none."""
    for item in answer:
        if item.kind == frames.RST_STREAM and item.stream == stream:
            return int.from_bytes(item.payload, "big")
    return -1


def data(stream: int, body: bytes, *, end: bool = False, pad: int | None = None) -> bytes:
    flags = frames.END_STREAM if end else 0
    if pad is None:
        return frame(frames.DATA, flags, stream, body)
    return frame(frames.DATA, flags | frames.PADDED, stream, bytes((pad,)) + body + bytes(pad))
