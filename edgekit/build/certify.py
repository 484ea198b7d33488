"""From measurements to the documents of a bundle: figures, certificate, configuration, golden samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import backends
from edgekit import profile as profiles
from edgekit.backends import Recipe, SourceModel, versions
from edgekit.build import forecast, metrics, processing, reference
from edgekit.build.choose import Outcome
from edgekit.build.data import Data
from edgekit.build.forecast import Graph
from edgekit.build.gates import Figures
from edgekit.build.measurement import Measurement
from edgekit.build.metrics import Answers, Metric, Score
from edgekit.build.plan import Candidate
from edgekit.build.processing import Processing
from edgekit.bundle.model import (
    Certificate,
    ClassScore,
    Drift,
    EngineRange,
    Preprocessing,
    Reference,
    Robustness,
    Variant,
    VariantConfig,
)
from edgekit.errors import GateError
from edgekit.host import Host

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Context:
    """What all candidates of one build share."""

    model: SourceModel
    preprocessing: Preprocessing
    evaluation: Data
    calibration_sha256: str
    labels: tuple[str, ...]
    host: Host
    warnings: tuple[str, ...]
    metric: Metric = metrics.get("accuracy")  # noqa: RUF009 - frozen
    decode: str = ""
    """"FILE.py:FUNCTION" that turns outputs into what the metric reads."""
    drift: tuple[Drift, ...] = ()
    baseline: SourceModel | None = None
    """What accuracy and speed are held against, where it is not `model` itself."""
    processing: Processing | None = None
    """What the agent does before and after the engine."""

    def scores(self, measurement: Measurement) -> tuple[Score, Score]:
        """Of the candidate, and of fp32. Raises DataError when outputs and labels do not fit the metric."""
        truth = self.truth(measurement)
        before = measurement.baseline_outputs
        return (
            self.metric.score(Answers(measurement.outputs, truth, before)),
            self.metric.score(Answers(before, truth, before)),
        )

    def per_class(self, measurement: Measurement) -> tuple[ClassScore, ...]:
        """Where the damage is; empty where the metric has no classes."""
        truth = self.truth(measurement)
        if truth is None:
            return ()
        now, before = self.scores(measurement)
        return metrics.per_class(self.metric, now, before, truth)

    def truth(self, measurement: Measurement) -> NDArray[Any] | None:
        """What was right, for the rows that the measurement has answers to."""
        truth = self.evaluation.truth
        if truth is None or not measurement.rows:
            return truth
        each = self.evaluation.rows // len(truth)  # rows of one sample: 2 where pairs are compared
        chosen: NDArray[Any] = truth[np.array(measurement.rows[::each]) // each]
        return chosen


def figures(candidate: Candidate, measurement: Measurement, context: Context) -> Figures:
    """What the gates look at."""
    measured, metric = measurement.measured, context.metric
    now, before = context.scores(measurement)
    lacks = profiles.unmet_by(candidate.profile, context.host)
    return Figures(
        accuracy=now.interval,
        baseline_accuracy=before.interval,
        samples=len(measurement.rows) or context.evaluation.rows,
        latency=measured.latency,
        baseline_latency=measured.baseline_latency,
        peak_rss_mib=measured.peak_rss_mib,
        size_bytes=sum(map(len, measurement.files.values())),
        coverage=measured.coverage,
        is_baseline=measurement.is_baseline,
        on_target=not (lacks or measurement.stand_in or measurement.emulated),
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        is_share=metric.is_share,
        of_reference=metric.of_reference,
        cpu_ms=measured.cpu_ms,
        baseline_cpu_ms=measured.baseline_cpu_ms,
        emulated=measurement.emulated,
        stand_in=measurement.stand_in,
        emulated_rows=measurement.emulated_rows,
        is_emulated_only=bool(measurement.rows),
        host_gap=measurement.host_gap,
        unit=candidate.target.unit,
    )


def variant(
    outcome: Outcome,
    context: Context,
    graph: Graph,
    *,
    gate_skipped: bool,
    robustness: tuple[Robustness, ...] = (),
) -> Variant:
    """Everything that ships of one kept candidate."""
    measurement, seen = outcome.measurement, outcome.figures
    if measurement is None or seen is None:
        raise GateError(f"{outcome.candidate.name}: it could not be measured: {outcome.error}")
    return Variant(
        config=_config(outcome.candidate, measurement, context, graph),
        certificate=_certificate(outcome, measurement, seen, context, robustness, gate_skipped=gate_skipped),
        golden=measurement.measured.golden,
        files={**measurement.files, **(context.processing.files if context.processing else {})},
        golden_files=dict(measurement.golden_files),
        recipe_options=dict(outcome.candidate.recipe.options),
        tools=tools(outcome.candidate.recipe),
        model_sha256=context.model.sha256,
    )


def tools(recipe: Recipe) -> dict[str, str]:
    """Versions that decide a variant's bytes: the clean-up's and the engine's. Raises EngineMissing."""
    return {**versions("models", ("onnx", "onnxslim")), **backends.get(recipe.engine).tools()}


def _config(candidate: Candidate, measurement: Measurement, context: Context, graph: Graph) -> VariantConfig:
    hardware, recipe, target = candidate.profile.hardware, candidate.recipe, candidate.target
    made = VariantConfig(
        variant=candidate.name,
        profile=candidate.profile.name,
        engine=EngineRange(recipe.engine, target.minimum, target.below),
        precision=recipe.precision,
        options=dict(recipe.runtime_options),
        files=tuple(sorted(measurement.files)),
        inputs=context.model.inputs,
        outputs=context.model.outputs,
        labels=context.labels,
        preprocessing=context.preprocessing,
        architecture=hardware.architecture,
        isa=hardware.isa,
        memory_forecast_mib=forecast.memory_mib(recipe.engine, measurement.files, graph.arena_bytes),
        memory_budget_mib=candidate.profile.budget.peak_rss_mib,
    )
    return processing.attach(made, context.processing) if context.processing else made


def _certificate(
    outcome: Outcome,
    measurement: Measurement,
    seen: Figures,
    context: Context,
    robustness: tuple[Robustness, ...],
    *,
    gate_skipped: bool,
) -> Certificate:
    measured, recipe = measurement.measured, outcome.candidate.recipe
    now, before = context.scores(measurement)
    return Certificate(
        variant=outcome.candidate.name,
        metric=context.metric.name,
        samples=seen.samples,
        dataset_sha256=context.evaluation.sha256,
        calibration_sha256=context.calibration_sha256 if recipe.needs_calibration else "",
        source_sha256=context.model.file_sha256,
        accuracy=seen.accuracy,
        baseline_accuracy=seen.baseline_accuracy,
        mcnemar_p=metrics.paired_p(context.metric, now, before),
        agreement=metrics.agreement(
            context.metric, measurement.outputs, measurement.baseline_outputs, now, before
        ),
        latency=seen.latency,
        baseline_latency=seen.baseline_latency,
        peak_rss_mib=seen.peak_rss_mib,
        size_bytes=seen.size_bytes,
        coverage={} if seen.stand_in else seen.coverage,
        engine=recipe.engine,
        engine_version="" if seen.stand_in else measured.engine_version,
        host_cpu=context.host.cpu,
        host_architecture=context.host.architecture,
        host_isa=context.host.isa,
        measured_on_target=seen.on_target,
        gates=outcome.gates,
        gate_skipped=gate_skipped,
        warnings=(
            *_warnings(outcome.candidate, seen, context),
            *metrics.robustness_warnings(context.metric, robustness),
        ),
        higher_is_better=seen.higher_is_better,
        cpu_ms=seen.cpu_ms,
        emulated=seen.emulated,
        emulated_samples=seen.emulated_rows,
        stand_in=f"{seen.stand_in} {measured.engine_version}" if seen.stand_in else "",
        per_class=context.per_class(measurement),
        robustness=robustness,
        drift=context.drift if recipe.needs_calibration else (),
        baseline_sha256=context.baseline.file_sha256 if context.baseline else "",
        training=context.model.training,
        serving=measured.serving,
        reference=_reference(measurement, context),
    )


def _reference(measurement: Measurement, context: Context) -> Reference | None:
    """What a device holds its requests against. Decoded answers are not what it sees."""
    outputs = {} if context.decode else measurement.outputs
    first = next(iter(outputs.values()), None)
    named = first is not None and bool(context.labels) and first[0].size == len(context.labels)
    return reference.of(context.evaluation.inputs, outputs, classifies=context.metric.classifies or named)


def _emulated(seen: Figures, context: Context) -> list[str]:
    """What an emulated certificate stands on."""
    rows, rest = seen.emulated_rows, context.evaluation.rows - seen.emulated_rows
    first = f"answers to {rows} rows come from an emulated {seen.emulated}"
    gap = f"differ from this host's by up to {seen.host_gap:.3g}"
    if seen.is_emulated_only and rest:
        first += f" and {gap}, so the other {rest} rows were not judged"
    elif rest:
        first += f" and {gap}, so this host's answers to the other {rest} rows were judged with them"
    return [first, "speed and memory are this host's"]


def _warnings(candidate: Candidate, seen: Figures, context: Context) -> tuple[str, ...]:
    found = list(context.warnings) if candidate.recipe.needs_calibration else []
    if seen.stand_in:
        found.append(
            f"not measured on {candidate.recipe.engine}: the answers are those of {seen.stand_in} on the "
            "same graph; each device makes its own engine and proves it with the golden samples first"
        )
    elif seen.emulated:
        found += _emulated(seen, context)
    elif not seen.on_target:
        lacks = "; ".join(profiles.unmet_by(candidate.profile, context.host))
        found.append(
            f"not measured on the target ({lacks}): speed and memory are this host's, "
            "and each device proves the answers with the golden samples before it serves"
        )
    return tuple(found)
