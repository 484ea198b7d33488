"""Which candidates are worth trying for a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit import backends
from edgekit.backends import Recipe, SourceModel
from edgekit.bundle.model import EngineRange
from edgekit.errors import EngineMissing, ProfileError
from edgekit.profile import Profile, Target
from edgekit.runtimes import _known_bad

Options = dict[str, str | int | float | bool]


@dataclass(frozen=True)
class Candidate:
    """One recipe for one profile; `rank` is its place in the profile's order of preference."""

    profile: Profile
    target: Target
    recipe: Recipe
    rank: int

    @property
    def name(self) -> str:
        return f"{self.profile.name}.{self.recipe.name}"


@dataclass(frozen=True)
class Family:
    """One engine and precision of a profile: its recipes, best guess first. The first is always tried, the
    others when those before them lose too much accuracy (or with `--effort thorough`)."""

    candidates: tuple[Candidate, ...]

    @property
    def first(self) -> Candidate:
        return self.candidates[0]

    @property
    def others(self) -> tuple[Candidate, ...]:
        return self.candidates[1:]


def families(
    profile: Profile,
    precisions: Sequence[str],
    engines: Sequence[str] = (),
    *,
    try_known_bad: bool = False,
) -> tuple[list[Family], list[str]]:
    """Families in order of preference, and a line for each target that cannot be tried.

    `precisions` and `engines` narrow the profile's own. What the deny-list knows to be bad in every version
    that the target allows is left out, unless `try_known_bad`. Raises ProfileError when nothing is left.
    """
    found: list[Family] = []
    notes: list[str] = []
    rank = 0
    for target in profile.target:
        if engines and target.runtime not in engines:
            continue
        try:
            backend = backends.get(target.runtime)
            backend.tools()
        except EngineMissing as exc:
            notes.append(f"{profile.name}: {target.runtime} not tried: {exc.message}")
            continue
        for precision in target.precisions:
            if precisions and precision not in precisions:
                continue
            recipes = list(backend.recipes(precision, target, profile.calibration))
            if not try_known_bad:
                recipes, bad = _not_known_bad(profile, target, recipes)
                notes += bad
            members = tuple(Candidate(profile, target, recipe, rank + i) for i, recipe in enumerate(recipes))
            rank += len(members)
            found += [Family(members)] if members else []
    if not found:
        asked = f" at {', '.join((*precisions, *engines))}" if precisions or engines else ""
        offered = sorted({f"{t.runtime} {p}" for t in profile.target for p in t.precisions})
        because = f": {'; '.join(notes)}" if notes else ""
        hint = f"the profile offers {', '.join(offered)}"
        raise ProfileError(f"{profile.name}: no candidate{asked}{because}", hint)
    return found, notes


def _not_known_bad(
    profile: Profile, target: Target, recipes: Sequence[Recipe]
) -> tuple[list[Recipe], list[str]]:
    """Recipes that the deny-list does not name, and a line for each that it does."""
    hardware = profile.hardware
    place = _known_bad.Place(hardware.architecture, hardware.isa, (hardware.cpu, hardware.emulate))
    versions = EngineRange(target.runtime, target.minimum, target.below)
    good: list[Recipe] = []
    notes: list[str] = []
    for recipe in recipes:
        made = _known_bad.Made(recipe.engine, recipe.precision, {**recipe.options, **recipe.runtime_options})
        if entry := _known_bad.of_range(made, versions, place):
            notes.append(f"{profile.name}.{recipe.name} not tried: {entry.reason}")
        else:
            good.append(recipe)
    return good, notes


def only(profile: Profile, recipe: Recipe, *, try_known_bad: bool = False) -> Family:
    """A family of exactly this recipe. Raises ProfileError when the profile has no such engine or the
    deny-list names the recipe, EngineMissing when the engine cannot build here."""
    backends.get(recipe.engine).tools()
    target = next((one for one in profile.target if one.runtime == recipe.engine), None)
    if target is None:
        offered = ", ".join(dict.fromkeys(one.runtime for one in profile.target))
        raise ProfileError(f"{profile.name}: no engine {recipe.engine}", f"the profile offers {offered}")
    good, notes = ([recipe], []) if try_known_bad else _not_known_bad(profile, target, [recipe])
    if not good:
        raise ProfileError(notes[0], "with --try-known-bad it is tried all the same")
    return Family((Candidate(profile, target, recipe, 0),))


def baseline(candidate: Candidate) -> Recipe:
    """The fp32 model on the candidate's engine and options: what accuracy and speed are held against."""
    recipes = backends.get(candidate.recipe.engine).recipes(
        "fp32", candidate.target, candidate.profile.calibration
    )
    return next(iter(recipes))


def unworthy(candidate: Candidate, model: SourceModel) -> str:
    """Why the backend itself would not try this recipe on this model; empty when it would, or has no say."""
    backend = backends.get(candidate.recipe.engine)
    return backend.worth(model, candidate.recipe) if isinstance(backend, backends.Selective) else ""


def stand_in(engine: str) -> str:
    """The runtime that measures the engine's files where the engine itself cannot run; empty: its own.

    TensorRT's graphs, for one, run on ONNX Runtime's CPU kernels: answers, not speed.
    """
    backend = backends.get(engine)
    return backend.stand_in if isinstance(backend, backends.StandIn) else ""


def measured(engine: str, files: Mapping[str, bytes], options: Options) -> tuple[dict[str, bytes], Options]:
    """Files and options that measuring loads: the variant's own, or what its stand-in understands."""
    backend = backends.get(engine)
    if isinstance(backend, backends.StandIn):
        return backend.lend(files, options)
    return dict(files), options
