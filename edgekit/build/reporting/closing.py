"""The end of the page: certificates, warnings and where everything came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgekit.build.reporting import text
from edgekit.build.reporting.document import Report
from edgekit.bundle.model import Certificate, Drift, Interval, Robustness


def certificates(report: Report) -> str:
    return "".join(_certificate(one) for one in report.certificates)


def _certificate(c: Certificate) -> str:
    significant = "significant" if c.mcnemar_p < 0.05 else "not significant"
    pairs: tuple[tuple[str, str], ...] = (
        (text.esc(c.metric), _interval(c.accuracy)),
        (f"{text.esc(c.metric)} of fp32", _interval(c.baseline_accuracy)),
        ("samples", str(c.samples)),
        ("same answer as fp32", f"{c.agreement:.1%}"),
        ("paired test", f"p = {text.number(c.mcnemar_p)}, {significant}"),
        (
            "latency p50 / p95 / p99",
            f"{_ms(c.latency.p50_ms)} / {_ms(c.latency.p95_ms)} / {_ms(c.latency.p99_ms)} ms",
        ),
        ("peak memory", f"{text.number(c.peak_rss_mib)} MiB"),
        (
            "engine",
            f"not measured on {text.esc(c.engine)}: {text.esc(c.stand_in)} stood in"
            if c.stand_in
            else f"{text.esc(c.engine)} {text.esc(c.engine_version)}",
        ),
        ("measured on", f"{text.esc(c.host_cpu or 'an unnamed CPU')} ({text.esc(c.host_architecture)})"),
        ("on the target", "yes" if c.measured_on_target else "no: each device proves it with golden samples"),
        ("source model", _digest(c.source_sha256)),
        ("calibration data", _digest(c.calibration_sha256)),
        ("evaluation data", _digest(c.dataset_sha256)),
    )
    if c.baseline_sha256:
        pairs += (("fp32 is", _digest(c.baseline_sha256)),)
    if c.training:
        pairs += (("compressed by", text.esc("; ".join(c.training.methods))),)
    pairs += tuple(_disturbed(one) for one in c.robustness) + tuple(_drift(one) for one in c.drift)
    passed = sum(g.passed for g in c.gates)
    pill = f'<span class="badge good">{passed} gates passed</span>' if passed == len(c.gates) else ""
    if c.gate_skipped:
        pill = '<span class="badge warn">a failing gate was overridden</span>'
    warnings = "".join(f"<li>{text.esc(line)}</li>" for line in c.warnings)
    return (
        f'<details class="certificate"><summary>{text.esc(c.variant)} {pill}</summary>'
        f"{_pairs(pairs)}{f'<ul class=warnings>{warnings}</ul>' if warnings else ''}</details>"
    )


def _disturbed(one: Robustness) -> tuple[str, str]:
    change = f"{text.share(one.clean)} to {text.share(one.value)}"
    fp32 = f"{text.share(one.baseline_clean)} to {text.share(one.baseline)}"
    return f"with {text.esc(one.disturbance)}", f"{change}; fp32 {fp32} ({one.samples} rows)"


def _drift(one: Drift) -> tuple[str, str]:
    column = f" (column {one.column})" if one.column >= 0 else ""
    return (
        f"drift of {text.esc(one.input)}",
        f"{one.outside:.1%} outside the calibrated range, stability index {one.psi:.2f}{column}",
    )


def warnings(report: Report) -> str:
    """What the reader must know: warnings of the build, then what could not be tried."""
    lines = [*report.warnings, *report.notes]
    items = "".join(f"<li>{text.esc(line)}</li>" for line in dict.fromkeys(lines))
    return f'<ul class="warnings">{items}</ul>' if items else ""


def provenance(report: Report) -> str:
    return _pairs(tuple((text.esc(k), text.esc(v, 400)) for k, v in _flat(report.provenance, "")))


def _flat(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Nested tables as "outer inner" pairs, lists joined."""
    for key, item in value.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(item, Mapping):
            yield from _flat(item, name)
        elif isinstance(item, list | tuple):
            yield name, ", ".join(map(str, item))
        elif item not in (None, ""):
            yield name, str(item)


def _pairs(pairs: tuple[tuple[str, str], ...]) -> str:
    """Both sides are HTML already."""
    return f'<dl class="facts">{"".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in pairs)}</dl>'


def _interval(value: Interval) -> str:
    return f"{text.share(value.value)} [{value.low:.3f}, {value.high:.3f}]"


def _digest(value: str) -> str:
    return f"<code>{text.esc(value)}</code>" if value else "none"


def _ms(value: float) -> str:
    return text.number(value)
