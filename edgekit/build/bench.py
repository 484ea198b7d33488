"""Latency, CPU time, memory and coverage of loaded files on this machine, through the Runtime that serves.

Each subject is measured in a process of its own, in turn with a baseline, as the builder does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import codec
from edgekit.backends import Recipe
from edgekit.build import measure, worker
from edgekit.build.measure import Measured
from edgekit.build.progress import Progress, Silent
from edgekit.bundle.model import Latency, TensorSpec
from edgekit.errors import InputError
from edgekit.profile import Verify
from edgekit.runtimes._base import DTYPES, Options

ROWS = 16
SEED = 0


@dataclass(frozen=True)
class Subject:
    """Something that can be run."""

    name: str
    engine: str
    options: Options
    files: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Timed:
    """Figures of one subject; those of the baseline were taken in turn with it."""

    name: str
    engine: str
    engine_version: str
    size_bytes: int
    latency: Latency
    cpu_ms: float
    peak_rss_mib: float
    load_rss_mib: float
    coverage: dict[str, int]
    baseline: str = ""
    baseline_latency: Latency | None = None

    @property
    def speedup(self) -> float:
        """How many times faster than the baseline; 0 without one."""
        if self.baseline_latency is None or self.latency.p50_ms <= 0:
            return 0.0
        return self.baseline_latency.p50_ms / self.latency.p50_ms


def bench(
    subject: Subject,
    rows: Mapping[str, NDArray[Any]],
    baseline: Subject | None = None,
    progress: Progress | None = None,
) -> Timed:
    """Run `rows` (engine inputs, (n, ...)). Raises EngineMissing, EngineError.

    The two take turns in one process, so both need one engine; InputError otherwise.
    """
    if baseline and baseline.engine != subject.engine:
        raise InputError(
            f"{subject.name} runs on {subject.engine}, {baseline.name} on {baseline.engine}",
            "a baseline runs on the same engine; bench the two one after the other instead",
        )
    other = baseline or subject
    recipe = Recipe(subject.engine, "as-is", runtime_options=dict(subject.options))
    plan = measure.Plan(Verify(golden_samples=1), classify=False, baseline_options=dict(other.options))
    files = {f"candidate/{name}": content for name, content in subject.files.items()}
    files |= {f"baseline/{name}": content for name, content in other.files.items()}
    arrays = {f"input/{name}": array for name, array in rows.items()}
    with (progress or Silent()).step(f"run {subject.name}"):
        result, _ = worker.run(worker.Job("measure", recipe, measure=plan, files=files, arrays=arrays))
    seen = codec.from_plain(Measured, result["measured"], what="measurement")
    return Timed(
        name=subject.name,
        engine=subject.engine,
        engine_version=seen.engine_version,
        size_bytes=sum(map(len, subject.files.values())),
        latency=seen.latency,
        cpu_ms=seen.cpu_ms,
        peak_rss_mib=seen.peak_rss_mib,
        load_rss_mib=seen.load_rss_mib,
        coverage=seen.coverage,
        baseline=baseline.name if baseline else "",
        baseline_latency=seen.baseline_latency if baseline else None,
    )


def random_rows(specs: tuple[TensorSpec, ...], rows: int = ROWS) -> dict[str, NDArray[Any]]:
    """Inputs that fit: normally distributed numbers, 0 or 1 for whole ones (token numbers must exist).

    Raises InputError for an input whose shape is open beyond the batch.
    """
    rng = np.random.default_rng(SEED)
    found = {}
    for spec in specs:
        if min(spec.shape[1:], default=1) < 0:
            raise InputError(
                f"input {spec.name!r} has an open shape {list(spec.shape)}", "give rows with --data"
            )
        dtype, shape = DTYPES[spec.datatype], (rows, *spec.shape[1:])
        made = rng.normal(size=shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        found[spec.name] = made.astype(dtype)
    return found
