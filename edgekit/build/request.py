"""What to build: the one argument of `pipeline.build`, filled by the command line or by a Python program."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekit.backends import Recipe
from edgekit.build import data
from edgekit.build.gates import FIGURES, Constraint, Figure
from edgekit.build.sources import SourceOptions
from edgekit.bundle.model import Preprocessing
from edgekit.errors import InputError
from edgekit.profile import Profile

Effort = Literal["quick", "normal", "thorough"]
"""quick: the first recipe of each engine and precision. normal: more recipes, then mixed precision, where
accuracy is lost. thorough: every recipe."""

OBJECTIVES = {
    "latency": "latency_p50_ms",
    "size": "size_mib",
    "memory": "peak_rss_mib",
    "energy": "cpu_ms",
}
"""Short names for figures."""


@dataclass(frozen=True)
class Request:
    """What to build. `calibration` and `evaluate` are data as docs/data.md describes."""

    model: Path
    profiles: tuple[Profile, ...]
    calibration: data.Source
    evaluate: data.Source
    source: SourceOptions = field(default_factory=SourceOptions)
    baseline: Path | None = None
    """The fp32 model that accuracy and speed are held against; None: `model` itself."""
    naming: data.Naming = field(default_factory=data.Naming)
    affine: tuple[str, ...] = ()
    """`[INPUT:]SCALE,OFFSET`: real = (stored - OFFSET) * SCALE."""
    image: str = ""
    """How pictures become pixels, and these numbers: words of docs/data.md."""
    preprocessing: Preprocessing | None = None
    """As a bundle records it: decides instead of `affine` and the scales of `image`."""
    label_names: tuple[str, ...] = ()
    """Classes in the model's order; empty: names in the data are sorted."""
    metric: str = "accuracy"
    """A name of `metrics.names()`, or "FILE.py:FUNCTION"."""
    pipeline: Path | None = None
    """A TOML file: what the agent does before and after the engine."""
    decode: str = ""
    """"FILE.py:FUNCTION" from outputs to what the metric reads, e.g. boxes."""
    precisions: tuple[str, ...] = ()
    """Narrows the profiles' own; empty: all of them."""
    engines: tuple[str, ...] = ()
    """Narrows the profiles' own; empty: all of them."""
    recipe: Recipe | None = None
    """Build exactly this candidate; nothing else is tried."""
    objective: str = "latency"
    """A key of OBJECTIVES or of gates.FIGURES."""
    constraints: tuple[Constraint, ...] = ()
    effort: Effort = "normal"
    time_budget_s: float = 0.0
    """No new candidate is begun after this; 0: no limit. The first of each profile is always tried."""
    emulate: bool = False
    """Answers for profiles that this host is not come from an emulated CPU of theirs."""
    robustness: bool = True
    """What ships is asked again on disturbed rows; a warning, never a gate."""
    emulate_rows: int = 200
    """At most so many evaluation rows, spread over all, go through an emulated CPU: it is slow."""
    layers: bool = False
    """Measure each layer's quantization error of what ships, for the report."""
    try_known_bad: bool = False
    """Try what the deny-list names too; the gates decide."""
    gate: bool = True
    jobs: int = 2
    executor: str = ""
    """Where candidates are built: "" here, "dask" or "dask:ADDRESS" on a cluster."""


def objective(request: Request) -> Figure:
    """The figure that the best candidate has least (or most) of. Raises InputError for an unknown one."""
    name = OBJECTIVES.get(request.objective, request.objective)
    if name not in FIGURES:
        known = ", ".join((*OBJECTIVES, *FIGURES))
        raise InputError(f"no objective is called {request.objective!r}", f"one of {known}")
    return FIGURES[name]
