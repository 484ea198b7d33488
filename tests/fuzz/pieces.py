"""Parts of HTTP/1.1 requests that keep its framing, right and odd. Pure."""

from __future__ import annotations

import gzip
import zlib
from random import Random

from tests.fuzz.mutate import garble
from tests.fuzz.seeds import Headers
from tests.fuzz.targets import BESIDE

_SEGMENTS = (
    b"v1", b"v2", b"models", b"kws", b"infer", b"versions", b"1.2.3", b"labels", b"stable", b"metadata",
    b"ready", b"config", b"stats", b"predictions", b"", b".", b"..", b"%2e%2e", b"%00", b"%ff", b"%zz",
    b"%", b"a" * 300, b"1", b"-1", b"99999999999999999999", b"kws:predict", b"kws:", b":",
    b"kws:classify:predict", b"systemsharedmemory", b"region", b"status", b"register", b"unregister",
    b"%2F", b"kws%3Apredict", b"\xc3\xa9".hex().encode(), b"health",
    BESIDE.encode(), f"{BESIDE}:predict".encode(),
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


def odd_path(chance: Random, path: bytes) -> bytes:
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


def odd_headers(chance: Random, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
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


def large(chance: Random, body: bytes) -> bytes:
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


def framed(
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
