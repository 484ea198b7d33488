"""Content-addressed cache: the same question is answered from disk, and a damaged answer is not an answer.

One file per entry: the SHA-256 of what follows, a line of JSON (name -> size), the contents in that order.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgekit
from edgekit import codec
from edgekit.errors import SystemFault
from edgekit.files import write_bytes

FORMAT = 2


def default_folder() -> Path:
    """$EDGEKIT_CACHE, or ~/.cache/edgekit (XDG_CACHE_HOME is honoured)."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def key_of(kind: str, question: Mapping[str, Any]) -> str:
    """Hex SHA-256 of everything the answer depends on, edgekit's own version included."""
    asked = {"format": FORMAT, "edgekit": edgekit.__version__, "kind": kind, **question}
    return hashlib.sha256(codec.to_json(asked)).hexdigest()


@dataclass(frozen=True)
class Cache:
    """`folder` None: nothing is remembered."""

    folder: Path | None

    def get(self, key: str) -> dict[str, bytes] | None:
        """The entry, or None when it is absent, unreadable or damaged."""
        if self.folder is None:
            return None
        try:
            return unpack(_path(self.folder, key).read_bytes())
        except (OSError, ValueError):
            return None

    def put(self, key: str, files: Mapping[str, bytes]) -> None:
        """Remember an entry. A full disk only costs the next build time."""
        if self.folder is None:
            return
        path = _path(self.folder, key)
        with suppress(OSError, SystemFault):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, pack(files))


def _path(folder: Path, key: str) -> Path:
    return folder / key[:2] / key


def pack(files: Mapping[str, bytes]) -> bytes:
    """Names and contents as one byte string under one digest."""
    sizes = {name: len(data) for name, data in files.items()}
    body = json.dumps(sizes).encode() + b"\n" + b"".join(files.values())
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def unpack(data: bytes) -> dict[str, bytes]:
    """The inverse of `pack`. Raises ValueError when a single bit differs."""
    digest, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("damaged")
    line, _, rest = body.partition(b"\n")
    files: dict[str, bytes] = {}
    for name, size in json.loads(line).items():
        files[name], rest = rest[:size], rest[size:]
    return files
