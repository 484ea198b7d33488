"""Edits of the file around the blobs: flips, cuts, extensions, tar tricks."""

from __future__ import annotations

import gzip
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence

from edgekit.bundle import archive
from tests.attacks.forge import Forge

Case = tuple[str, bytes]
BLOCK = archive.BLOCK


def flips(data: bytes) -> Iterator[Case]:
    """One bit in every 29th byte, and every byte of the first header, of index.json and of the end."""
    forge = Forge(data)
    tail = data.index(b"index.json\0")
    dense = [*range(BLOCK), *range(tail, tail + BLOCK), *range(len(data) - 1100, len(data), 3)]
    for at in sorted({*dense, *range(0, len(data), 29)}):
        edited = bytearray(data)
        edited[at] ^= 1 << (at % 8)
        yield f"bit {at % 8} of byte {at}", bytes(edited)
    assert forge.data() == data


def cuts(data: bytes) -> Iterator[Case]:
    """Truncated anywhere, at block borders too; bytes taken out of the middle."""
    for size in {*range(0, len(data), 331), *range(0, len(data), BLOCK)}:
        yield f"cut to {size}", data[:size]
    for at in range(0, len(data) - BLOCK, 4 * BLOCK):
        yield f"block at {at} taken out", data[:at] + data[at + BLOCK :]
        yield f"byte at {at} taken out", data[:at] + data[at + 1 :]


def extensions(data: bytes) -> Iterator[Case]:
    """Bytes added at the end, the start and inside."""
    extra = (b"\0", b"\n", b"\0" * BLOCK, b"\0" * 2 * BLOCK, b"x" * BLOCK, data, data[:BLOCK])
    for number, more in enumerate(extra):
        yield f"extension {number} at the end", data + more
        yield f"extension {number} at the start", more + data
    yield "padded to a record, as GNU tar does", data + b"\0" * (-len(data) % 10240 or 10240)
    for at in range(0, len(data), 8 * BLOCK):
        yield f"a block of zeros at {at}", data[:at] + b"\0" * BLOCK + data[at:]
    yield "gzip", gzip.compress(data)


def members(data: bytes) -> Iterator[Case]:
    """Members reordered, repeated, renamed, left out, added."""
    files = Forge(data).files()
    items = sorted(files.items())
    for a, b in itertools.islice(itertools.combinations(range(len(items)), 2), 0, None, 2):
        swapped = list(items)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        yield f"members {a} and {b} in each other's place", _tar(swapped)
    for number, (name, content) in enumerate(items):
        without = items[:number] + items[number + 1 :]
        yield f"{name} left out", _tar(without)
        yield f"{name} twice", _tar([*items[: number + 1], *items[number:]])
        yield f"{name} again at the end", _tar([*items, (name, content)])
        yield f"{name} empty", _tar([*items[:number], (name, b""), *items[number + 1 :]])
        yield f"{name} longer", _tar([*items[:number], (name, content + b"\0"), *items[number + 1 :]])
        for trick in NAMES:
            renamed = sorted([*without, (trick, content)])
            yield f"{name} renamed to {trick!r}", _tar(renamed)
        for other, theirs in items[number + 1 :]:
            changed = {**files, name: theirs, other: content}
            yield f"contents of {name} and {other} swapped", _tar(sorted(changed.items()))
    for trick in NAMES:
        yield f"added {trick!r}", _tar(sorted([*items, (trick, b"x")]))


NAMES = (
    "../evil",
    "/etc/passwd",
    "./index.json",
    "INDEX.JSON",
    "blobs/sha256/",
    "blobs/sha256/../../evil",
    "blobs/sha256/" + "A" * 64,
    "blobs/sha256/" + "0" * 63,
    "blobs/sha512/" + "0" * 64,
    "a\\b",
    "",
)


def headers(data: bytes) -> Iterator[Case]:
    """Header fields that other tars use: types, links, modes, owners, sizes, extensions."""
    edits: dict[str, Callable[[bytearray], None]] = {}

    def put(name: str, at: int, value: bytes) -> None:
        def edit(block: bytearray) -> None:
            block[at : at + len(value)] = value

        edits[name] = edit

    for kind in b"\x00123456789xgLKSVDN":
        put(f"type {chr(kind)!r}", 156, bytes([kind]))
    for link in (b"/etc/passwd", b"../../x", b"index.json"):
        put(f"symbolic link to {link!r}", 156, b"2" + link)
        put(f"hard link to {link!r}", 156, b"1" + link)
    put("mode", 100, b"0000755\0")
    put("setuid", 100, b"0004644\0")
    put("uid", 108, b"0001750\0")
    put("gid", 116, b"0001750\0")
    put("time", 136, b"14000000000\0")
    put("owner name", 265, b"root")
    put("device", 329, b"0000000\0")
    put("prefix", 345, b"x")
    put("rubbish at the end", 500, b"x")
    put("gnu magic", 257, b"ustar  \0")
    put("old magic", 257, b"\0" * 8)
    for size in (
        b"77777777777\0",
        b"00000000000\0",
        b"           1\0",
        b"\x80" + b"\xff" * 11,
        b"-0000000001\0",
    ):
        put(f"size {size!r}", 124, size)
    positions = list(_header_positions(data))
    for at in (positions[0], positions[len(positions) // 2], positions[-1]):
        for name, edit in edits.items():
            block = bytearray(data[at : at + BLOCK])
            edit(block)
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
            yield f"{name} in the header at {at}", data[:at] + block + data[at + BLOCK :]
    for at in _padding_positions(data):
        yield f"padding at {at}", data[:at] + b"x" + data[at + 1 :]
    for fmt, name in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        yield f"rewritten as {name}", _foreign(data, fmt)


def blob_swaps(one: bytes, two: bytes) -> Iterator[Case]:
    """Members of one valid bundle inside another valid bundle of the same builder."""
    mine, theirs = Forge(one).files(), Forge(two).files()
    for (a, _), (b, content) in itertools.product(sorted(mine.items()), sorted(theirs.items())):
        if mine.get(a) == content:
            continue
        yield f"{a} holds what {b} holds there", _tar(sorted({**mine, a: content}.items()))
        if b not in mine:
            without = {k: v for k, v in mine.items() if k != a}
            yield f"{a} replaced by {b}", _tar(sorted({**without, b: content}.items()))
    yield "both", _tar(sorted({**theirs, **mine}.items()))
    yield "theirs with my index", _tar(sorted({**theirs, "index.json": mine["index.json"]}.items()))


def _tar(items: Sequence[tuple[str, bytes]]) -> bytes:
    """Members in exactly this order, with proper headers."""
    parts = [
        archive.header(name, len(content)) + content + b"\0" * (-len(content) % BLOCK)
        for name, content in items
    ]
    return b"".join(parts) + b"\0" * (2 * BLOCK)


def _header_positions(data: bytes) -> Iterator[int]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            yield member.offset


def _padding_positions(data: bytes) -> Iterator[int]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for member in tar:
            if member.size % BLOCK:
                yield member.offset_data + member.size
                yield member.offset_data + member.size + (-member.size % BLOCK) - 1


def _foreign(data: bytes, fmt: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=fmt) as tar:
        for name, content in sorted(Forge(data).files().items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5 if fmt == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()
