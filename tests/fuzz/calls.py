"""Frames of one gRPC call or HTTP request over HTTP/2, of stream 0. Pure."""

from __future__ import annotations

from random import Random

from edgekit_agent.serve.grpc.framing import prefix
from edgekit_agent.serve.grpc.h2 import frames, hpack
from tests.fuzz.mutate import garble
from tests.fuzz.seeds import Call


def plain_call(call: Call) -> bytes:
    """The call with nothing wrong in it."""
    compressed = b"\1" if call.protocol == "grpc-compressed" else b"\0"
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", call.path), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"), *call.headers,
    ]  # fmt: skip
    body = compressed + prefix(len(call.message))[1:] + call.message
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, 0, hpack.encode(fields))
    return head + frames.frame(frames.DATA, frames.END_STREAM, 0, body)


def call_frames(chance: Random, call: Call, message: bytes) -> bytes:
    path = call.path
    kind, rest = b"application/grpc", list(call.headers)
    roll = chance.random()
    if roll < 0.03:
        path = garble(chance, path, most=1).replace(b" ", b"").translate(None, bytes(range(33))) or b"/"
    elif roll < 0.06:
        kind = chance.choice(
            (b"application/grpc+proto", b"application/grpc+json", b"application/grpc;x", b"application/grpcx")
        )
    elif roll < 0.12:
        rest.append(
            (
                b"grpc-timeout",
                chance.choice(
                    (b"1S", b"100m", b"1n", b"0S", b"99999999H", b"-1S", b"1", b"S", b"123456789S")
                ),
            )
        )
    elif roll < 0.16:
        rest.append((b"grpc-encoding", chance.choice((b"gzip", b"deflate", b"identity", b"br", b""))))
    elif roll < 0.18:
        rest.append(
            (
                chance.choice((b"x-bin", b"traceparent", b"authorization", b"x-request-id")),
                b"A" * chance.choice((1, 50, 3000)),
            )
        )
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"x"),
        (b"content-type", kind), (b"te", b"trailers"), *rest,
    ]  # fmt: skip
    compressed = call.protocol == "grpc-compressed"
    body = (b"\1" + prefix(len(message))[1:] if compressed else prefix(len(message))) + message
    if call.protocol.endswith("stream"):
        body *= chance.choice((1, 1, 2, 5))
    if chance.random() < 0.12:
        body = _unframed(chance, body)
    return stream(chance, fields, body)


def _unframed(chance: Random, body: bytes) -> bytes:
    """Messages whose five octets in front lie."""
    match chance.randrange(6):
        case 0:
            return bytes((chance.choice((1, 2, 255)),)) + body[1:]
        case 1:
            return body[:1] + chance.choice((0, len(body), 1 << 24, 0xFFFFFFFF)).to_bytes(4, "big") + body[5:]
        case 2:
            return body[: chance.randrange(len(body) + 1)]
        case 3:
            return body + body
        case 4:
            return b""
    return body + bytes(chance.randrange(1, 9))


def stream(chance: Random, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """HEADERS and DATA, in as many frames as may be; of stream 0."""
    block = hpack.encode(fields)
    if not body and chance.random() < 0.5:
        return frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 0, block)
    out = [frames.frame(frames.HEADERS, frames.END_HEADERS, 0, block)]
    pieces = [body[at : at + 16000] for at in range(0, len(body), 16000)] or [b""]
    if len(body) > 1 and chance.random() < 0.15:
        cut = chance.randrange(1, len(pieces[-1]))
        pieces[-1:] = [pieces[-1][:cut], pieces[-1][cut:]]
    for number, piece in enumerate(pieces, 1):
        end = frames.END_STREAM if number == len(pieces) else 0
        if chance.random() < 0.05:
            pad = chance.randrange(40)
            out.append(frames.frame(frames.DATA, end | frames.PADDED, 0, bytes((pad,)) + piece + bytes(pad)))
        else:
            out.append(frames.frame(frames.DATA, end, 0, piece))
    return b"".join(out)
