"""The table of candidates and the details of each."""

from __future__ import annotations

from edgekit.build.reporting import bars, text
from edgekit.build.reporting.document import Candidate, Report
from edgekit.build.reporting.overlay import data_uri
from edgekit.build.reporting.verdict import faster, reference, where

_HEAD = (
    ("#", "num"),
    ("candidate", ""),
    ("{metric} [95 %]", "num"),
    ("change", "num"),
    ("p50 ms", "num"),
    ("p95 ms", "num"),
    ("against fp32", "num"),
    ("memory MiB", "num"),
    ("size kB", "num"),
    ("gates", "num"),
    ("verdict", ""),
)


def table(report: Report, profile: str) -> str:
    """One row per candidate; scripts may sort it by `data-v`."""
    metric = text.esc(report.metric.name)
    head = "".join(
        f'<th scope="col" class="{kind}">{name.format(metric=metric)}</th>' for name, kind in _HEAD
    )
    rows = "".join(_row(n, c, metric) for n, c in report.of(profile))
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="scroll"><table class="candidates">{body}</table></div>'


def _row(n: int, c: Candidate, metric: str) -> str:
    state = "kept" if c.kept else "" if c.passed else "failed"
    cells = [
        _cell("#", str(n), n),
        f'<th scope="row"><a href="#d{n}">{text.esc(c.name)}</a><p>{_badges(c)}</p></th>',
        *_numbers(c, metric),
        _gates(c),
        f'<td class="why" data-label="verdict">{text.esc(c.error or c.reason)}</td>',
    ]
    return f'<tr id="c{n}" class="{state}">{"".join(cells)}</tr>'


def _badges(c: Candidate) -> str:
    found = '<span class="badge good">ships</span>' if c.kept else ""
    return found + ('<span class="badge">Pareto</span>' if c.pareto else "")


def _numbers(c: Candidate, metric: str) -> list[str]:
    f = c.figures
    if f is None:
        return ['<td class="num none" colspan="7">not measured</td>']
    a, change = f.accuracy, f.accuracy.value - f.baseline_accuracy.value
    interval = f"<small>[{a.low:.3f}, {a.high:.3f}]</small>"
    return [
        _cell(metric, f"{text.share(a.value)} {interval}", a.value),
        _cell("change", text.DASH if f.is_baseline else text.signed(change), change),
        _cell("p50 ms", text.number(f.latency.p50_ms), f.latency.p50_ms),
        _cell("p95 ms", text.number(f.latency.p95_ms), f.latency.p95_ms),
        _cell("against fp32", faster(f) or text.DASH, f.baseline_latency.p50_ms / (f.latency.p50_ms or 1)),
        _cell("memory MiB", text.number(f.peak_rss_mib), f.peak_rss_mib),
        _cell("size kB", text.number(f.size_bytes / 1000), f.size_bytes),
    ]


def _cell(label: str, shown: str, value: float) -> str:
    return f'<td class="num" data-label="{label}" data-v="{value}">{shown}</td>'


def _gates(c: Candidate) -> str:
    """A dot per gate: filled when it passed, a cross when not; the reason on hover and in the details."""
    dots = "".join(
        f'<abbr class="{"pass" if g.passed else "fail"}" title="{text.esc(g.gate)}: {text.esc(g.reason)}">'
        f"{'●' if g.passed else '✕'}</abbr>"
        for g in c.gates
    )
    failed = sum(not g.passed for g in c.gates)
    return f'<td class="num gates" data-label="gates" data-v="{failed}">{dots or text.DASH}</td>'


def details(report: Report, profile: str) -> str:
    """Everything known of each candidate, folded away but for the one that ships."""
    return "".join(_details(report, n, c) for n, c in report.of(profile))


def _details(report: Report, n: int, c: Candidate) -> str:
    f = c.figures
    parts = [f'<p class="why">{text.esc(c.error or c.reason)}</p>', _gate_list(c), _facts(c)]
    if f:
        parts.append(where(f))
        parts.append(_part("Latency", bars.histogram(c, reference(report, c))))
        parts.append(
            _part(f"{text.esc(report.metric.name)} by class", bars.classes(f.per_class, report.metric.name))
        )
    if drawn := bars.layers(c.layers):
        link = (
            f'<p><a class="button" download="{n}-sqnr.json" href="{data_uri(c.layers)}">'
            "Overlay for Model Explorer</a></p>"
        )
        parts.append(_part("Quantization error by layer", drawn + link))
    if c.reproduce:
        parts.append(
            _part(
                "Make this candidate again",
                f'<div class="command"><pre><code>{text.esc(c.reproduce, 8000)}</code></pre></div>',
            )
        )
    state = "kept" if c.kept else "" if c.passed else "failed"
    return (
        f'<details id="d{n}" class="candidate {state}"{" open" if c.kept else ""}>'
        f"<summary><b>{n}</b> {text.esc(c.name)}{_badges(c)}</summary>{''.join(parts)}</details>"
    )


def _part(title: str, body: str) -> str:
    return f"<section><h4>{title}</h4>{body}</section>" if body else ""


def _gate_list(c: Candidate) -> str:
    items = "".join(
        f'<li class="{"pass" if g.passed else "fail"}"><b>{text.esc(g.gate)}</b> {text.esc(g.reason)}</li>'
        for g in c.gates
    )
    return f'<ul class="gatelist">{items}</ul>' if items else ""


def _facts(c: Candidate) -> str:
    """Options, coverage and forecast as pairs."""
    f = c.figures
    pairs = [(f"option {k}", v) for k, v in sorted(c.options.items())]
    pairs += [(f"engine option {k}", v) for k, v in sorted(c.runtime_options.items())]
    if f and f.coverage:
        pairs.append(
            ("nodes by unit", ", ".join(f"{unit}: {count}" for unit, count in sorted(f.coverage.items())))
        )
    if f and f.cpu_ms is not None:
        pairs.append(("CPU time per run", f"{text.number(f.cpu_ms)} ms (energy proxy)"))
    if c.forecast and c.forecast.memory_mib is not None:
        measured = f", {text.number(f.peak_rss_mib)} MiB measured" if f else ""
        pairs.append(("memory forecast", f"{text.number(c.forecast.memory_mib)} MiB{measured}"))
    if c.forecast and c.forecast.latency_ms is not None:
        measured = f", {text.number(f.latency.p50_ms)} ms measured here" if f else ""
        pairs.append(("latency forecast", f"{text.number(c.forecast.latency_ms)} ms{measured}"))
    cells = "".join(f"<div><dt>{text.esc(k)}</dt><dd>{text.esc(v, 400)}</dd></div>" for k, v in pairs)
    return f'<dl class="facts">{cells}</dl>' if cells else ""
