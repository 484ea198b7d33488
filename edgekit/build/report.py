"""A build's report for people (a table) and for machines (plain data)."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from typing import Any

import edgekit
from edgekit import backends, codec
from edgekit.build.certify import Context
from edgekit.build.choose import Outcome
from edgekit.build.data import Data, Rows
from edgekit.build.forecast import forecast
from edgekit.build.measurement import Measurement
from edgekit.build.pipeline import Report
from edgekit.build.request import Request, objective
from edgekit.errors import EngineMissing
from edgekit.profile import Profile

COLUMNS = (
    "profile",
    "candidate",
    "{metric} [95 %]",
    "vs fp32",
    "p50 ms",
    "x fp32",
    "MiB RSS",
    "kB",
    "verdict",
)


def rows(report: Report) -> list[tuple[str, ...]]:
    """One row of text per candidate, in COLUMNS' order."""
    return [_row(outcome) for outcome in report.outcomes]


def titles(report: Report, columns: Sequence[str] = COLUMNS) -> tuple[str, ...]:
    """The columns' names, with the metric's."""
    name = report.context.metric.name
    return tuple(column.format(metric=name if len(name) <= 20 else "metric") for column in columns)


def text_table(report: Report, columns: Sequence[str] = COLUMNS) -> str:
    """Aligned plain text, for pipes and logs."""
    table = [titles(report, columns), *rows(report)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines) + "\n"


def rich_table(report: Report) -> Any:
    """The same as a rich table; kept candidates stand out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for name in titles(report):
        table.add_column(name, justify="left" if name in ("profile", "candidate", "verdict") else "right")
    for outcome, row in zip(report.outcomes, rows(report), strict=True):
        style = "bold green" if outcome.kept and not outcome.problem else "yellow" if outcome.kept else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def plain(report: Report) -> dict[str, Any]:
    """Everything, for --json and for the HTML page; docs/report.md describes it."""
    context, request = report.context, report.request
    goal = objective(request)
    return {
        "seconds": round(report.seconds, 3),
        "cache_hits": report.cache_hits,
        "notes": list(report.notes),
        "warnings": list(report.warnings),
        "metric": {
            "name": context.metric.name,
            "unit": "share" if context.metric.is_share else "",
            "higher_is_better": context.metric.higher_is_better,
        },
        "objective": goal.name,
        "constraints": [
            f"{c.figure} {'<=' if c.is_maximum else '>='} {c.limit:g}" for c in request.constraints
        ],
        "provenance": _provenance(report),
        "graph": codec.to_plain(report.graph),
        "profiles": [_profile(profile, report) for profile in request.profiles],
        "candidates": [_plain(outcome, report) for outcome in report.outcomes],
        "certificates": [codec.to_plain(variant.certificate) for variant in report.variants],
    }


def _provenance(report: Report) -> dict[str, Any]:
    context = report.context
    engines = dict.fromkeys(outcome.candidate.recipe.engine for outcome in report.outcomes)
    return {
        "edgekit": edgekit.__version__,
        "python": platform.python_version(),
        "model": {
            "path": str(report.request.model),
            "sha256": context.model.file_sha256,
            "format": context.model.format,
        },
        **_compression(context),
        "calibration": _data(report.calibration),
        "evaluation": _data(context.evaluation),
        "host": codec.to_plain(context.host),
        "tools": {engine: _tools(engine) for engine in engines},
    }


def _compression(context: Context) -> dict[str, Any]:
    """What a model that was compressed with training is held against, and how it was made."""
    found: dict[str, Any] = {}
    if context.baseline:
        found["baseline"] = {"sha256": context.baseline.file_sha256, "format": context.baseline.format}
    if context.model.training:
        found["training"] = codec.to_plain(context.model.training)
    return found


def _data(data: Data) -> dict[str, Any]:
    return {"name": data.name, "rows": data.rows, "sha256": data.sha256}


def _tools(engine: str) -> dict[str, str]:
    try:
        return backends.get(engine).tools()
    except EngineMissing:
        return {}


def _profile(profile: Profile, report: Report) -> dict[str, Any]:
    kept = next((o.candidate for o in report.outcomes if o.kept and o.candidate.profile is profile), None)
    recipe = kept.recipe if kept else None
    seen = forecast(report.graph, recipe.engine, recipe.precision, profile.hardware) if recipe else None
    return {
        "name": profile.name,
        "description": profile.description,
        "forecast": codec.to_plain(seen) if seen else None,
        "kept": kept.name if kept else "",
    }


def _plain(outcome: Outcome, report: Report) -> dict[str, Any]:
    candidate, recipe = outcome.candidate, outcome.candidate.recipe
    expected = forecast(report.graph, recipe.engine, recipe.precision, candidate.profile.hardware)
    return {
        "profile": candidate.profile.name,
        "variant": candidate.name,
        "name": recipe.name,
        "engine": recipe.engine,
        "precision": recipe.precision,
        "options": recipe.options,
        "runtime_options": recipe.runtime_options,
        "kept": outcome.kept,
        "pareto": outcome.on_front,
        "reason": outcome.reason,
        "error": outcome.error,
        "gates": codec.to_plain(outcome.gates),
        "figures": _figures(outcome, report),
        "layers": [codec.to_plain(layer) for layer in report.layers.get(candidate.name, ())],
        "forecast": codec.to_plain(expected),
        "reproduce": reproduce(outcome, report.request),
    }


def _figures(outcome: Outcome, report: Report) -> dict[str, Any] | None:
    if outcome.figures is None or outcome.measurement is None:
        return None
    measurement = outcome.measurement
    histogram = measurement.measured.histogram
    return {
        **codec.to_plain(outcome.figures),
        "latency_histogram": codec.to_plain(histogram),
        "per_class": _per_class(measurement, report.context),
    }


def _per_class(measurement: Measurement, context: Context) -> list[dict[str, Any]]:
    labels = context.labels
    return [
        {
            "class": row.index,
            "label": labels[row.index] if row.index < len(labels) else str(row.index),
            "accuracy": row.value,
            "baseline_accuracy": row.baseline,
            "samples": row.samples,
        }
        for row in context.per_class(measurement)
    ]


def reproduce(outcome: Outcome, request: Request) -> str:
    """The command that builds this candidate alone; empty where rows came from a Python program."""
    if isinstance(request.calibration, Rows) or isinstance(request.evaluate, Rows):
        return ""
    candidate = outcome.candidate
    words = ["edgekit", "build", str(request.model), "--profile", candidate.profile.name]
    words += ["--calibration", str(request.calibration), "--evaluate", str(request.evaluate)]
    for name, shape in request.source.shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    words += ["--trust-source"] if request.source.trust else []
    words += ["--baseline", str(request.baseline)] if request.baseline else []
    words += [word for text in request.affine for word in ("--affine", text)]
    words += ["--image", request.image] if request.image else []
    words += ["--label-names", ",".join(request.label_names)] if len(request.label_names) > 1 else []
    for name, array in request.naming.inputs.items():
        words += ["--input", f"{name}={array}"]
    words += ["--labels", request.naming.labels] if request.naming.labels != "labels" else []
    words += ["--metric", request.metric] if request.metric != "accuracy" else []
    words += ["--decode", request.decode] if request.decode else []
    words += ["--pipeline", str(request.pipeline)] if request.pipeline else []
    words += ["--objective", request.objective] if request.objective != "latency" else []
    for limit in request.constraints:
        words += ["--max" if limit.is_maximum else "--min", f"{limit.figure}={limit.limit:g}"]
    words += ["--accuracy-ratio", f"{candidate.profile.budget.accuracy_ratio:g}"]
    words += ["--recipe", codec.to_json(candidate.recipe).decode()]
    words += ["--try-known-bad"] if request.try_known_bad else []
    words += ["--emulate", "--emulate-rows", str(request.emulate_rows)] if request.emulate else []
    words += ["--no-gate"] if outcome.problem else []
    return shlex.join([*words, "--output", f"{candidate.name}.edgekit"])


def _row(outcome: Outcome) -> tuple[str, ...]:
    head = (outcome.candidate.profile.name, outcome.candidate.recipe.name)
    seen = outcome.figures
    if seen is None:
        return (*head, *("-",) * 6, outcome.reason)
    return (
        *head,
        f"{seen.accuracy.value:.4f} [{seen.accuracy.low:.3f}, {seen.accuracy.high:.3f}]",
        f"{seen.accuracy.value - seen.baseline_accuracy.value:+.4f}",
        f"{seen.latency.p50_ms:.3f}",
        f"{seen.baseline_latency.p50_ms / seen.latency.p50_ms:.2f}",
        f"{seen.peak_rss_mib:.0f}",
        f"{seen.size_bytes / 1000:.1f}",
        outcome.reason,
    )
