"""Does a variant lose more than fp32 does when its rows are disturbed? A warning, never a gate.

Only what ships is asked, on few rows, in a worker process like every measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from edgekit import codec
from edgekit.backends import Recipe, SourceModel
from edgekit.build import disturb, plan, stats, userfunc
from edgekit.build.cache import key_of
from edgekit.build.certify import Context
from edgekit.build.choose import Outcome
from edgekit.build.disturb import Array, Inputs
from edgekit.build.measurement import Measurement
from edgekit.build.metrics import Answers
from edgekit.build.workshop import Made, Workshop
from edgekit.bundle.model import Robustness
from edgekit.errors import EdgekitError

MAX_ROWS, MIN_ROWS = 200, 20
SHARE_OF_BUILD = 0.1
LEAST_S = 1.0
"""What the check may cost even where the build was short, or came from the cache."""


@dataclass(frozen=True)
class Checked:
    found: tuple[Robustness, ...] = ()
    note: str = ""
    """Why it was not checked; empty: it was, or there is nothing to check."""


def check(
    outcomes: Sequence[Outcome],
    workshop: Workshop,
    made: Callable[[Recipe, SourceModel | None], Made],
    build_s: float,
) -> dict[str, Checked]:
    """By candidate's name. `build_s`: what the build took so far; this may take a tenth of it.

    The same files on the same engine are asked once, and remembered.
    """
    keys = {outcome.candidate.name: _key(outcome, workshop.context, made) for outcome in outcomes}
    fresh = {
        keys[outcome.candidate.name]: outcome for outcome in outcomes if _worth(outcome, workshop.context)
    }
    known = {key: found for key in fresh if (found := _remembered(key, workshop))}
    todo = {key: outcome for key, outcome in fresh.items() if key not in known}
    if todo:
        with (
            workshop.progress.step("robustness"),
            ThreadPoolExecutor(workshop.context.host.cores or 1) as pool,
        ):
            one = partial(_check, workshop=workshop, made=made, build_s=build_s)
            known |= dict(zip(todo, pool.map(one, todo.values()), strict=True))
    for key in todo:
        workshop.cache.put(key, {"robustness.json": codec.to_json(known[key])})
    emulated = [one.candidate.name for one in outcomes if one.measurement and one.measurement.emulated]
    unasked = {name: Checked(note=f"{name}: robustness not checked under emulation") for name in emulated}
    return unasked | {name: known[key] for name, key in keys.items() if key in known}


def _key(outcome: Outcome, context: Context, made: Callable[[Recipe, SourceModel | None], Made]) -> str:
    candidate, metric = outcome.candidate, context.metric.name
    functions = {name: userfunc.digest(name).hex() for name in (metric, context.decode) if ".py:" in name}
    question = {
        "candidate": made(candidate.recipe, None).key,
        "baseline": made(plan.baseline(candidate), context.baseline).key,
        "evaluation": context.evaluation.sha256,
        "preprocessing": context.preprocessing,
        "runtime_options": candidate.recipe.runtime_options,
        "metric": [metric, context.decode, functions],
        "host": [context.host.cpu, context.host.isa],
    }
    return key_of("robustness", question)


def _remembered(key: str, workshop: Workshop) -> Checked | None:
    files = workshop.remembered(key)
    return codec.from_json(Checked, files["robustness.json"], what="robustness") if files else None


def _worth(outcome: Outcome, context: Context) -> bool:
    """There is something to compare, on inputs that can be disturbed, and no emulation to wait for."""
    measurement = outcome.measurement
    if measurement is None or measurement.is_baseline or measurement.emulated:
        return False
    return bool(disturb.disturbances({n: a[:1] for n, a in context.evaluation.inputs.items()}))


def _check(
    outcome: Outcome, workshop: Workshop, made: Callable[[Recipe, SourceModel | None], Made], build_s: float
) -> Checked:
    measurement, name, context = outcome.measurement, outcome.candidate.name, workshop.context
    if measurement is None:
        return Checked()
    count = _affordable(measurement, build_s, context.evaluation.rows)
    if count < min(MIN_ROWS, context.evaluation.rows):
        return Checked(note=f"{name}: robustness not checked: one row takes too long for this build's time")
    chosen = disturb.places(context.evaluation.rows, count)
    rows = _some(context.evaluation.inputs, chosen)
    kinds = disturb.disturbances(rows)
    own = made(outcome.candidate.recipe, None)
    base = made(plan.baseline(outcome.candidate), context.baseline)
    try:
        ours, theirs = workshop.answers(outcome.candidate, own, base, _joined(list(kinds.values())))
        return Checked(_scored(context, measurement, chosen, list(kinds), ours, theirs))
    except EdgekitError as exc:
        return Checked(note=f"{name}: robustness not checked: {exc.message}")


def _affordable(measurement: Measurement, build_s: float, rows: int) -> int:
    """Rows that the time allows: each is run three times by two models."""
    measured = measurement.measured
    row_s = 3 * (measured.latency.p50_ms + measured.baseline_latency.p50_ms) / 1e3
    return int(min(MAX_ROWS, rows, max(LEAST_S, SHARE_OF_BUILD * build_s) / max(row_s, 1e-9)))


def _scored(
    context: Context,
    measurement: Measurement,
    chosen: Array,
    kinds: Sequence[str],
    ours: Inputs,
    theirs: Inputs,
) -> tuple[Robustness, ...]:
    """`ours`, `theirs`: answers to all kinds, one after the other. They are scored in one go together with
    the answers to the undisturbed rows, for a user's metric is a process of its own."""
    metric, parts = context.metric, len(kinds) + 1
    ours = _joined([_some(measurement.outputs, chosen), ours])
    theirs = _joined([_some(measurement.baseline_outputs, chosen), theirs])
    truth = _truth(context, chosen, parts)
    now = np.split(metric.rows(Answers(ours, truth, theirs)), parts)
    before = np.split(metric.rows(Answers(theirs, truth, theirs)), parts)
    return tuple(
        Robustness(
            disturbance=kind,
            samples=len(chosen),
            value=metric.value(now[i]),
            baseline=metric.value(before[i]),
            clean=metric.value(now[0]),
            baseline_clean=metric.value(before[0]),
            p=stats.excess_loss(
                (now[0], now[i]), (before[0], before[i]), lambda rows: metric.goodness(metric.value(rows))
            ),
        )
        for i, kind in enumerate(kinds, 1)
    )


def _truth(context: Context, chosen: Array, parts: int) -> Array | None:
    """The chosen rows' truth, or their pairs', `parts` times."""
    truth = context.evaluation.truth
    if truth is None:
        return None
    is_of_pairs = len(truth) * 2 == context.evaluation.rows
    return np.concatenate([truth[chosen[::2] // 2] if is_of_pairs else truth[chosen]] * parts)


def _some(arrays: Inputs, chosen: Array) -> dict[str, Array]:
    return {name: array[chosen] for name, array in arrays.items()}


def _joined(series: Sequence[Inputs]) -> dict[str, Array]:
    return {name: np.concatenate([rows[name] for rows in series]) for name in series[0]}
