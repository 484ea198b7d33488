"""What a client that breaks HTTP/2's rules sends on one connection. Pure."""

from __future__ import annotations

from random import Random

from edgekit_agent.serve.grpc.h2 import frames
from tests.fuzz.mutate import garble

Frame = tuple[int, int, int, bytes]
_STREAMS = (0, 1, 1, 3, 3, 5, 7, 2, frames.MAX_STREAM, 1 << 31 | 1)
_FLAGS = (0, 1, 4, 5, 8, 0x0D, 0x20, 0x2D, 0xFF)
_SETTINGS = (0, 1, 100, 16383, 16384, 65535, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_BLOCKS = (
    b"", b"\x80", b"\xbe", b"\xff\xff\xff\xff\xff\xff", b"\x3f\xe1\x7f", b"\x20", b"\x3f\xe1\x1f",
    b"\x40\x03x-a\x01b", b"\x40\x81\xff\x81\xff", b"\x00\x85\xff\xff\xff\xff\xff\x00", b"\x10\x00\x00",
    b"\x83\x86\x84\x41\x01x", b"\x82\x86\x84", b"\x82\x82", b"\x00\x05:path\x01/", b"\x00\x01X\x01y",
    b"\x7f\x80\x80\x80\x80\x01",
)  # fmt: skip


def script(chance: Random, streams: list[bytes]) -> bytes:
    """The preface, SETTINGS, and `streams` (HEADERS and DATA of stream 0 each) with rules broken."""
    sent: list[Frame] = []
    for number, stream in enumerate(streams):
        sent += [(kind, flags, 2 * number + 1, payload) for kind, flags, payload in _split(stream)]
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        _break(chance, sent)
    hello = frames.settings({}) if chance.random() < 0.9 else _settings(chance)
    preface = frames.PREFACE if chance.random() < 0.97 else garble(chance, frames.PREFACE, most=1)
    data = preface + hello + b"".join(frames.frame(*one) for one in sent)
    return garble(chance, data, most=2) if chance.random() < 0.3 else data


def _split(data: bytes) -> list[tuple[int, int, bytes]]:
    found = []
    while data:
        upper, lower, kind, flags, _ = frames.HEAD.unpack_from(data)
        end = 9 + (upper << 8 | lower)
        found.append((kind, flags, data[9:end]))
        data = data[end:]
    return found


def _break(chance: Random, sent: list[Frame]) -> None:
    at = chance.randrange(len(sent)) if sent else 0
    if not sent:
        sent.append(_any(chance))
        return
    kind, flags, stream, payload = sent[at]
    match chance.randrange(12):
        case 0:
            del sent[at]
        case 1:
            sent[at:at] = [sent[at]] * chance.choice((1, 1, 3, 50))
        case 2:
            chance.shuffle(sent)
        case 3:
            sent[at] = (kind, chance.choice(_FLAGS), stream, payload)
        case 4:
            sent[at] = (kind, flags, chance.choice(_STREAMS), payload)
        case 5:
            sent[at] = (chance.randrange(12), flags, stream, payload)
        case 6:
            sent[at] = (kind, flags, stream, garble(chance, payload))
        case 7 if kind == frames.HEADERS:
            sent[at] = (kind, flags, stream, chance.choice((payload, b"")) + chance.choice(_BLOCKS))
        case 8 if kind == frames.HEADERS and len(payload) > 2:  # in pieces
            cut = chance.randrange(1, len(payload))
            rest = (
                frames.CONTINUATION,
                frames.END_HEADERS,
                chance.choice((stream, stream, 5)),
                payload[cut:],
            )
            sent[at : at + 1] = [(kind, flags & ~frames.END_HEADERS, stream, payload[:cut]), rest]
        case 9:
            sent[at:at] = [_any(chance)] * chance.choice((1, 1, 1, 30, 400))
        case _:
            sent.insert(at, _any(chance))


def _any(chance: Random) -> Frame:
    """A frame of any type, right or nearly."""
    stream = chance.choice(_STREAMS)
    match chance.randrange(9):
        case 0:
            return (
                frames.PING,
                chance.choice((0, 0, 1)),
                chance.choice((0, 0, 1)),
                bytes(chance.choice((8, 8, 7, 0))),
            )
        case 1:
            payload = _settings(chance)[9:]
            return (frames.SETTINGS, chance.choice((0, 0, 0, 1)), 0, payload)
        case 2:
            increment = chance.choice((0, 1, 65535, (1 << 31) - 1)).to_bytes(4, "big")
            return (frames.WINDOW_UPDATE, 0, chance.choice((0, stream)), increment)
        case 3:
            return (frames.RST_STREAM, 0, stream, chance.randrange(16).to_bytes(4, "big"))
        case 4:
            return (frames.PRIORITY, 0, stream, bytes(chance.choice((5, 5, 4, 6))))
        case 5:
            return (frames.GOAWAY, 0, 0, bytes(chance.choice((8, 8, 30, 3))))
        case 6:
            return (frames.HEADERS, chance.choice(_FLAGS), stream, chance.choice(_BLOCKS))
        case 7:
            return (
                frames.DATA,
                chance.choice(_FLAGS),
                stream,
                chance.randbytes(chance.choice((0, 1, 5, 200))),
            )
    return (chance.randrange(256), chance.randrange(256), stream, chance.randbytes(chance.randrange(20)))


def _settings(chance: Random) -> bytes:
    return frames.settings(
        {chance.randrange(8): chance.choice(_SETTINGS) for _ in range(chance.randrange(1, 4))}
    )
