"""The numbered cases of a fuzz run: case N of a seed and a target is always the same bytes. Pure."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from random import Random

from edgekit_agent.serve.grpc.framing import prefix
from edgekit_agent.serve.grpc.h2 import frames, hpack
from tests.attacks.http_cases import REFUSED
from tests.fuzz import seeds as valid
from tests.fuzz import targets
from tests.fuzz.mutate import bend, dumped, garble, twist
from tests.fuzz.script import script
from tests.fuzz.seeds import Call, Headers, Seed, Seeds

GROUP = 16
"""Cases that share a connection, where their kind does; numbers from a multiple of it on."""


class Wire(StrEnum):
    KEPT = "HTTP/1.1, framed right"
    RAW = "HTTP/1.1, any bytes"
    CALL = "HTTP/2, framed right"
    FRAMES = "HTTP/2, any frames"


@dataclass(frozen=True, slots=True)
class Case:
    number: int
    wire: Wire
    protocol: str
    data: bytes
    """What is sent; of CALL the frames of stream 0, whose number is to be put in."""
    bare: bool = False
    """A HEAD request: the answer has no body."""
    last: bool = False
    """The client says that this is its last request on the connection."""
    grpc: bool = False
    loose: bool = False
    """Of CALL: its header or length may be malformed, so that a reset is an answer."""


@dataclass(frozen=True)
class Source:
    """Of a target: what its cases are made from."""

    seed: int
    seeds: Seeds
    files_share: float
    bodies: Sequence[bytes]

    @staticmethod
    @cache
    def of(target: str, seed: int) -> Source:
        found = valid.seeds(targets.ALL[target]())
        share = 0.0 if not found.files else 0.05 if target == "sound" else 0.3
        bodies = [b"".join(one.parts()) for one in [*found.http, *found.files]]
        return Source(seed, found, share, bodies)

    def wire(self, number: int) -> Wire:
        """Of all cases of a group."""
        roll = Random(self.seed << 40 | number // GROUP).random()
        for wire, until in ((Wire.KEPT, 0.6), (Wire.CALL, 0.82), (Wire.RAW, 0.92)):
            if roll < until:
                return wire
        return Wire.FRAMES

    def case(self, number: int) -> Case:
        chance = Random(self.seed << 40 | 1 << 39 | number)
        wire = self.wire(number)
        if wire is Wire.KEPT:
            return self._kept(chance, number)
        if wire is Wire.CALL:
            return self._call(chance, number) if chance.random() < 0.75 else self._over_two(chance, number)
        if wire is Wire.RAW:
            return self._raw(chance, number)
        call = chance.choice(self.seeds.calls)
        data = script(
            chance, [_call_frames(chance, call, call.message) for _ in range(chance.randrange(1, 4))]
        )
        return Case(number, wire, "frames", data)

    # --- HTTP

    def _seed(self, chance: Random) -> Seed:
        roll = chance.random()
        if roll < self.files_share:
            return chance.choice(self.seeds.files)
        return chance.choice(self.seeds.pages if roll > 0.75 else self.seeds.http)

    def _kept(self, chance: Random, number: int) -> Case:
        seed = self._seed(chance)
        method, path, headers, body = self._request(chance, seed)
        version = b"1.1" if chance.random() < 0.98 else b"1.0"
        data = _framed(chance, method, path, headers, body, version)
        close = any(name.lower() == b"connection" and b"close" in value.lower() for name, value in headers)
        return Case(
            number, Wire.KEPT, seed.protocol, data, bare=method == b"HEAD", last=close or version == b"1.0"
        )

    def _raw(self, chance: Random, number: int) -> Case:
        if chance.random() < 0.25:
            data = chance.choice(list(REFUSED.values()))
            data = garble(chance, data, self.bodies) if chance.random() < 0.7 else data
            return Case(number, Wire.RAW, "http-smuggling", data)
        seed = self._seed(chance)
        data = b""
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            method, path, headers, body = self._request(chance, seed)
            data += _framed(chance, method, path, headers, body, b"1.1")
        head, mark, rest = data.partition(b"\r\n\r\n")
        if chance.random() < 0.7:
            head = garble(chance, head, list(REFUSED.values()))
        else:
            rest = garble(chance, rest, self.bodies)
        return Case(number, Wire.RAW, seed.protocol, head + mark + rest)

    def _over_two(self, chance: Random, number: int) -> Case:
        """HTTP without gRPC, over HTTP/2."""
        seed = self._seed(chance)
        method, path, headers, body = self._request(chance, seed)
        fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"x")]
        fields += [(name.lower(), value) for name, value in headers]
        if chance.random() < 0.5:
            length = len(body) if chance.random() < 0.8 else chance.choice((0, len(body) + 1, 1 << 40))
            fields.append((b"content-length", str(length).encode()))
        data = _stream(chance, fields, body)
        return Case(number, Wire.CALL, f"h2 {seed.protocol}", data, bare=method == b"HEAD", loose=True)

    def _request(self, chance: Random, seed: Seed) -> tuple[bytes, bytes, Headers, bytes]:
        """Method, path, header fields and body of a mutated request."""
        method, path, headers = seed.method, seed.path, seed.headers
        document, tail = seed.document, seed.body
        odd = chance.random()
        if document is not None and odd < 0.5:
            document = twist(chance, document)
        head = b"" if document is None else dumped(document)
        if document is not None and 0.5 <= odd < 0.62:
            head = garble(chance, head, self.bodies)
        elif tail and (0.62 <= odd < 0.75 or (document is None and odd < 0.75)):
            tail = garble(chance, tail, self.bodies)
        elif 0.75 <= odd < 0.85:
            path = _path(chance, path)
        elif 0.85 <= odd < 0.9:
            method = chance.choice(
                (b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE")
            )
        if seed.binary:
            size = len(head)
            if chance.random() < 0.06:
                size += chance.choice((-1, 1, len(tail), -size, 1 << 33, -size - 1))
            headers = (*headers, (b"Inference-Header-Content-Length", str(size).encode()))
        body = head + tail
        if chance.random() < 0.2:
            headers, body = _odd_headers(chance, headers, body)
        if chance.random() < 0.002:
            body = _large(chance, body)
        return method, path, headers, body

    # --- gRPC

    def _call(self, chance: Random, number: int) -> Case:
        call = chance.choice(self.seeds.calls)
        message = call.message
        if chance.random() < 0.85:
            if call.protocol == "grpc-compressed":
                plain = bend(chance, gzip.decompress(message))
                message = garble(chance, message) if chance.random() < 0.4 else gzip.compress(plain, 1)
            else:
                message = bend(chance, message) if chance.random() < 0.8 else garble(chance, message)
        data = _call_frames(chance, call, message)
        return Case(number, Wire.CALL, call.protocol, data, grpc=True, loose=True)


def _call_frames(chance: Random, call: Call, message: bytes) -> bytes:
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
    return _stream(chance, fields, body)


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


def _stream(chance: Random, fields: list[tuple[bytes, bytes]], body: bytes) -> bytes:
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


# --- parts of HTTP requests that keep its framing

_SEGMENTS = (
    b"v1", b"v2", b"models", b"kws", b"infer", b"versions", b"1.2.3", b"labels", b"stable", b"metadata",
    b"ready", b"config", b"stats", b"predictions", b"", b".", b"..", b"%2e%2e", b"%00", b"%ff", b"%zz",
    b"%", b"a" * 300, b"1", b"-1", b"99999999999999999999", b"kws:predict", b"kws:", b":",
    b"kws:classify:predict", b"systemsharedmemory", b"region", b"status", b"register", b"unregister",
    b"%2F", b"kws%3Apredict", b"\xc3\xa9".hex().encode(), b"health",
)  # fmt: skip
_QUERIES = (
    b"?",
    b"?a=b",
    b"?limit=-1&next_page_token=x",
    b"?limit=1",
    b"?%",
    b"#x",
    b"?" + b"q" * 2000,
    b"??",
    b";a",
)


def _path(chance: Random, path: bytes) -> bytes:
    parts = path.split(b"/")
    for _ in range(chance.choice((1, 1, 2))):
        at = chance.randrange(len(parts))
        match chance.randrange(4):
            case 0:
                parts[at] = chance.choice(_SEGMENTS)
            case 1:
                parts.insert(at, chance.choice(_SEGMENTS))
            case 2 if len(parts) > 1:
                del parts[at]
            case _:
                parts[-1] += chance.choice(_QUERIES)
    made = b"/".join(parts)
    return made if made.startswith(b"/") or (chance.random() < 0.1 and made) else b"/" + made


_ODD: tuple[tuple[bytes, bytes], ...] = (
    (b"Content-Type", b"application/json; charset=utf-16"), (b"Content-Type", b"text/plain"),
    (b"Content-Type", b""), (b"Content-Type", b"multipart/form-data"),
    (b"Content-Type", b"multipart/form-data; boundary="),
    (b"Content-Type", b"multipart/form-data; boundary=xyz"), (b"Content-Type", b"image/png"),
    (b"Content-Type", b"audio/wav"), (b"Content-Type", b"image/" + b"x" * 500),
    (b"Content-Type", b"application/x-www-form-urlencoded"), (b"Content-Type", b"application/octet-stream"),
    (b"Content-Type", b"\xff\xfe"), (b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"deflate"),
    (b"Content-Encoding", b"br"), (b"Content-Encoding", b"gzip, gzip"), (b"Content-Encoding", b"identity"),
    (b"Accept-Encoding", b"gzip"), (b"Accept-Encoding", b"deflate"),
    (b"Inference-Header-Content-Length", b"10"), (b"Inference-Header-Content-Length", b"-1"),
    (b"Inference-Header-Content-Length", b"99999999999999999999"),
    (b"Inference-Header-Content-Length", b"\xb2"), (b"Expect", b"100-continue"), (b"Connection", b"close"),
    (b"Connection", b"keep-alive"), (b"Connection", b"x, y"),
    (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    (b"traceparent", b"00-zz"), (b"traceparent", b"\xff" * 55), (b"tracestate", b"a=" + b"b" * 600),
    (b"X-Request-Id", b"x" * 500), (b"X-Request-Id", b"\xc3\xa9\xff"), (b"Authorization", b"Bearer ekt_x"),
    (b"Authorization", b"Basic \xff"), (b"Range", b"bytes=0-1"), (b"Cookie", b"a=b"),
    (b"X-Forwarded-For", b"1.2.3.4"), (b"Accept", b"text/event-stream"), (b"X", b"y" * 5000),
    (b"Via", b"1.1 x"), (b"TE", b"trailers"), (b"Trailer", b"X"), (b"Origin", b"null"),
)  # fmt: skip


def _odd_headers(chance: Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
    roll = chance.random()
    if roll < 0.15:  # really compressed, or nearly
        coding = chance.choice((b"gzip", b"deflate"))
        body = gzip.compress(body, 1, mtime=0) if coding == b"gzip" else zlib.compress(body, 1)
        body = garble(chance, body) if chance.random() < 0.3 else body
        return _with(headers, (b"Content-Encoding", coding)), body
    if roll < 0.2:
        return (*headers, *((b"X-%d" % number, b"v") for number in range(chance.choice((20, 90, 120))))), body
    for _ in range(chance.choice((1, 1, 2))):
        headers = _with(headers, chance.choice(_ODD))
    return headers, body


def _with(headers: Headers, field: tuple[bytes, bytes]) -> Headers:
    """In place of the one of that name: two would be another mutation, see REFUSED."""
    return (*(one for one in headers if one[0].lower() != field[0].lower()), field)


def _large(chance: Random, body: bytes) -> bytes:
    """Large in some way; still below the limit of a body."""
    match chance.randrange(5):
        case 0:
            return b"[" * 100_000
        case 1:
            return (
                b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[' + b"1," * 50_000 + b"1]}]}"
            )
        case 2:
            return gzip.compress(bytes(1 << 20), 6, mtime=0)
        case 3:
            return body + b" " * 200_000
    return body * (1 + 100_000 // (len(body) + 1))


def _framed(
    chance: Random, method: bytes, path: bytes, headers: Headers, body: bytes, version: bytes
) -> bytes:
    lines = [method + b" " + path + b" HTTP/" + version, b"Host: x"]
    lines += [name + b": " + value for name, value in headers]
    if version == b"1.1" and chance.random() < 0.06:
        lines.append(b"Transfer-Encoding: chunked")
        body = _chunked(chance, body)
    elif body or method not in (b"GET", b"HEAD") or chance.random() < 0.2:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _chunked(chance: Random, body: bytes) -> bytes:
    out = bytearray()
    pos = 0
    while pos < len(body):
        size = chance.choice((1, 7, 100, 1000, 100_000)) if len(body) < 3000 else 100_000
        piece = body[pos : pos + size]
        out += b"%x%s\r\n" % (len(piece), chance.choice((b"", b"", b"", b";a=b"))) + piece + b"\r\n"
        pos += size
    trailer = chance.choice((b"", b"", b"X-Trailer: y\r\n", b"Content-Type: image/png\r\n"))
    return bytes(out) + b"0\r\n" + trailer + b"\r\n"
