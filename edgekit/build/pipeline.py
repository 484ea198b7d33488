"""From a model and profiles to signed variants: plan, build, measure, judge, choose.

`build` is the Python twin of `edgekit build`.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit import codec, host
from edgekit.backends import SourceModel
from edgekit.build import baseline as baselines
from edgekit.build import (
    certify,
    choose,
    data,
    executors,
    forecast,
    gates,
    metrics,
    mixed,
    plan,
    processing,
    robustness,
    search,
    sources,
    support,
)
from edgekit.build.cache import Cache, key_of
from edgekit.build.certify import Context
from edgekit.build.choose import Outcome
from edgekit.build.data import images
from edgekit.build.emulate import Emulation
from edgekit.build.forecast import Graph
from edgekit.build.gates import Figures
from edgekit.build.measurement import Measurement
from edgekit.build.metrics import Metric
from edgekit.build.plan import Candidate, Family
from edgekit.build.processing import Processing
from edgekit.build.progress import Progress, Silent
from edgekit.build.request import Request, objective
from edgekit.build.search import Search
from edgekit.build.sensitivity import LayerError
from edgekit.build.workshop import Workshop
from edgekit.bundle.model import EngineRange, GateResult, Preprocessing, Variant, VariantConfig
from edgekit.errors import DataError, EngineError, GateError


@dataclass(frozen=True)
class Report:
    """Every candidate's fate, and the variants that ship, in the profiles' order (see `choose.shipped`)."""

    request: Request
    context: Context
    calibration: data.Data
    graph: Graph
    outcomes: tuple[Outcome, ...]
    layers: Mapping[str, tuple[LayerError, ...]]
    """Per-layer error of candidates by name, where it was measured."""
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    cache_hits: int


def build(request: Request, cache: Cache, progress: Progress | None = None) -> Report:
    """Build, measure and choose. Raises InputError for bad input, GateError when a profile has nothing."""
    begin = time.monotonic()
    progress = progress or Silent()
    goal = objective(request)
    families, notes = plan_only(request)
    context, calibration = prepare(request, cache, progress)
    emulation = Emulation(context, cache, progress, request.emulate_rows) if request.emulate else None
    if emulation:
        emulation.prepare(families)
    with executors.builder(request.executor) as builder:
        workshop = Workshop(context, calibration, cache, progress, builder, emulation)
        seeker = Search(
            request,
            workshop,
            graph(context, cache),
            functools.partial(_judge, request, context),
            functools.partial(mixed.prepare, workshop),
        )
        outcomes = seeker.run(families)
    chosen = [choose.shipped(profile, outcomes, goal, gate=request.gate) for profile in request.profiles]
    failed = [profile.name for profile, picks in zip(request.profiles, chosen, strict=True) if not picks]
    if failed:
        message, hint = search.refusal(failed, outcomes)
        raise GateError(message, _other_engines(request, context, outcomes, failed[0]) or hint)
    kept = [pick for picks in chosen for pick in picks]
    checked = {}
    if request.robustness:
        checked = robustness.check(kept, workshop, seeker.made, time.monotonic() - begin)
    return Report(
        request=request,
        context=context,
        calibration=calibration,
        graph=seeker.graph,
        outcomes=tuple(choose.explained(outcomes, kept, goal)),
        layers=_layers(request, seeker, kept),
        variants=tuple(
            certify.variant(
                pick,
                context,
                seeker.graph,
                gate_skipped=not gates.passed(pick.gates),
                robustness=checked[pick.candidate.name].found if pick.candidate.name in checked else (),
            )
            for pick in kept
        ),
        notes=(
            *notes,
            *seeker.notes,
            *(emulation.notes if emulation else ()),
            *(one.note for one in checked.values() if one.note),
        ),
        warnings=(
            *context.warnings,
            *(
                f"{name}: {line}"
                for name, one in checked.items()
                for line in metrics.robustness_warnings(context.metric, one.found)
            ),
        ),
        seconds=time.monotonic() - begin,
        cache_hits=workshop.hits,
    )


def _other_engines(request: Request, context: Context, outcomes: Sequence[Outcome], name: str) -> str:
    """Who takes a model that has an operator which the profile's engines lack; empty when that is not why."""
    mine = [one for one in outcomes if one.candidate.profile.name == name]
    if not any(support.missing(one.error, context.model) for one in mine):
        return ""
    (profile,) = (one for one in request.profiles if one.name == name)
    tried = {one.candidate.recipe.engine for one in mine if one.error}
    found = support.takers(context.model, context.evaluation.inputs, profile, tried)
    if not found:
        return "no engine here takes the model; replace this layer and export again"
    return f"nothing was written; {' and '.join(found)} {'takes' if len(found) == 1 else 'take'} the model"


def _layers(request: Request, seeker: Search, kept: Sequence[Outcome]) -> dict[str, tuple[LayerError, ...]]:
    """Per-layer error of what was ranked for mixed precision and, where asked for, of the int8 that ships."""
    found = dict(seeker.layers)
    if not request.layers:
        return found
    for outcome in kept:
        candidate = outcome.candidate
        if candidate.recipe.precision == "int8" and candidate.name not in found:
            try:
                found[candidate.name] = mixed.ranked(
                    seeker.workshop, candidate.recipe, seeker.made(candidate.recipe)
                )
            except EngineError as exc:
                seeker.notes.append(f"{candidate.name}: no error by layer: {exc.message}")
    return found


def plan_only(request: Request) -> tuple[list[Family], list[str]]:
    """Every family that `build` would try, and a line for each target that it cannot."""
    if request.recipe:
        bad = request.try_known_bad
        return [plan.only(profile, request.recipe, try_known_bad=bad) for profile in request.profiles], []
    plans = [
        plan.families(profile, request.precisions, request.engines, try_known_bad=request.try_known_bad)
        for profile in request.profiles
    ]
    return [f for found, _ in plans for f in found], [note for _, notes in plans for note in notes]


def graph(context: Context, cache: Cache) -> Graph:
    """What the model's graph costs; remembered, since ONNX takes a while to import."""
    key = key_of("graph", {"model": context.model.sha256})
    if known := cache.get(key):
        return codec.from_json(Graph, known["graph.json"], what="cached graph")
    counted = forecast.graph_of(context.model)
    cache.put(key, {"graph.json": codec.to_json(counted)})
    return counted


def prepare(request: Request, cache: Cache, progress: Progress | None = None) -> tuple[Context, data.Data]:
    """Read model and data, and check that they fit each other. Raises ModelError, DataError."""
    metric = metrics.get(request.metric)
    model = sources.load(request.model, cache, request.source, progress)
    wanted = data.Wanted(
        model.inputs,
        request.naming,
        image=images.parse(request.image),
        label_names=request.label_names,
    )
    rows = data.read(request.calibration, wanted, progress)
    proof = data.read(request.evaluate, dataclasses.replace(wanted, truth=_truth(metric)), progress)
    steps = request.preprocessing or data.preprocessing(
        request.affine, wanted, proof, rows, image_given=bool(request.image)
    )
    calibration = data.fit(rows, model.inputs, steps, calibrates=True)
    evaluation = data.fit(proof, model.inputs, steps)
    drift = data.drift(calibration.inputs, evaluation.inputs)
    names = request.label_names or evaluation.label_names
    if metric.classifies and not request.decode:
        _check_labels(evaluation, model.outputs[0].shape, names)
    reference = None
    if request.baseline:
        reference = baselines.load(request.baseline, model, cache, request.source, progress)
    context = Context(
        model,
        steps,
        evaluation,
        calibration.sha256,
        names,
        host.read(),
        (
            *calibration.warnings,
            *data.overlap(rows, proof),
            *data.drift_warnings(drift, calibration, evaluation),
        ),
        metric,
        request.decode,
        drift,
        reference,
        _processing(request, model, steps, names),
    )
    return context, calibration


def _processing(
    request: Request, model: SourceModel, preprocessing: Preprocessing, labels: Sequence[str]
) -> Processing | None:
    """The pipeline, tried on a made-up request before minutes are spent. Raises ConfigError."""
    if request.pipeline is None:
        return None
    found = processing.load(request.pipeline)
    draft = VariantConfig(
        variant="draft",
        profile="draft",
        engine=EngineRange("draft"),
        precision="fp32",
        options={},
        files=(),
        inputs=model.inputs,
        outputs=model.outputs,
        labels=tuple(labels),
        preprocessing=preprocessing,
        architecture="any",
        isa=(),
        memory_forecast_mib=0.0,
    )
    processing.rehearse(processing.attach(draft, found), found)
    return found


def _judge(
    request: Request, context: Context, candidate: Candidate, measurement: Measurement
) -> tuple[Figures, tuple[GateResult, ...]]:
    figures = certify.figures(candidate, measurement, context)
    goal = objective(request)
    verdicts = gates.judge(
        figures,
        candidate.profile.budget,
        size_matters=not goal.is_timing,
        constraints=request.constraints,
    )
    return figures, verdicts


def _truth(metric: Metric) -> data.Truth:
    if metric.classifies:
        return "class"
    return "value" if metric.needs_truth else "maybe"


def _check_labels(evaluation: data.Data, shape: tuple[int, ...], names: Sequence[str]) -> None:
    """Labels must be classes of the first output, label names one per class."""
    classes = shape[-1] if len(shape) > 1 and shape[-1] > 0 else 0
    if not classes:
        raise DataError(
            f"the first output has shape {list(shape)}: not scores per class",
            "accuracy needs an output of (batch, classes)",
        )
    labels = evaluation.truth
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"{evaluation.name}: labels run from {labels.min()} to {labels.max()}, the model has classes "
            f"0 to {classes - 1}",
            "are these labels of this model?",
        )
    if names and len(names) != classes:
        raise DataError(
            f"{len(names)} label names for {classes} classes",
            "give one per class with --label-names, in the model's order",
        )
