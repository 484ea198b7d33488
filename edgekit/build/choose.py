"""Which candidates ship for a profile, and why the others do not.

One of those that were measured on their own engine; and beside it, for each engine that another stood in
for here, one of its own. A device takes the first that it can run and that answers as certified.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build import gates, pareto
from edgekit.build.gates import Figure, Figures
from edgekit.build.measurement import Measurement
from edgekit.build.plan import Candidate
from edgekit.bundle.model import GateResult
from edgekit.profile import Profile

TIE = 1.10
"""Figures closer than this are a tie; then the profile's order of preference decides."""


@dataclass(frozen=True)
class Outcome:
    """One candidate's fate. `measurement` is None when it could not be built or measured."""

    candidate: Candidate
    measurement: Measurement | None = None
    figures: Figures | None = None
    gates: tuple[GateResult, ...] = ()
    error: str = ""
    kept: bool = False
    on_front: bool = False
    """No other candidate of the profile beats it in accuracy, latency, memory, size and energy."""
    reason: str = ""
    """Why it was kept or not; filled by `explained`."""

    @property
    def problem(self) -> str:
        """What stands against it: the error, or the failed gates; empty when nothing does."""
        return self.error or "; ".join(gate.reason for gate in self.gates if not gate.passed)

    @property
    def accurate(self) -> bool:
        """It was measured and its answers are good enough, whatever else it fails."""
        return bool(self.gates) and all(g.passed for g in self.gates if g.gate in gates.ACCURACY_GATES)


def shipped(
    profile: Profile, outcomes: Sequence[Outcome], objective: Figure, *, gate: bool = True
) -> list[Outcome]:
    """What ships for a profile, in its order of preference; empty when nothing passes.

    Without `gate` the least bad ships where nothing passes.
    """
    mine = _of(profile, outcomes)
    groups = [[o for o in mine if _group(o) == one] for one in dict.fromkeys(map(_group, mine))]
    found = [best(profile, group, objective) for group in groups]
    if not any(found) and not gate:
        found = [least_bad(profile, group, objective) for group in groups]
    return sorted((pick for pick in found if pick), key=lambda o: o.candidate.rank)


def best(profile: Profile, outcomes: Sequence[Outcome], objective: Figure) -> Outcome | None:
    """The best candidate that passes every gate; None when there is none."""
    return _first([o for o in _of(profile, outcomes) if o.figures and gates.passed(o.gates)], objective)


def least_bad(profile: Profile, outcomes: Sequence[Outcome], objective: Figure) -> Outcome | None:
    """The best candidate regardless of the gates; None when nothing could be measured."""
    return _first([o for o in _of(profile, outcomes) if o.figures], objective)


def explained(outcomes: Sequence[Outcome], kept: Sequence[Outcome], objective: Figure) -> list[Outcome]:
    """Every outcome with its reason and its place on its profile's front, in the order given."""
    front = _front(outcomes)

    def told(outcome: Outcome) -> Outcome:
        mine = [one for one in kept if one.candidate.profile.name == outcome.candidate.profile.name]
        winner = next((one for one in mine if _group(one) == _group(outcome)), mine[0])
        return dataclasses.replace(
            outcome,
            kept=outcome is winner,
            on_front=id(outcome) in front,
            reason=_reason(outcome, winner, objective),
        )

    return [told(outcome) for outcome in outcomes]


def _group(outcome: Outcome) -> str:
    """Candidates that compete: those measured on their own engines; else those of one engine."""
    stood_in = outcome.figures is not None and outcome.figures.stand_in
    return outcome.candidate.recipe.engine if stood_in else ""


def _front(outcomes: Sequence[Outcome]) -> set[int]:
    found: set[int] = set()
    for name in {outcome.candidate.profile.name for outcome in outcomes}:
        mine = [o for o in outcomes if o.candidate.profile.name == name and o.figures is not None]
        on = pareto.front([o.figures for o in mine if o.figures is not None])
        found |= {id(outcome) for outcome, is_on in zip(mine, on, strict=True) if is_on}
    return found


def _of(profile: Profile, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.candidate.profile.name == profile.name]


def _first(outcomes: list[Outcome], objective: Figure) -> Outcome | None:
    """Least of the objective, up to a tie; timings mean nothing off the target, there the order decides."""
    if not outcomes:
        return None
    if not objective.is_timing or all(o.figures and o.figures.on_target for o in outcomes):
        sign = -1 if objective.higher_is_better else 1
        top = min(sign * _read(outcome, objective) for outcome in outcomes)
        worst = top * TIE if top > 0 else top / TIE
        outcomes = [o for o in outcomes if sign * _read(o, objective) <= worst]
    return min(outcomes, key=lambda o: o.candidate.rank)


def _read(outcome: Outcome, objective: Figure) -> float:
    return objective.read(outcome.figures) if outcome.figures else float("inf")


def _reason(outcome: Outcome, winner: Outcome, objective: Figure) -> str:
    if outcome is winner:
        if outcome.problem:
            return f"kept by --no-gate although: {outcome.problem}"
        return f"kept: passes every gate, {_merit(outcome, objective)}"
    if outcome.problem:
        return outcome.problem
    if not outcome.figures or not winner.figures:
        return "not measured"
    ours, theirs = (f"{objective.read(f):.4g}" for f in (outcome.figures, winner.figures))
    return (
        f"passes; {winner.candidate.recipe.name} is preferred "
        f"({winner.figures.size_bytes / 1000:.1f} kB against {outcome.figures.size_bytes / 1000:.1f}, "
        f"{objective.name} {theirs} against {ours})"
    )


def _merit(outcome: Outcome, objective: Figure) -> str:
    if objective.is_timing and not (outcome.figures and outcome.figures.on_target):
        return "first in the profile's order"
    words = {"latency_p50_ms": "fastest", "size_mib": "smallest"}
    return words.get(objective.name, f"best {objective.name}")
