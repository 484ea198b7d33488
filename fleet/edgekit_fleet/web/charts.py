"""Charts as inline SVG, drawn on the server: they need no script and take their colours from the CSS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 560.0, 150.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 8.0, 8.0, 20.0


@dataclass(frozen=True)
class Series:
    """A named line; None where nothing was measured. At most three per chart have a colour of their own."""

    name: str
    values: Sequence[float | None]


def line_chart(title: str, unit: str, times: Sequence[float], series: Sequence[Series]) -> Markup:
    """Lines over time (seconds since the epoch, ascending). Without data: a sentence instead."""
    known = [v for line in series for v in line.values if v is not None]
    if len(times) < 2 or not known:
        return Markup('<p class="empty">No telemetry yet for: {}.</p>').format(title)
    top = nice_ceiling(max(known))
    start, end = times[0], max(times[-1], times[0] + 1.0)  # reports of one instant are a second wide
    parts = [_grid(top), _time_axis(start, end)]
    for index, line in enumerate(series):
        points = [
            (_x((t - start) / (end - start)), _y(v / top)) if v is not None else None
            for t, v in zip(times, line.values, strict=True)
        ]
        parts.append(Markup('<path class="line line-{}" d="{}"/>').format(index, _path(points)))
    latest = ", ".join(f"{line.name} {_short(_last(line.values))} {unit}".strip() for line in series)
    return _svg(HEIGHT, f"{title}, latest: {latest}", Markup("").join(parts))


def _svg(height: float, label: str, body: Markup) -> Markup:
    return Markup(
        '<svg class="chart" viewBox="0 0 {w:g} {h:g}" role="img" aria-label="{label}">'
        "<title>{label}</title>{body}</svg>"
    ).format(w=WIDTH, h=height, label=label, body=body)


def _grid(top: float) -> Markup:
    lines = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share)
        lines.append(
            Markup(
                '<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(_LEFT, WIDTH - _RIGHT, _LEFT - 5, y + 4, _short(top * share), y=y)
        )
    return Markup("").join(lines)


def _time_axis(start: float, end: float) -> Markup:
    span = end - start
    text = (
        f"{span:.0f} s" if span < 120 else f"{span / 60:.0f} min" if span < 7200 else f"{span / 3600:.1f} h"
    )
    return Markup(
        '<text class="tick" x="{}" y="{}">{} ago</text>'
        '<text class="tick" x="{}" y="{}" text-anchor="end">latest</text>'
    ).format(_LEFT, HEIGHT - 4, text, WIDTH - _RIGHT, HEIGHT - 4)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    """SVG path data; a gap lifts the pen, a lonely point becomes a short dash."""
    parts: list[str] = []
    pen_down = False
    for point in points:
        if point is None:
            pen_down = False
            continue
        x, y = point
        parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}" + ("" if pen_down else "h.1"))
        pen_down = True
    return "".join(parts)


def _x(share: float) -> float:
    return _LEFT + share * (WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _TOP + (1 - min(max(share, 0.0), 1.0)) * (HEIGHT - _TOP - _BOTTOM)


def bar_chart(title: str, counts: Mapping[str, int], most: int = 12) -> Markup:
    """Horizontal bars, largest first; what is beyond `most` is summed up as "others"."""
    ranked = sorted(((name, n) for name, n in counts.items() if n > 0), key=lambda item: (-item[1], item[0]))
    if not ranked:
        return Markup('<p class="empty">No telemetry yet for: {}.</p>').format(title)
    shown = ranked[:most]
    if len(ranked) > most:
        shown.append(("others", sum(n for _, n in ranked[most:])))
    total, longest = sum(counts.values()), max(n for _, n in shown)
    row, left = 20.0, 150.0
    parts = []
    for index, (name, count) in enumerate(shown):
        y = index * row
        width = (WIDTH - left - 110) * count / longest
        label = name if len(name) <= 22 else f"{name[:21]}…"
        parts.append(
            Markup(
                '<text class="name" x="{}" y="{:.0f}" text-anchor="end">{}</text>'
                '<rect class="bar" x="{}" y="{:.0f}" width="{:.1f}" height="13" rx="2"/>'
                '<text class="tick" x="{:.1f}" y="{:.0f}">{} ({:.1%})</text>'
            ).format(
                *(left - 8, y + 14, label),
                *(left, y + 3, max(width, 1.0)),
                *(left + max(width, 1.0) + 6, y + 14, count, count / total),
            )
        )
    return _svg(len(shown) * row + 4, title, Markup("").join(parts))


def progress_bar(label: str, parts: Sequence[tuple[str, int]]) -> Markup:
    """One bar of coloured shares: [(css class, count)]."""
    total = sum(count for _, count in parts)
    x, body = 0.0, []
    for name, count in parts:
        width = 100.0 * count / total if total else 0.0
        if width:
            body.append(
                Markup('<rect class="{}" x="{:.3f}" width="{:.3f}" height="10"/>').format(name, x, width)
            )
        x += width
    return Markup(
        '<svg class="progress" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="nothing" width="100" height="10"/>{}</svg>'
    ).format(label, Markup("").join(body))


def nice_ceiling(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    if value <= 0 or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    steps = (step * power for step in (1.0, 2.0, 5.0, 10.0))
    return next((step for step in steps if value <= step * (1 + 1e-9)), value)


def _last(values: Sequence[float | None]) -> float:
    return next((v for v in reversed(values) if v is not None), 0.0)


def _short(value: float) -> str:
    for limit, factor, suffix in ((1e3, 1.0, ""), (1e6, 1e-3, "k")):
        if value < limit:
            return f"{value * factor:.3g}{suffix}"
    return f"{value * 1e-6:.3g}M"
