"""From a model and profiles to signed variants: plan, build, measure, judge, choose.

`build` is the Python twin of `edgekit build`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from edgekit import codec, host
from edgekit.backends import Recipe
from edgekit.build import certify, choose, data, gates, plan, source
from edgekit.build.cache import Cache
from edgekit.build.certify import Context
from edgekit.build.choose import Outcome
from edgekit.build.progress import Progress, Silent
from edgekit.build.workshop import Made, Workshop
from edgekit.bundle.model import Preprocessing, Variant
from edgekit.errors import DataError, EngineError, GateError
from edgekit.profile import Profile


@dataclass(frozen=True)
class Request:
    """What to build. `calibration` and `evaluate` are `FILE.npz` or `FILE.npz[START:STOP]`."""

    model: Path
    profiles: tuple[Profile, ...]
    calibration: str
    evaluate: str
    naming: data.Naming = field(default_factory=data.Naming)
    affine: tuple[str, ...] = ()
    """`[INPUT:]SCALE,OFFSET`: real = (stored - OFFSET) * SCALE."""
    label_names: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    """Narrows the profiles' own; empty: all of them."""
    objective: str = "latency"
    """latency or size."""
    gate: bool = True
    jobs: int = 2


@dataclass(frozen=True)
class Report:
    """Every candidate's fate, and the variants that ship (one per profile, in the profiles' order)."""

    outcomes: tuple[Outcome, ...]
    variants: tuple[Variant, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float
    cache_hits: int


def build(request: Request, cache: Cache, progress: Progress | None = None) -> Report:
    """Build, measure and choose. Raises InputError for bad input, GateError when a profile has nothing."""
    begin = time.monotonic()
    progress = progress or Silent()
    tried, notes = plan_only(request)
    context, calibration = prepare(request, cache)
    workshop = Workshop(context, calibration, cache, progress)
    outcomes = _judge_all(tried, request, context, workshop)
    chosen = [choose.best(profile, outcomes, request.objective) for profile in request.profiles]
    failed = [profile.name for profile, pick in zip(request.profiles, chosen, strict=True) if pick is None]
    if not request.gate:
        chosen = [
            pick or choose.least_bad(profile, outcomes, request.objective)
            for profile, pick in zip(request.profiles, chosen, strict=True)
        ]
    if None in chosen:
        raise _refusal(failed, outcomes)
    kept = [pick for pick in chosen if pick is not None]
    return Report(
        outcomes=tuple(choose.explained(outcomes, kept, request.objective)),
        variants=tuple(
            certify.variant(pick, context, gate_skipped=not gates.passed(pick.gates)) for pick in kept
        ),
        notes=tuple(notes),
        warnings=context.warnings,
        seconds=time.monotonic() - begin,
        cache_hits=workshop.hits,
    )


def plan_only(request: Request) -> tuple[list[plan.Candidate], list[str]]:
    """Every candidate that `build` would try, and a line for each target that it cannot."""
    plans = [plan.candidates(profile, request.precisions) for profile in request.profiles]
    return [c for found, _ in plans for c in found], [note for _, notes in plans for note in notes]


def prepare(request: Request, cache: Cache) -> tuple[Context, data.Data]:
    """Read model and data, and check that they fit each other. Raises ModelError, DataError."""
    model = source.load(request.model, cache)
    stored = data.stored_dtypes(request.evaluate, model.inputs, request.naming)
    steps = tuple(data.affine(text, model.inputs, stored) for text in request.affine)
    if len({step.input for step in steps}) != len(steps):
        raise DataError("--affine: an input is named twice", "name each once")
    preprocessing = Preprocessing(steps)
    calibration = data.load(
        request.calibration, model.inputs, preprocessing, request.naming, need_labels=False
    )
    evaluation = data.load(request.evaluate, model.inputs, preprocessing, request.naming, need_labels=True)
    _check_labels(evaluation, model.outputs[0].shape, request.label_names)
    context = Context(
        model,
        preprocessing,
        evaluation,
        calibration.sha256,
        request.label_names,
        host.read(),
        calibration.warnings,
    )
    return context, calibration


def _check_labels(evaluation: data.Data, shape: tuple[int, ...], names: Sequence[str]) -> None:
    """Labels must be classes of the first output, label names one per class."""
    classes = shape[-1] if len(shape) > 1 and shape[-1] > 0 else 0
    if not classes:
        raise DataError(
            f"the first output has shape {list(shape)}: not scores per class",
            "accuracy needs an output of (batch, classes)",
        )
    labels = evaluation.labels
    if labels is not None and (labels.min() < 0 or labels.max() >= classes):
        raise DataError(
            f"{evaluation.name}: labels run from {labels.min()} to {labels.max()}, the model has classes "
            f"0 to {classes - 1}",
            "are these labels of this model?",
        )
    if names and len(names) != classes:
        raise DataError(f"{len(names)} label names for {classes} classes", "give one per class")


def _judge_all(
    tried: Sequence[plan.Candidate], request: Request, context: Context, workshop: Workshop
) -> list[Outcome]:
    """Build side by side, measure one after the other (timings), judge each."""
    recipes = {_bytes_of(recipe): recipe for c in tried for recipe in (c.recipe, plan.baseline(c))}
    with ThreadPoolExecutor(max_workers=max(1, request.jobs)) as pool:
        made = dict(zip(recipes, pool.map(workshop.make, recipes.values()), strict=True))
    return [_outcome(candidate, request, context, workshop, made) for candidate in tried]


def _bytes_of(recipe: Recipe) -> bytes:
    """Recipes that make the same files: what the device's engine is told does not change them."""
    return codec.to_json(dataclasses.replace(recipe, runtime_options={}))


def _outcome(
    candidate: plan.Candidate,
    request: Request,
    context: Context,
    workshop: Workshop,
    made: dict[bytes, Made],
) -> Outcome:
    try:
        own, base = made[_bytes_of(candidate.recipe)], made[_bytes_of(plan.baseline(candidate))]
        measurement = workshop.measure(candidate, own, base)
    except EngineError as exc:
        return Outcome(candidate, error=exc.message)
    figures = certify.figures(candidate, measurement, context)
    verdicts = gates.judge(figures, candidate.profile.budget, size_matters=request.objective == "size")
    return Outcome(candidate, measurement, figures, verdicts)


def _refusal(failed: Sequence[str], outcomes: Sequence[Outcome]) -> GateError:
    """One line that names, for the first profile without a candidate, each one's reason."""
    reasons = [
        f"{outcome.candidate.recipe.name}: {outcome.problem}"
        for outcome in outcomes
        if outcome.candidate.profile.name == failed[0]
    ]
    return GateError(
        f"no candidate for {', '.join(failed)} passes the gates; {'; '.join(reasons)}",
        "nothing was written; check the calibration data, try other precisions, or force it with --no-gate",
    )
