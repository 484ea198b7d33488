"""Which candidate ships for a profile, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit.build import gates
from edgekit.build.gates import Figures
from edgekit.build.measurement import Measurement
from edgekit.build.plan import Candidate
from edgekit.bundle.model import GateResult
from edgekit.profile import Profile

SAME_SPEED = 1.10
"""Medians closer than this are a tie; then the profile's order of preference decides."""


@dataclass(frozen=True)
class Outcome:
    """One candidate's fate. `measurement` is None when it could not be built or measured."""

    candidate: Candidate
    measurement: Measurement | None = None
    figures: Figures | None = None
    gates: tuple[GateResult, ...] = ()
    error: str = ""
    kept: bool = False
    reason: str = ""
    """Why it was kept or not; filled by `explained`."""

    @property
    def problem(self) -> str:
        """What stands against it: the error, or the failed gates; empty when nothing does."""
        return self.error or "; ".join(gate.reason for gate in self.gates if not gate.passed)


def best(profile: Profile, outcomes: Sequence[Outcome], objective: str) -> Outcome | None:
    """The best candidate that passes every gate; None when there is none."""
    return _first([o for o in _of(profile, outcomes) if o.figures and gates.passed(o.gates)], objective)


def least_bad(profile: Profile, outcomes: Sequence[Outcome], objective: str) -> Outcome | None:
    """The best candidate regardless of the gates; None when nothing could be measured."""
    return _first([o for o in _of(profile, outcomes) if o.figures], objective)


def explained(outcomes: Sequence[Outcome], kept: Sequence[Outcome], objective: str) -> list[Outcome]:
    """Every outcome with its reason, in the order given."""
    winners = {outcome.candidate.profile.name: outcome for outcome in kept}
    return [
        dataclasses.replace(
            outcome,
            kept=outcome is winners[outcome.candidate.profile.name],
            reason=_reason(outcome, winners[outcome.candidate.profile.name], objective),
        )
        for outcome in outcomes
    ]


def _of(profile: Profile, outcomes: Sequence[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.candidate.profile.name == profile.name]


def _first(outcomes: list[Outcome], objective: str) -> Outcome | None:
    if not outcomes:
        return None
    if objective == "size":
        return min(outcomes, key=lambda o: (o.figures.size_bytes if o.figures else 0, o.candidate.rank))
    if all(o.figures and o.figures.on_target for o in outcomes):
        fastest = min(_p50(outcome) for outcome in outcomes)
        outcomes = [o for o in outcomes if _p50(o) <= fastest * SAME_SPEED]
    return min(outcomes, key=lambda o: o.candidate.rank)


def _p50(outcome: Outcome) -> float:
    return outcome.figures.latency.p50_ms if outcome.figures else float("inf")


def _reason(outcome: Outcome, winner: Outcome, objective: str) -> str:
    if outcome is winner:
        if outcome.problem:
            return f"kept by --no-gate although: {outcome.problem}"
        figures = outcome.figures
        fastest = "fastest" if figures and figures.on_target else "first in the profile's order"
        return f"kept: passes every gate, {'smallest' if objective == 'size' else fastest}"
    if outcome.problem:
        return outcome.problem
    if not outcome.figures or not winner.figures:
        return "not measured"
    return (
        f"passes; {winner.candidate.recipe.name} is preferred "
        f"({winner.figures.size_bytes / 1000:.1f} kB against {outcome.figures.size_bytes / 1000:.1f}, "
        f"p50 {winner.figures.latency.p50_ms:.3f} ms against {outcome.figures.latency.p50_ms:.3f})"
    )
