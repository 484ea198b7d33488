"""Rows of bars (classes, layers) and the latency histogram, as HTML with small SVG drawings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from edgekit.build.reporting import text
from edgekit.build.reporting.document import Candidate, ClassRow, Figures, Histogram, Layer
from edgekit.build.reporting.scale import axis

MAX_ROWS = 40
"""Classes or layers listed; the worst are shown when there are more."""
POOR_DB, FAIR_DB = 10.0, 20.0
"""Signal to noise below which a layer is marked: noise of 1/10 and 1/100 of the signal's power."""
WIDTH, HEIGHT, LEFT, BOTTOM = 360, 190, 8, 38


def classes(rows: Sequence[ClassRow], metric: str) -> str:
    """One bar per class with a tick where fp32 stands; with many classes those that changed most."""
    if not rows:
        return ""
    shown = list(rows)
    if len(rows) > MAX_ROWS:
        worst = sorted(rows, key=lambda r: r.accuracy - r.baseline_accuracy)[:MAX_ROWS]
        shown = [row for row in rows if row in worst]
    body = "".join(
        f'<tr><th scope="row">{text.esc(row.label)}</th>'
        f'<td class="draw">{_bar(row.accuracy, 1.0, "bar", tick=row.baseline_accuracy)}</td>'
        f"<td>{row.accuracy:.3f}</td><td>{row.baseline_accuracy:.3f}</td>"
        f'<td class="{_tone(row.accuracy - row.baseline_accuracy)}">'
        f"{text.signed(row.accuracy - row.baseline_accuracy)}</td><td>{row.samples or text.DASH}</td></tr>"
        for row in shown
    )
    more = (
        f'<p class="note">The {len(shown)} of {len(rows)} classes that lost most.</p>'
        if len(shown) < len(rows)
        else ""
    )
    head = ("class", "", text.esc(metric), "fp32", "change", "samples")
    return _table("bars", head, body) + '<p class="note">Bar: this candidate. Tick: fp32.</p>' + more


def layers(rows: Sequence[Layer]) -> str:
    """Signal to quantization noise per layer, the noisiest first; of many only those."""
    known = [row for row in rows if row.sqnr_db is not None and math.isfinite(row.sqnr_db)]
    if not known:
        return ""
    shown = known
    if len(known) > MAX_ROWS:
        worst = sorted(known, key=lambda r: r.sqnr_db or 0.0)[:MAX_ROWS]
        shown = [row for row in known if row in worst]
    cut = text.common_prefix(row.name for row in shown)
    top = max(50.0, *(row.sqnr_db or 0.0 for row in shown))
    body = "".join(_layer(row, cut, top) for row in shown)
    note = (
        f"Signal over noise at the model's outputs, in dB, when this layer alone is quantized: higher is "
        f"better; below {FAIR_DB:.0f} the noise is more than a hundredth of the signal's power."
    )
    more = f" The {len(shown)} noisiest of {len(known)} layers." if len(shown) < len(known) else ""
    return _table("bars", ("layer", "", "dB", "operator"), body) + f'<p class="note">{note}{more}</p>'


def _layer(row: Layer, cut: int, top: float) -> str:
    value = row.sqnr_db or 0.0
    tone = "bar poor" if value < POOR_DB else "bar fair" if value < FAIR_DB else "bar"
    return (
        f'<tr><th scope="row" title="{text.esc(row.name)}">{text.esc(row.name[cut:] or row.name, 60)}</th>'
        f'<td class="draw">{_bar(value, top, tone)}</td><td>{value:.1f}</td>'
        f"<td>{text.esc(row.op, 40)}</td></tr>"
    )


def histogram(candidate: Candidate, reference: Figures | None) -> str:
    """Latency of the candidate over that of fp32 (`reference`: its figures, if it was a candidate)."""
    figures = candidate.figures
    shape = figures.latency_histogram if figures else None
    if figures is None or shape is None or len(shape.edges_ms) != len(shape.counts) + 1 or not shape.counts:
        return ""
    series = [("fp32", "was", _baseline(shape, reference), figures.baseline_latency.p50_ms)] * (
        not figures.is_baseline
    )
    series.append(("this candidate", "now", shape, figures.latency.p50_ms))
    present = [(name, kind, s, p50) for name, kind, s, p50 in series if s and sum(s.counts)]
    x = axis((e for _, _, s, _ in present for e in s.edges_ms), LEFT, WIDTH - LEFT, pad=0.02)
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks(6):
        at = x.at(tick)
        parts.append(f'<path d="M{at} 12V{bottom}" class="grid"/>')
        parts.append(f'<text x="{at}" y="{bottom + 15}" class="tick mid">{text.number(tick, 3)}</text>')
    for name, kind, s, p50 in present:
        parts.append(_steps(s, x.at, kind))
        parts.append(
            f'<path d="M{x.at(p50)} 12V{bottom}" class="median {kind}"><title>{name}: p50 '
            f"{text.number(p50)} ms</title></path>"
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" class="axis mid">milliseconds per run</text>')
    key = "".join(
        f'<li><span class="swatch {kind}"></span>{name}, p50 {text.number(p50)} ms</li>'
        for name, kind, _, p50 in reversed(present)
    )
    return (
        f'<figure class="histogram"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="latency">'
        f'{"".join(parts)}</svg><ul class="legend">{key}</ul></figure>'
    )


def _baseline(own: Histogram, reference: Figures | None) -> Histogram | None:
    """fp32's runs: measured beside the candidate, else those of the fp32 candidate."""
    if len(own.baseline_counts) == len(own.counts):
        return Histogram(own.edges_ms, own.baseline_counts)
    return reference.latency_histogram if reference else None


def _steps(shape: Histogram, place: Callable[[float], float], kind: str) -> str:
    """Share of runs per millisecond, as an outline; equal areas for equal numbers of runs."""
    widths = [b - a for a, b in zip(shape.edges_ms, shape.edges_ms[1:], strict=False)]
    density = [n / w if w > 0 else 0.0 for n, w in zip(shape.counts, widths, strict=False)]
    top, bottom = max(density) or 1.0, HEIGHT - BOTTOM
    path = f"M{place(shape.edges_ms[0])} {bottom}"
    for edge, value in zip(shape.edges_ms[1:], density, strict=False):
        path += f"V{bottom - round(value / top * (bottom - 20), 1)}H{place(edge)}"
    return f'<path d="{path}V{bottom}" class="steps {kind}"/>'


def _bar(value: float, top: float, kind: str, tick: float | None = None) -> str:
    """A bar of `value` of `top` that fills its cell, whatever the cell's width."""
    width = round(100 * min(max(value / top, 0.0), 1.0), 2) if top else 0
    mark = ""
    if tick is not None:
        at = round(100 * min(max(tick / top, 0.0), 1.0), 2)
        mark = f'<path d="M{at} 0V10" class="was" vector-effect="non-scaling-stroke"/>'
    return (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect y="1" width="100" height="8" class="track"/>'
        f'<rect y="1" width="{width}" height="8" class="{kind}"/>'
        f"{mark}</svg>"
    )


def _tone(change: float) -> str:
    return "worse" if change < -0.02 else "better" if change > 0.02 else "same"


def _table(kind: str, head: Sequence[str], body: str) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>'
