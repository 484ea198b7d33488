"""multipart/form-data (RFC 7578), of bodies that are in memory already. Pure; parts are bounded in number."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgekit.errors import InputError

MAX_PARTS = 256
_MAX_HEADER_BYTES = 4096
_BOUNDARY = re.compile(
    rb"""[;\s]boundary=(?:"([^"\r\n]{1,70})"|([^\s";,]{1,70})(?=[\s;,]|$))""", re.IGNORECASE
)
_NAME = re.compile(rb"""[;\s]name=(?:"([^"\r\n]*)"|([^\s";]+))""", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    data: bytes
    content_type: str
    """Lower case, without parameters; empty when the part says none."""


def parse(body: bytes, content_type: bytes) -> list[Part]:
    """The parts of `body`; `content_type` is the header's value, with its boundary. Raises InputError."""
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise InputError("multipart/form-data without a boundary")
    first = b"--" + (found[1] or found[2])
    mark = b"\r\n" + first
    before = -2 if body.startswith(first) else body.find(mark)
    if before == -1:
        raise InputError("the form does not hold its boundary")
    at = before + len(mark)
    parts: list[Part] = []
    while not body.startswith(b"--", at):
        end = body.find(mark, at)
        if end < 0:
            raise InputError("the form is cut short: its last boundary is missing")
        if len(parts) == MAX_PARTS:
            raise InputError(f"the form has more than {MAX_PARTS} parts")
        parts.append(_part(body, at, end))
        at = end + len(mark)
    return parts


def media_type(value: bytes) -> str:
    """The media type of a Content-Type header, lower case and without its parameters."""
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def _part(body: bytes, at: int, end: int) -> Part:
    """What lies between two boundaries: the rest of the boundary's line, a header, an empty line, data."""
    limit = min(at + _MAX_HEADER_BYTES, end)
    begin = body.find(b"\r\n", at, limit)
    stop = body.find(b"\r\n\r\n", begin, limit) if begin >= 0 else -1
    if stop < 0 or body[at:begin].strip(b" \t"):
        raise InputError("a part of the form has no header, or too large a one")
    headers: dict[bytes, bytes] = {}
    for line in body[begin + 2 : stop].split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if not colon:
            raise InputError("a part of the form has a broken header")
        headers[name.strip().lower()] = value.strip()
    disposition = headers.get(b"content-disposition", b"")
    found = _NAME.search(disposition)
    if not disposition.lower().startswith(b"form-data") or found is None:
        raise InputError("a part of the form has no name")
    try:
        text = (found[1] if found[1] is not None else found[2]).decode()
    except UnicodeDecodeError:
        raise InputError("the name of a part of the form is not UTF-8") from None
    return Part(text, body[stop + 4 : end], media_type(headers.get(b"content-type", b"")))
