"""A build's report for people (a table) and for machines (plain data)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgekit import codec
from edgekit.build.choose import Outcome
from edgekit.build.pipeline import Report

COLUMNS = (
    "profile",
    "candidate",
    "accuracy [95 %]",
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


def text_table(report: Report, columns: Sequence[str] = COLUMNS) -> str:
    """Aligned plain text, for pipes and logs."""
    table = [tuple(columns), *rows(report)]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join(lines) + "\n"


def rich_table(report: Report) -> Any:
    """The same as a rich table; kept candidates stand out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("profile", "candidate", "verdict") else "right")
    for outcome, row in zip(report.outcomes, rows(report), strict=True):
        style = "bold green" if outcome.kept and not outcome.problem else "yellow" if outcome.kept else ""
        table.add_row(*(Text(cell) for cell in row), style=style)
    return table


def plain(report: Report) -> dict[str, Any]:
    """Everything, for --json."""
    return {
        "seconds": round(report.seconds, 3),
        "cache_hits": report.cache_hits,
        "notes": list(report.notes),
        "warnings": list(report.warnings),
        "candidates": [_plain(outcome) for outcome in report.outcomes],
        "certificates": [codec.to_plain(variant.certificate) for variant in report.variants],
    }


def _plain(outcome: Outcome) -> dict[str, Any]:
    seen = outcome.figures
    return {
        "profile": outcome.candidate.profile.name,
        "variant": outcome.candidate.name,
        "engine": outcome.candidate.recipe.engine,
        "precision": outcome.candidate.recipe.precision,
        "kept": outcome.kept,
        "reason": outcome.reason,
        "error": outcome.error,
        "gates": codec.to_plain(outcome.gates),
        "figures": codec.to_plain(seen) if seen else None,
    }


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
