"""Where a bundle's bytes come from: memory, or a file that is read piece by piece."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from edgekit.errors import FormatError, InputError

CHUNK = 1 << 20
MAX_BUNDLE_BYTES = 2 * 1024**3


class Source(Protocol):
    """Random access to bytes."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes. Raises FormatError when the source has become shorter."""
        ...


class BytesSource:
    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data)
        self.size = len(self._view)

    def read(self, offset: int, size: int) -> bytes:
        return _exactly(bytes(self._view[offset : offset + size]), size)


class FileSource:
    """A file, opened anew for each read: nothing has to be closed, and a file that is replaced in
    between is noticed, because everything that is read is checked against signed digests."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if not path.is_file():
                problem = "is not a file" if path.exists() else "no such file"
                raise InputError(f"{path}: {problem}", "give the path of an .edgekit bundle")
            self.size = path.stat().st_size
        except OSError as exc:
            raise InputError(f"cannot read {path}: {exc.strerror}") from None

    def read(self, offset: int, size: int) -> bytes:
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(offset)
                parts = []
                while size and (part := file.read(size)):
                    parts.append(part)
                    size -= len(part)
        except OSError as exc:
            raise InputError(f"cannot read {self._path}: {exc.strerror}") from None
        if size:
            raise FormatError("the bundle became shorter while it was read")
        return parts[0] if len(parts) == 1 else b"".join(parts)


def source_of(where: Path | str | bytes | bytearray | memoryview) -> Source:
    """Raises InputError for a file that cannot be read, FormatError for one larger than MAX_BUNDLE_BYTES."""
    source: Source = FileSource(Path(where)) if isinstance(where, Path | str) else BytesSource(where)
    if source.size > MAX_BUNDLE_BYTES:
        raise FormatError(f"bundle: {source.size} bytes, more than the {MAX_BUNDLE_BYTES} allowed")
    return source


def pieces(source: Source, offset: int, size: int) -> Iterator[bytes]:
    """A range, a mebibyte at a time."""
    for at in range(offset, offset + size, CHUNK):
        yield source.read(at, min(CHUNK, offset + size - at))


def sha256(source: Source, offset: int, size: int) -> str:
    """Hex digest of a range, read in pieces."""
    digest = hashlib.sha256()
    for piece in pieces(source, offset, size):
        digest.update(piece)
    return digest.hexdigest()


def _exactly(data: bytes, size: int) -> bytes:
    if len(data) != size:
        raise FormatError("the bundle is cut short")
    return data
