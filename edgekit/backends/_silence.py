"""Libraries that print what nobody asked for, silenced without touching other threads.

`contextlib.redirect_stdout` restores what it found: of two overlapping ones in two threads, the last to leave
puts the other's sink back, and the program has lost its standard output for good.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_lock = threading.Lock()
_mine = threading.local()
_inside = 0
_real: TextIO | None = None


@contextmanager
def silenced() -> Iterator[None]:
    """Drops what this thread prints."""
    global _inside, _real
    with _lock:
        if not _inside:
            _real = sys.stdout
            sys.stdout = cast(TextIO, _Filter(_real))
        _inside += 1
    _mine.depth = getattr(_mine, "depth", 0) + 1
    try:
        yield
    finally:
        _mine.depth -= 1
        with _lock:
            _inside -= 1
            if not _inside and _real is not None:
                sys.stdout, _real = _real, None


class _Filter:
    """Standard output without the threads that are `silenced`."""

    def __init__(self, real: TextIO) -> None:
        self._real = real

    def write(self, text: str) -> int:
        return len(text) if getattr(_mine, "depth", 0) else self._real.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)
