"""The report JSON of `edgekit build --json` as typed, read-only data.

Reading is lenient where a file of another version differs (unknown keys are ignored, absent ones have
defaults) and strict where it would mislead (a wrong type is an error that names the field).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit import codec
from edgekit.bundle.model import Certificate
from edgekit.errors import InputError


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds at batch 1."""

    p50_ms: float
    p95_ms: float
    p99_ms: float = 0.0
    runs: int = 0


@dataclass(frozen=True)
class Histogram:
    """Runs per bin: n + 1 edges in milliseconds, n counts; those of fp32 on the same edges where known."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]
    baseline_counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassRow:
    label: str
    accuracy: float
    baseline_accuracy: float
    samples: int = 0


@dataclass(frozen=True)
class Layer:
    """`sqnr_db`: signal to noise at the model's outputs when the layer alone is quantized; None where it is
    exact."""

    name: str
    op: str = ""
    sqnr_db: float | None = None


@dataclass(frozen=True)
class Figures:
    accuracy: Interval
    baseline_accuracy: Interval
    latency: Latency
    baseline_latency: Latency
    size_bytes: int
    peak_rss_mib: float = 0.0
    samples: int = 0
    coverage: dict[str, int] = field(default_factory=dict)
    is_baseline: bool = False
    on_target: bool = False
    emulated: str | bool = ""
    """The CPU that was emulated for the answers; empty or false: the host's own."""
    stand_in: str = ""
    """The engine that answered in place of the candidate's own; empty: its own."""
    cpu_ms: float | None = None
    latency_histogram: Histogram | None = None
    per_class: tuple[ClassRow, ...] = ()


@dataclass(frozen=True)
class Gate:
    gate: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Forecast:
    memory_mib: float | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Candidate:
    profile: str
    name: str
    engine: str
    precision: str
    kept: bool
    reason: str = ""
    error: str = ""
    pareto: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    runtime_options: dict[str, Any] = field(default_factory=dict)
    gates: tuple[Gate, ...] = ()
    figures: Figures | None = None
    layers: tuple[Layer, ...] = ()
    forecast: Forecast | None = None
    reproduce: str = ""

    @property
    def passed(self) -> bool:
        """Measured, and every gate passed."""
        return not self.error and self.figures is not None and all(gate.passed for gate in self.gates)


@dataclass(frozen=True)
class ProfileRow:
    name: str
    description: str = ""
    forecast: Forecast | None = None


@dataclass(frozen=True)
class Metric:
    name: str = "accuracy"
    unit: str = ""
    higher_is_better: bool = True


@dataclass(frozen=True)
class Report:
    candidates: tuple[Candidate, ...]
    seconds: float = 0.0
    cache_hits: int = 0
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    metric: Metric = field(default_factory=Metric)
    objective: str = ""
    constraints: tuple[Any, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    profiles: tuple[ProfileRow, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    bundle: str = ""
    digest: str = ""
    size_bytes: int = 0

    def of(self, profile: str) -> list[tuple[int, Candidate]]:
        """The profile's candidates with their numbers, which count from 1 through the whole report."""
        return [(i, c) for i, c in enumerate(self.candidates, 1) if c.profile == profile]

    @property
    def profile_rows(self) -> tuple[ProfileRow, ...]:
        """The profiles in order; made up from the candidates' where the report does not list them."""
        listed = {row.name for row in self.profiles}
        others = dict.fromkeys(c.profile for c in self.candidates if c.profile not in listed)
        return (*self.profiles, *(ProfileRow(name) for name in others))


def parse(report: Mapping[str, Any], what: str = "report") -> Report:
    """Raises InputError naming the field that does not fit."""
    if not isinstance(report.get("candidates"), list | tuple):
        raise InputError(f"{what}: not a build report", "make one with `edgekit build ... --json`")
    candidates = [_named(one) for one in report["candidates"]]
    plain = {**report, "candidates": candidates}
    return codec.from_plain(Report, plain, what=what, error=InputError, strict=False)


def _named(candidate: Any) -> Any:
    """The candidate with a name (0.1 wrote "variant": "PROFILE.RECIPE") and labels of classes."""
    if not isinstance(candidate, dict):
        return candidate
    if "name" not in candidate and isinstance(candidate.get("variant"), str):
        name = candidate["variant"].removeprefix(f"{candidate.get('profile')}.")
        candidate = {**candidate, "name": name}
    figures = candidate.get("figures")
    if isinstance(figures, dict) and isinstance(figures.get("per_class"), list | tuple):
        rows = [_labelled(row) for row in figures["per_class"]]
        candidate = {**candidate, "figures": {**figures, "per_class": rows}}
    return candidate


def _labelled(row: Any) -> Any:
    if isinstance(row, dict) and not row.get("label"):
        return {**row, "label": str(row.get("class", ""))}
    return row
