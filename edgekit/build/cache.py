"""Content-addressed cache: the same question is answered from disk, and a damaged answer is not an answer.

One file per entry: a line of JSON (name -> [size, sha256]), then the contents in that order.
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

from edgekit import codec
from edgekit.errors import SystemFault
from edgekit.files import write_bytes

FORMAT = 1


def default_folder() -> Path:
    """$EDGEKIT_CACHE, or ~/.cache/edgekit (XDG_CACHE_HOME is honoured)."""
    if chosen := os.environ.get("EDGEKIT_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def key_of(kind: str, question: Mapping[str, Any]) -> str:
    """Hex SHA-256 of everything the answer depends on."""
    return hashlib.sha256(codec.to_json({"format": FORMAT, "kind": kind, **question})).hexdigest()


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
    """Names and contents as one byte string."""
    head = {name: [len(data), hashlib.sha256(data).hexdigest()] for name, data in files.items()}
    return json.dumps(head).encode() + b"\n" + b"".join(files.values())


def unpack(data: bytes) -> dict[str, bytes]:
    """The inverse of `pack`. Raises ValueError when anything is damaged."""
    line, _, rest = data.partition(b"\n")
    files: dict[str, bytes] = {}
    try:
        for name, (size, digest) in json.loads(line).items():
            content, rest = rest[:size], rest[size:]
            if len(content) != size or hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"{name} is damaged")
            files[name] = content
    except (AttributeError, TypeError) as exc:
        raise ValueError("not a cache entry") from exc
    if rest:
        raise ValueError("trailing bytes")
    return files
