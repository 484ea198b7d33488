"""The top of the page: what ships for each profile, in one look."""

from __future__ import annotations

from edgekit.build.reporting import text
from edgekit.build.reporting.document import Candidate, Figures, Report


def winner(report: Report, profile: str) -> tuple[int, Candidate] | None:
    """The candidate that ships for the profile, with its number."""
    return next(((n, c) for n, c in report.of(profile) if c.kept), None)


def reference(report: Report, candidate: Candidate) -> Figures | None:
    """The fp32 candidate of the same profile and engine, where it was tried too."""
    return next(
        (
            c.figures
            for _, c in report.of(candidate.profile)
            if c.engine == candidate.engine and c.figures and c.figures.is_baseline
        ),
        None,
    )


def cards(report: Report) -> str:
    """One card per profile."""
    drawn = "".join(
        _card(report, n, row.name, row.description) for n, row in enumerate(report.profile_rows, 1)
    )
    return f'<div class="cards">{drawn}</div>'


def sentence(report: Report) -> tuple[str, str]:
    """The whole build in one line, and its tone (good, warn, bad)."""
    profiles = [row.name for row in report.profile_rows]
    kept = [found[1] for name in profiles if (found := winner(report, name))]
    if not profiles:
        return "Nothing was tried.", "bad"
    if len(kept) < len(profiles):
        missing = [name for name in profiles if winner(report, name) is None]
        return f"Nothing passes for {', '.join(missing)}.", "bad"
    forced = [c.profile for c in kept if not c.passed]
    if forced:
        return f"Forced past a failing gate: {', '.join(forced)}.", "warn"
    many = f"all {len(kept)} profiles have" if len(kept) > 1 else f"{profiles[0]} has"
    return f"{many[0].upper()}{many[1:]} a variant that passes every gate.", "good"


def _card(report: Report, n: int, name: str, description: str) -> str:
    found = winner(report, name)
    head = f'<h3><a href="#p{n}">{text.esc(name)}</a></h3><p class="about">{text.esc(description, 120)}</p>'
    if found is None:
        tried = len(report.of(name))
        return (
            f'<article class="card bad">{head}<p class="pill bad">nothing passes</p>'
            f"<p>{tried} candidates were tried; the table tells each one's reason.</p></article>"
        )
    number, c = found
    pill = '<p class="pill good">ships</p>' if c.passed else '<p class="pill warn">ships by --no-gate</p>'
    body = _figures(report, c, c.figures) if c.figures else ""
    return (
        f'<article class="card {"good" if c.passed else "warn"}">{head}{pill}'
        f'<p class="name"><a href="#c{number}">{text.esc(c.name)}</a></p>{body}</article>'
    )


def _figures(report: Report, c: Candidate, f: Figures) -> str:
    metric = text.esc(report.metric.name)
    change = f.accuracy.value - f.baseline_accuracy.value
    fp32 = reference(report, c)
    size = f"{text.ratio(fp32.size_bytes, f.size_bytes)} smaller" if fp32 and fp32 is not f else ""
    if fp32 and fp32.size_bytes < f.size_bytes:
        size = f"{text.ratio(f.size_bytes, fp32.size_bytes)} larger"
    rows = (
        (
            metric,
            text.share(f.accuracy.value),
            "fp32 itself" if f.is_baseline else f"{text.signed(change)} against fp32",
        ),
        (
            "latency p50",
            f"{text.number(f.latency.p50_ms)} ms",
            faster(f),
        ),
        ("size", text.size(f.size_bytes), size),
        ("peak memory", f"{text.number(f.peak_rss_mib)} MiB", ""),
    )
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{extra}</small></dd></div>" for name, value, extra in rows
    )
    return f"<dl>{cells}</dl>{where(f)}"


def faster(f: Figures) -> str:
    """Speed against fp32 in words; empty for fp32 itself."""
    if f.is_baseline:
        return ""
    if f.latency.p50_ms > f.baseline_latency.p50_ms:
        return f"{text.ratio(f.latency.p50_ms, f.baseline_latency.p50_ms)} slower"
    return f"{text.ratio(f.baseline_latency.p50_ms, f.latency.p50_ms)} faster"


def where(f: Figures) -> str:
    """What the figures are worth: measured where the model will run, or not."""
    if f.emulated:
        cpu = text.esc(f.emulated) if isinstance(f.emulated, str) else "target"
        return f'<p class="where">answers from an emulated {cpu}; timings are not the target\'s</p>'
    if f.on_target:
        return '<p class="where ok">measured on the target\'s kind of CPU</p>'
    return '<p class="where">not measured on the target: timings and memory are this host\'s</p>'
