"""`--dry-run`: what a build would try, with a forecast of its time, and of each candidate on the device."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.build import forecast, pipeline
from edgekit.build import plan as plans
from edgekit.build.cache import Cache
from edgekit.build.plan import Candidate
from edgekit.build.request import Request

BUILD_S = {"fp32": 0.5, "fp16": 1.0, "int8": 4.0}
"""A small model's build in a worker process, imports included; measured here for onnxruntime and openvino."""
OTHER_BUILD_S = 3.0
MEASURE_S = 6.0
"""Loading an engine, two seconds of timing, and the baseline beside it; answering the rows comes on top."""


@dataclass(frozen=True)
class Line:
    candidate: str
    when: str
    """"first", or "if accuracy is lost"."""
    build_s: float
    """Forecast, on this host, without the cache."""
    memory_mib: float
    """Forecast, on the device."""
    latency_ms: float
    """Forecast, on the device."""
    refused: str = ""
    """Why it would not be built."""


@dataclass(frozen=True)
class DryRun:
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    seconds: float
    """Forecast of the whole build: first recipes built side by side, measured in turn."""


def plan(request: Request, cache: Cache) -> DryRun:
    """Reads model and data as a build would, then only counts. Raises what `pipeline.prepare` raises."""
    families, notes = pipeline.plan_only(request)
    context, _ = pipeline.prepare(request, cache)
    graph = pipeline.graph(context, cache)
    lines: list[Line] = []
    seconds = 0.0
    for family in families:
        waiting = False
        for candidate in family.candidates:
            line = _line(candidate, graph, waiting, plans.unworthy(candidate, context.model), request)
            lines.append(line)
            if not line.refused and (not waiting or request.effort == "thorough"):
                rows_s = context.evaluation.rows * graph.macs / 20e9
                seconds += line.build_s / max(1, request.jobs) + MEASURE_S + rows_s
                waiting = True
    return DryRun(tuple(lines), tuple(notes), round(seconds, 1))


def text(found: DryRun) -> str:
    """Aligned plain text."""
    head = ("candidate", "tried", "build s", "MiB", "ms", "")
    rows = [head]
    for line in found.lines:
        figures = (f"{line.build_s:.1f}", f"{line.memory_mib:.0f}", f"{line.latency_ms:.2f}")
        rows.append((line.candidate, line.when, *figures, line.refused))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return (
        "\n".join([*lines, f"about {found.seconds:.0f} s in all; MiB and ms are forecasts for the device"])
        + "\n"
    )


def _line(
    candidate: Candidate, graph: forecast.Graph, waiting: bool, unworthy: str, request: Request
) -> Line:
    recipe, hardware = candidate.recipe, candidate.profile.hardware
    expected = forecast.forecast(graph, recipe.engine, recipe.precision, hardware)
    too_big = forecast.too_big(candidate.profile, graph, recipe.engine, recipe.precision)
    when = "first" if not waiting or request.effort == "thorough" else "if accuracy is lost"
    return Line(
        candidate.name,
        "never" if unworthy or too_big else when if request.effort != "quick" or not waiting else "never",
        BUILD_S.get(recipe.precision, OTHER_BUILD_S),
        expected.memory_mib,
        expected.latency_ms,
        unworthy or too_big,
    )
