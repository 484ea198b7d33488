"""From measurements to the documents of a bundle: figures, certificate, configuration, golden samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgekit import profile as profiles
from edgekit.backends import SourceModel
from edgekit.build import forecast, stats
from edgekit.build.choose import Outcome
from edgekit.build.data import Data
from edgekit.build.gates import Figures
from edgekit.build.measurement import Measurement
from edgekit.build.plan import Candidate
from edgekit.bundle.model import Certificate, EngineRange, Preprocessing, Variant, VariantConfig
from edgekit.errors import GateError
from edgekit.host import Host


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


def figures(candidate: Candidate, measurement: Measurement, context: Context) -> Figures:
    """What the gates look at."""
    labels, total = context.evaluation.labels, context.evaluation.rows
    measured = measurement.measured
    return Figures(
        accuracy=stats.wilson(int(np.sum(np.array(measured.answers) == labels)), total),
        baseline_accuracy=stats.wilson(int(np.sum(np.array(measurement.baseline_answers) == labels)), total),
        samples=total,
        latency=measured.latency,
        baseline_latency=measured.baseline_latency,
        peak_rss_mib=measured.peak_rss_mib,
        size_bytes=sum(map(len, measurement.files.values())),
        coverage=measured.coverage,
        is_baseline=measurement.is_baseline,
        on_target=not profiles.unmet_by(candidate.profile, context.host),
    )


def variant(outcome: Outcome, context: Context, *, gate_skipped: bool) -> Variant:
    """Everything that ships of one kept candidate."""
    measurement, seen = outcome.measurement, outcome.figures
    if measurement is None or seen is None:
        raise GateError(f"{outcome.candidate.name}: it could not be measured: {outcome.error}")
    return Variant(
        config=_config(outcome.candidate, measurement, context),
        certificate=_certificate(outcome, measurement, seen, context, gate_skipped=gate_skipped),
        golden=measurement.measured.golden,
        files=dict(measurement.files),
        golden_files=dict(measurement.golden_files),
    )


def _config(candidate: Candidate, measurement: Measurement, context: Context) -> VariantConfig:
    hardware, recipe, target = candidate.profile.hardware, candidate.recipe, candidate.target
    return VariantConfig(
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
        memory_forecast_mib=forecast.memory_mib(recipe.engine, measurement.files),
    )


def _certificate(
    outcome: Outcome, measurement: Measurement, seen: Figures, context: Context, *, gate_skipped: bool
) -> Certificate:
    measured, recipe = measurement.measured, outcome.candidate.recipe
    answers, labels = np.array(measured.answers), context.evaluation.labels
    base = np.array(measurement.baseline_answers)
    lost = int(np.sum((base == labels) & (answers != labels)))
    gained = int(np.sum((base != labels) & (answers == labels)))
    return Certificate(
        variant=outcome.candidate.name,
        metric="accuracy",
        samples=seen.samples,
        dataset_sha256=context.evaluation.sha256,
        calibration_sha256=context.calibration_sha256 if recipe.needs_calibration else "",
        source_sha256=context.model.file_sha256,
        accuracy=seen.accuracy,
        baseline_accuracy=seen.baseline_accuracy,
        mcnemar_p=stats.mcnemar(lost, gained),
        agreement=float(np.mean(answers == base)),
        latency=seen.latency,
        baseline_latency=seen.baseline_latency,
        peak_rss_mib=seen.peak_rss_mib,
        size_bytes=seen.size_bytes,
        coverage=seen.coverage,
        engine=recipe.engine,
        engine_version=measured.engine_version,
        host_cpu=context.host.cpu,
        host_architecture=context.host.architecture,
        host_isa=context.host.isa,
        measured_on_target=seen.on_target,
        gates=outcome.gates,
        gate_skipped=gate_skipped,
        warnings=_warnings(outcome.candidate, seen, context),
    )


def _warnings(candidate: Candidate, seen: Figures, context: Context) -> tuple[str, ...]:
    found = list(context.warnings) if candidate.recipe.needs_calibration else []
    if not seen.on_target:
        lacks = "; ".join(profiles.unmet_by(candidate.profile, context.host))
        found.append(
            f"not measured on the target ({lacks}): speed and memory are this host's, "
            "and each device proves the answers with the golden samples before it serves"
        )
    return tuple(found)
