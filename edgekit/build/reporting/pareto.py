"""The Pareto plots of one profile: accuracy against latency, size and memory, drawn as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgekit.build.reporting import text
from edgekit.build.reporting.document import Candidate, Figures, Report
from edgekit.build.reporting.scale import Axis, axis

WIDTH, HEIGHT = 360, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 14, 40
SHAPES = 6
"""Engines beyond this many share shapes and colours."""
FAR_BELOW = 6.0
"""A candidate whose loss is this many times the others' spread is drawn on the edge, so that a broken one
does not squeeze the good ones into a line."""


@dataclass(frozen=True)
class Cost:
    """What an x axis shows."""

    title: str
    unit: str
    of: Callable[[Figures], float]


COSTS = (
    Cost("latency p50", "ms", lambda f: f.latency.p50_ms),
    Cost("size", "kB", lambda f: f.size_bytes / 1000),
    Cost("peak memory", "MiB", lambda f: f.peak_rss_mib),
)

Numbered = tuple[int, Candidate, Figures]


def panels(report: Report, profile: str) -> str:
    """All plots of a profile; empty when nothing was measured."""
    measured = [(i, c, c.figures) for i, c in report.of(profile) if c.figures]
    if not measured:
        return ""
    engines = list(dict.fromkeys(c.engine for c in report.candidates))
    legend = "".join(
        f'<li><svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">'
        f"{_shape(n, 0, 0, 'mark e' + str(n % SHAPES))}</svg>{text.esc(engine)}</li>"
        for n, engine in enumerate(engines)
        if any(c.engine == engine for _, c, _ in measured)
    )
    marks = (
        '<li><svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">'
        '<circle r="6.5" class="ring"/></svg>ships</li>'
        '<li><svg viewBox="-8 -8 16 16" width="14" height="14" aria-hidden="true">'
        '<circle r="4.5" class="mark failed"/></svg>fails a gate</li>'
        '<li><svg viewBox="0 0 22 12" width="22" height="12" aria-hidden="true">'
        '<path d="M1 11H8V6H15V2H21" class="front"/></svg>best for its cost</li>'
        '<li><svg viewBox="0 0 22 12" width="22" height="12" aria-hidden="true">'
        '<rect width="22" height="12" class="band"/></svg>95 % interval of fp32</li>'
    )
    shape_of = {engine: n for n, engine in enumerate(engines)}
    drawn = "".join(_panel(report, measured, cost, shape_of) for cost in COSTS)
    return f'<div class="panels">{drawn}</div><ul class="legend">{legend}{marks}</ul>'


def front(points: Sequence[tuple[float, float]], *, higher: bool) -> list[int]:
    """Positions of the points (cost, value) that no other beats in both, cheapest first."""
    sign = -1.0 if higher else 1.0
    order = sorted(range(len(points)), key=lambda i: (points[i][0], sign * points[i][1]))
    best, found = float("inf"), []
    for i in order:
        if sign * points[i][1] < best:
            best = sign * points[i][1]
            found.append(i)
    return found


def _panel(report: Report, measured: Sequence[Numbered], cost: Cost, shape_of: dict[str, int]) -> str:
    points = [(cost.of(f), f.accuracy.value) for _, _, f in measured]
    x = axis((p[0] for p in points), LEFT + 6, WIDTH - RIGHT, log=True)
    y = _value_axis([f for _, _, f in measured], report.metric.higher_is_better)
    usable = [i for i, (_, c, _) in enumerate(measured) if c.passed]
    best = [usable[i] for i in front([points[i] for i in usable], higher=report.metric.higher_is_better)]
    places = [(x.at(a), y.at(b)) for a, b in points]
    labels = _labels(places)
    metric = text.esc(report.metric.name)
    parts = [
        _band(measured, y),
        _grid(x, y, cost),
        _line([places[i] for i in best], up=report.metric.higher_is_better),
    ]
    # What ships is drawn last, above its neighbours.
    order = sorted(range(len(measured)), key=lambda i: measured[i][1].kept)
    parts += [_point(measured[i], places[i], labels[i], y, cost, metric, shape_of) for i in order]
    return (
        f"<figure><figcaption>{metric} against {cost.title}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{metric} against {cost.title}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _value_axis(figures: Sequence[Figures], higher: bool) -> Axis:
    """Room around the good values; far worse candidates go to the edge."""
    values = sorted((f.accuracy.value for f in figures), reverse=higher)
    good = values[: max(1, (len(values) + 1) // 2)]
    spread = max(abs(good[0] - good[-1]), max(f.accuracy.high - f.accuracy.low for f in figures), 1e-3)
    near = [f for f in figures if abs(f.accuracy.value - good[0]) <= FAR_BELOW * spread]
    room = 0.3 * max(f.baseline_accuracy.high - f.baseline_accuracy.low for f in near)
    bounds = [f.accuracy.value + side for f in near for side in (-room, room)]
    return axis(bounds, HEIGHT - BOTTOM, TOP, pad=0.05)


def _band(measured: Sequence[Numbered], y: Axis) -> str:
    """Where fp32 may truly lie: candidates inside cannot be told from it with these samples."""
    known = next((f for _, c, f in measured if c.kept), measured[0][2]).baseline_accuracy
    top, bottom = sorted((y.at(known.high), y.at(known.low)))
    size = f'width="{WIDTH - RIGHT - LEFT}" height="{round(bottom - top, 2)}"'
    return f'<rect x="{LEFT}" y="{top}" {size} class="band"/>'


def _grid(x: Axis, y: Axis, cost: Cost) -> str:
    bottom, parts = HEIGHT - BOTTOM, []
    ticks = y.ticks(4)
    decimals = next((d for d in (1, 2, 3, 4) if len({f"{t:.{d}f}" for t in ticks}) == len(ticks)), 4)
    for tick in ticks:
        at = y.at(tick)
        parts.append(f'<path d="M{LEFT} {at}H{WIDTH - RIGHT}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4}" class="tick end">{tick:.{decimals}f}</text>')
    for tick in x.ticks(5):
        at = x.at(tick)
        parts.append(f'<path d="M{at} {TOP}V{bottom}" class="grid"/>')
        parts.append(f'<text x="{at}" y="{bottom + 15}" class="tick mid">{_tick(tick)}</text>')
    name = f"{cost.title}, {cost.unit}{' (logarithmic)' if x.log else ''}"
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" class="axis mid">{name}</text>')
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".") if value % 1 else f"{value:.0f}"


def _line(places: Sequence[tuple[float, float]], *, up: bool) -> str:
    """The front as a staircase: what a given budget buys."""
    if not places:
        return ""
    path = f"M{places[0][0]} {HEIGHT - BOTTOM if up else TOP}V{places[0][1]}"
    path += "".join(f"H{px}V{py}" for px, py in places[1:])
    return f'<path d="{path}H{WIDTH - RIGHT}" class="front"/>'


def _point(
    one: Numbered,
    place: tuple[float, float],
    label: tuple[float, float],
    y: Axis,
    cost: Cost,
    metric: str,
    shape_of: dict[str, int],
) -> str:
    n, c, f = one
    px, py = place
    shape = shape_of[c.engine]
    kind = f"mark e{shape % SHAPES}" if c.passed else "mark failed"
    outside = not y.low <= f.accuracy.value <= y.high
    bar = (
        "" if outside else f'<path d="M{px} {y.at(f.accuracy.low)}V{y.at(f.accuracy.high)}" class="whisker"/>'
    )
    ring = f'<circle cx="{px}" cy="{py}" r="9" class="ring"/>' if c.kept else ""
    # A number beside the mark; of a mark on the edge, with the value that lies beyond.
    name, (tx, ty) = (f"{n} ↓ {text.share(f.accuracy.value)}", (px, py - 10)) if outside else (str(n), label)
    tip = (
        f"{n}. {c.name}: {metric} {f.accuracy.value:.4f} [{f.accuracy.low:.4f}, {f.accuracy.high:.4f}], "
        f"{cost.title} {text.number(cost.of(f))} {cost.unit}"
    )
    return (
        f'<a href="#c{n}" data-row="{n}" class="point"><title>{text.esc(tip)}</title>{bar}{ring}'
        f"{_shape(shape, px, py, kind)}"
        f'<text x="{tx}" y="{ty}" class="number mid">{name}</text></a>'
    )


def _shape(n: int, x: float, y: float, kind: str) -> str:
    """One of six marks about 9 units wide: colour is never the only difference."""
    paths = (
        "",
        "M-4 -4H4V4H-4Z",
        "M0 -5.6L5.6 0L0 5.6L-5.6 0Z",
        "M0 -5.2L5 4H-5Z",
        "M0 5.2L5 -4H-5Z",
        "M-5 -1.7H-1.7V-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5Z",
    )
    if not paths[n % SHAPES]:
        return f'<circle cx="{x}" cy="{y}" r="4.6" class="{kind}"/>'
    return f'<path d="{paths[n % SHAPES]}" transform="translate({x} {y})" class="{kind}"/>'


def _labels(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each point's number stands: beside it, clear of other points and numbers where possible."""
    offsets = (
        (11, -7),
        (-11, -7),
        (11, 15),
        (-11, 15),
        (0, -13),
        (0, 21),
        (18, 4),
        (-18, 4),
        (0, -25),
        (0, 33),
    )
    taken: list[tuple[float, float]] = []
    for px, py in places:
        spots = [(px + dx, py + dy) for dx, dy in offsets]
        inside = [
            s for s in spots if LEFT + 6 < s[0] < WIDTH - 6 and TOP < s[1] < HEIGHT - BOTTOM - 2
        ] or spots
        obstacles = [(ox, oy + 4) for ox, oy in places if (ox, oy) != (px, py)] + taken
        taken.append(max(inside, key=lambda s: min(_gap(s, obstacles), 12)))
    return [(round(a, 1), round(b, 1)) for a, b in taken]


def _gap(spot: tuple[float, float], others: Sequence[tuple[float, float]]) -> float:
    """Distance to the nearest; a number is wider than high, so sideways counts less."""
    return min((max(abs(spot[0] - x) * 0.75, abs(spot[1] - y)) for x, y in others), default=99.0)
