"""Which candidates are worth trying for a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekit import backends
from edgekit.backends import Recipe
from edgekit.errors import EngineMissing, ProfileError
from edgekit.profile import Profile, Target


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


def candidates(profile: Profile, precisions: Sequence[str]) -> tuple[list[Candidate], list[str]]:
    """Candidates in order of preference, and a line for each target that cannot be tried.

    `precisions` narrows the profile's own. Raises ProfileError when nothing is left.
    """
    found: list[Candidate] = []
    notes: list[str] = []
    for target in profile.target:
        try:
            backend = backends.get(target.runtime)
            backend.tools()
        except EngineMissing as exc:
            notes.append(f"{profile.name}: {target.runtime} not tried: {exc.message}")
            continue
        for precision in target.precisions:
            if precisions and precision not in precisions:
                continue
            for recipe in backend.recipes(precision, target, profile.calibration):
                found.append(Candidate(profile, target, recipe, len(found)))
    if not found:
        asked = f" at {', '.join(precisions)}" if precisions else ""
        offered = sorted({p for target in profile.target for p in target.precisions})
        raise ProfileError(f"{profile.name}: no candidate{asked}", f"the profile offers {', '.join(offered)}")
    return found, notes


def baseline(candidate: Candidate) -> Recipe:
    """The fp32 model on the candidate's engine and options: what accuracy and speed are held against."""
    recipes = backends.get(candidate.recipe.engine).recipes(
        "fp32", candidate.target, candidate.profile.calibration
    )
    return next(iter(recipes))
