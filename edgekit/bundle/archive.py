"""The file around a bundle: an uncompressed tar with exactly one spelling.

POSIX ustar, members sorted by name, mode 0644, every time and owner zero, zero padding, two zero
blocks, nothing after them. The reader recomputes each header and compares, so links, long names,
extensions, other modes, duplicates and reordering are all refused by the same comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from edgekit.bundle.source import Source
from edgekit.errors import FormatError

BLOCK = 512
MAX_MEMBERS = 8192
BLOB_FOLDER = "blobs/sha256/"
LAYOUT_NAME = "oci-layout"
LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
INDEX_NAME = "index.json"
_NAME = re.compile(r"blobs/sha256/[0-9a-f]{64}|index\.json|oci-layout")
_SIZE = slice(124, 136)


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the file."""

    offset: int
    size: int


def header(name: str, size: int) -> bytes:
    """The only header that a member may have: 512 bytes."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"%07o\0%07o\0%07o\0" % (0o644, 0, 0),
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        b"0",
        b"\0" * 100,
        b"ustar\x0000",
    )
    block = bytearray(b"".join(fields).ljust(BLOCK, b"\0"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def write(file: BinaryIO, members: Mapping[str, bytes]) -> None:
    """Write members in the order of their names."""
    copy(file, {name: (len(data), [data]) for name, data in members.items()})


def copy(file: BinaryIO, members: Mapping[str, tuple[int, Iterable[bytes]]]) -> None:
    """`write` for members that come in pieces, as (size, pieces)."""
    for name in sorted(members):
        size, pieces = members[name]
        file.write(header(name, size))
        for piece in pieces:
            file.write(piece)
        file.write(b"\0" * (-size % BLOCK))
    file.write(b"\0" * (2 * BLOCK))


def read(source: Source) -> dict[str, Member]:
    """Name to place. Raises FormatError for any file that `write` would not have written."""
    if source.size < 3 * BLOCK or source.size % BLOCK:
        raise FormatError("not an edgekit bundle, or cut short", "fetch it again")
    members: dict[str, Member] = {}
    last = ""
    for name, member in _members(source):
        if name <= last:
            raise FormatError(f"bundle member {name!r} is out of order or there twice", _HINT)
        members[name] = member
        last = name
        if len(members) > MAX_MEMBERS:
            raise FormatError(f"bundle: more than {MAX_MEMBERS} members")
    for required in (INDEX_NAME, LAYOUT_NAME):
        if required not in members:
            raise FormatError(f"not an edgekit bundle: it has no {required}", _HINT)
    layout = members[LAYOUT_NAME]
    if layout.size != len(LAYOUT) or source.read(layout.offset, layout.size) != LAYOUT:
        raise FormatError("bundle: unknown oci-layout version", "update edgekit")
    return members


_HINT = (
    "it was edited or damaged; an archive from a registry is made a bundle by `edgekit verify --import-to`"
)


def _members(source: Source) -> Iterator[tuple[str, Member]]:
    at = 0
    end = source.size - 2 * BLOCK
    while at < end:
        block = source.read(at, BLOCK)
        name, size = _name_and_size(block)
        offset = at + BLOCK
        at = offset + size + (-size % BLOCK)
        if at > end:
            raise FormatError(f"bundle member {name!r} is cut short", "fetch it again")
        if source.read(offset + size, -size % BLOCK).strip(b"\0"):
            raise FormatError(f"bundle member {name!r}: bytes after its end", _HINT)
        yield name, Member(offset, size)
    if source.read(end, 2 * BLOCK).strip(b"\0"):
        raise FormatError("bundle: bytes after its end, or cut short", _HINT)


def _name_and_size(block: bytes) -> tuple[str, int]:
    raw = block[:100].rstrip(b"\0").decode("ascii", errors="replace")
    digits = block[_SIZE]
    if not _NAME.fullmatch(raw) or not re.fullmatch(rb"[0-7]{11}\0", digits):
        raise FormatError(f"not an edgekit bundle: unexpected member {raw[:100]!r}", _HINT)
    size = int(digits[:11], 8)
    if header(raw, size) != block:
        raise FormatError(f"bundle member {raw!r}: its header is not in canonical form", _HINT)
    return raw, size
