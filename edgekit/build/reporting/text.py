"""Text and numbers for an HTML page. Names come from models and files of others: everything is hostile."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable

DASH = "–"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories without a glyph of their own: control characters, bidirectional overrides,
zero-width marks, lone surrogates."""


def esc(value: object, limit: int = 2000) -> str:
    """Safe inside an element and inside a quoted attribute, and shows what is really there."""
    text = str(value)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    shown = "".join(
        " " if c in "\n\t" else "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _HIDDEN else c
        for c in text
    )
    return html.escape(shown, quote=True)


def number(value: float | None, digits: int = 3) -> str:
    """To `digits` significant digits without exponent: 0.21, 3.41, 127, 20500."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def share(value: float | None) -> str:
    """A metric's value, four decimals."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference, with a real minus sign."""
    return DASH if not math.isfinite(value) else f"{value:+.4f}".replace("-", "−")


def ratio(over: float, under: float) -> str:
    """How many times `over` is of `under`: "1.31x"."""
    return f"{over / under:.2f}×" if under > 0 and math.isfinite(over / under) else DASH


def size(value: float) -> str:
    """Bytes for people, decimal units as in the build's table."""
    if value >= 1e6:
        return f"{number(value / 1e6)} MB"
    return f"{number(value / 1e3)} kB"


def common_prefix(names: Iterable[str]) -> int:
    """Letters that all names share, up to the last separator: what may be left out of a list of them."""
    every = list(names)
    if len(every) < 2:
        return 0
    first, last = min(every), max(every)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return max(first.rfind(mark, 0, same) for mark in "/.:") + 1
