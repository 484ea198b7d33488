"""The top of the page: what ships for each profile, in one look."""

from __future__ import annotations

from edgekit.build.reporting import text
from edgekit.build.reporting.document import Candidate, Figures, Report


def winners(report: Report, profile: str) -> list[tuple[int, Candidate]]:
    """The candidates that ship for the profile, with their numbers; two where one could not be measured."""
    return [(n, c) for n, c in report.of(profile) if c.kept]


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
    """One card per profile and variant that ships."""
    drawn = "".join(
        _card(report, n, row.name, row.description) for n, row in enumerate(report.profile_rows, 1)
    )
    return f'<div class="cards">{drawn}</div>'


def sentence(report: Report) -> tuple[str, str]:
    """The whole build in one line, and its tone (good, warn, bad)."""
    profiles = [row.name for row in report.profile_rows]
    kept = [c for name in profiles for _, c in winners(report, name)]
    if not profiles:
        return "Nothing was tried.", "bad"
    missing = [name for name in profiles if not winners(report, name)]
    if missing:
        return f"Nothing passes for {', '.join(missing)}.", "bad"
    forced = dict.fromkeys(c.profile for c in kept if not c.passed)
    if forced:
        return f"Forced past a failing gate: {', '.join(forced)}.", "warn"
    many = f"all {len(profiles)} profiles have" if len(profiles) > 1 else f"{profiles[0]} has"
    return f"{many[0].upper()}{many[1:]} a variant that passes every gate.", "good"


def _card(report: Report, n: int, name: str, description: str) -> str:
    found = winners(report, name)
    head = f'<h3><a href="#p{n}">{text.esc(name)}</a></h3><p class="about">{text.esc(description, 120)}</p>'
    if not found:
        tried = len(report.of(name))
        return (
            f'<article class="card bad">{head}<p class="pill bad">nothing passes</p>'
            f"<p>{tried} candidates were tried; the table tells each one's reason.</p></article>"
        )
    return "".join(_shipping(report, number, c, head) for number, c in found)


def _shipping(report: Report, number: int, c: Candidate, head: str) -> str:
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
    if f.stand_in:
        words = f"not measured on its engine: every figure is {text.esc(f.stand_in)}'s on the same graph"
        return f'<p class="where">{words}</p>'
    if f.emulated:
        cpu = text.esc(f.emulated) if isinstance(f.emulated, str) else "target"
        return f'<p class="where">answers from an emulated {cpu}; timings are not the target\'s</p>'
    if f.on_target:
        return '<p class="where ok">measured on the target\'s kind of CPU</p>'
    return '<p class="where">not measured on the target: timings and memory are this host\'s</p>'
