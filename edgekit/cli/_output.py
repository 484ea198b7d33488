"""How commands speak: lines of text, or one JSON document with `--json`."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from edgekit import codec


def say(text: str = "") -> None:
    """One or more lines on stdout. Control characters, which could drive a terminal, become `?`."""
    clean = "".join("?" if c != "\n" and unicodedata.category(c) in ("Cc", "Cs") else c for c in text)
    sys.stdout.write(clean + "\n")


def say_json(value: Any) -> None:
    """A dataclass or plain value as JSON on stdout."""
    sys.stdout.write(json.dumps(codec.to_plain(value), indent=2, ensure_ascii=True) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns padded to their widest cell."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def kib(size: int) -> str:
    """Bytes for people: 81234 -> 79.3 KiB."""
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"
