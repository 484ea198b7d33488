"""What the protocols over HTTP share: methods, bodies, errors. No state."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from edgekit.errors import InputError
from edgekit_agent.serve import jsons
from edgekit_agent.serve.message import Request, Response, error

Respond = Callable[[Response], None]
"""Takes the answer, now or later, exactly once."""
Shape = Callable[[int, str, str], Response]
"""A protocol's error: status, one line of text, more header fields (each ended by CRLF)."""

INLINE_BODY_BYTES = 64 * 1024
"""Larger bodies are parsed on the model's thread, so that they do not hold up other connections."""
RETRY = "Retry-After: 1\r\n"
_GZIP = 16 + zlib.MAX_WBITS
_CODINGS = {b"gzip": _GZIP, b"deflate": zlib.MAX_WBITS}
_PACKED_FROM = 256  # bytes; smaller answers grow
_SHORT = 120  # longest parser message that an error repeats


def parts_of(target: bytes) -> list[str]:
    """The path of a request's target, split at slashes and percent-decoded; at least one part."""
    path = target.partition(b"?")[0]
    return [unquote(part) for part in path.decode("latin-1").split("/")[1:]] or [""]


def allowed(method: bytes, request: Request, respond: Respond, shape: Shape = error) -> bool:
    """Whether the request has this method; if not, it is answered 405 here."""
    if request.method == method:
        return True
    respond(shape(405, "Method Not Allowed", f"Allow: {method.decode()}\r\n"))
    return False


def refusal(status: int, text: str, shape: Shape = error) -> Response:
    """An error with the header fields that go with its status."""
    return shape(status, text, RETRY if status == 503 else "")


def heavy(request: Request) -> bool:
    """Whether decoding the body is worth a thread."""
    return len(request.body) > INLINE_BODY_BYTES or b"content-encoding" in request.headers


def body(request: Request, max_bytes: int) -> bytes:
    """The body, decompressed where it was compressed. Raises InputError."""
    return bytes(buffer(request, max_bytes))


def buffer(request: Request, max_bytes: int) -> bytes | bytearray:
    """As `body`, without a copy: a large one may be a bytearray. Raises InputError."""
    encoding = request.headers.get(b"content-encoding")
    return request.body if encoding is None else decompress(request.body, encoding, max_bytes)


def small(request: Request) -> bytes:
    """The body of a request that is read on the event loop. Raises InputError where it is not worth that."""
    if len(request.body) > INLINE_BODY_BYTES:
        raise InputError(f"the body is larger than the {INLINE_BODY_BYTES} bytes that are looked at")
    return body(request, INLINE_BODY_BYTES)


def json_value(text: bytes | bytearray | memoryview) -> Any:
    """The JSON that `text` is. Raises InputError."""
    try:
        return jsons.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"failed to parse the request JSON: {str(exc)[:_SHORT]}") from None


def json_object(text: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The JSON object that `text` is. Raises InputError."""
    document = json_value(text)
    if not isinstance(document, dict):
        raise InputError("the request must be a JSON object")
    return document


def packed(request: Request, response: Response) -> Response:
    """The answer compressed, where the client asks for gzip or for deflate alone, as Triton's does.

    Not for "gzip, deflate": many clients send that with every request, and packing costs more than it saves
    on a device.
    """
    bits = _CODINGS.get(request.headers.get(b"accept-encoding", b""))
    size = len(response.body) + sum(part.nbytes for part in response.tail)
    if bits is None or response.status != 200 or size < _PACKED_FROM:
        return response
    pack = zlib.compressobj(1, zlib.DEFLATED, bits)
    parts = [pack.compress(response.body), *[pack.compress(part) for part in response.tail]]
    coding = "gzip" if bits == _GZIP else "deflate"
    extra = f"{response.extra}Content-Encoding: {coding}\r\nVary: Accept-Encoding\r\n"
    return dataclasses.replace(response, body=b"".join([*parts, pack.flush()]), tail=(), extra=extra)


def decompress(data: bytes | bytearray, encoding: bytes, max_bytes: int) -> bytes | bytearray:
    """Undo gzip or deflate. Raises InputError for anything else, damage, or more than `max_bytes`."""
    name = encoding.strip().lower()
    if name == b"identity":
        return data
    if name not in (b"gzip", b"deflate"):
        raise InputError("Content-Encoding must be gzip or deflate")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either header, gzip's or zlib's
    try:
        plain = unpack.decompress(data, max_bytes + 1)
    except zlib.error as exc:
        raise InputError(f"the compressed body is damaged: {exc}") from None
    if len(plain) > max_bytes:
        raise InputError(f"the body unpacks to more than the {max_bytes} bytes allowed")
    if not unpack.eof or unpack.unused_data:
        raise InputError("the compressed body is cut short or has bytes after its end")
    return plain
