"""The search: from the best guesses of every engine and precision to what each profile needs.

1. The first recipe of every family (engine x precision) is built, side by side, and measured in turn.
2. Where accuracy was lost, the family's next recipes are tried until one keeps it.
3. Where none does, and nothing else passes that is better already, layers are given back to floating point,
   the most sensitive first.

Nothing new is begun once the time budget is spent. What cannot fit, and what something smaller beats at a
glance, costs no evaluation.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from edgekit import codec
from edgekit.backends import Recipe, SourceModel
from edgekit.build import choose, forecast, gates, plan, support
from edgekit.build.choose import Outcome
from edgekit.build.forecast import Graph
from edgekit.build.gates import Figures
from edgekit.build.measurement import Measurement
from edgekit.build.mixed import Mixing
from edgekit.build.plan import Candidate, Family
from edgekit.build.request import Request, objective
from edgekit.build.sensitivity import LayerError
from edgekit.build.workshop import Made, Workshop
from edgekit.bundle.model import GateResult
from edgekit.errors import DataError, EngineError
from edgekit.profile import Profile

HOPELESS = 2.0
"""A candidate that is at least this many times slower than a smaller one, at its first runs, is given up."""
JOB_MIB = 1024.0
"""What a quantizer and its libraries take, besides copies of the model."""
JOB_COPIES = 12.0

Judge = Callable[[Candidate, Measurement], tuple[Figures, tuple[GateResult, ...]]]
Mixed = Callable[[Candidate, Made], tuple[Mixing, tuple[LayerError, ...]]]
"""What to give back of a candidate that lost too much accuracy, and each layer's error."""


@dataclass
class Search:
    """One build's search. `judge` turns a measurement into figures and verdicts."""

    request: Request
    workshop: Workshop
    graph: Graph
    judge: Judge
    mixed: Mixed
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layers: dict[str, tuple[LayerError, ...]] = field(default_factory=dict)
    """Of candidates whose layers were ranked, by name: the error of each layer that is still quantized."""
    _made: dict[bytes, Made] = field(default_factory=dict)
    _deadline: float = 0.0

    def run(self, families: Sequence[Family]) -> list[Outcome]:
        """Try what is worth trying; every outcome, in the families' order."""
        budget = self.request.time_budget_s
        self._deadline = time.monotonic() + budget if budget else float("inf")
        fitting = [family for family in families if self._fits(family)]
        self._build_ahead(fitting)
        tried: set[str] = set()
        for family in fitting:
            name = family.first.profile.name
            if self._late() and name in tried:
                self.notes.append(f"{family.first.name}: not tried, the time budget is spent")
                continue
            tried.add(name)
            self._try_family(family)
        order = {id(family.first.profile): i for i, family in enumerate(families)}
        self.outcomes.sort(key=lambda o: order.get(id(o.candidate.profile), 0))
        return self.outcomes

    def _fits(self, family: Family) -> bool:
        first = family.first
        too_big = forecast.too_big(first.profile, self.graph, first.recipe.engine, first.recipe.precision)
        if too_big and self.request.gate:
            self.outcomes.append(Outcome(first, error=f"not built: {too_big} (forecast)"))
            return False
        return True

    def _build_ahead(self, families: Sequence[Family]) -> None:
        """All first recipes and their baselines side by side, as many as fit into memory."""
        wanted: dict[bytes, tuple[Recipe, SourceModel | None]] = {}
        for family in families:
            chosen = self._first_worthy(family)
            for recipe, model in self._needs(chosen) if chosen else ():
                wanted[_bytes_of(recipe, model)] = recipe, model
        with ThreadPoolExecutor(max_workers=self._jobs()) as pool:
            made = pool.map(lambda pair: self.workshop.make(*pair), wanted.values())
            self._made.update(zip(wanted, made, strict=True))

    def _needs(self, candidate: Candidate) -> list[tuple[Recipe, SourceModel | None]]:
        """What is built of which model for one candidate: itself, and fp32 of the source and the baseline."""
        fp32, other = plan.baseline(candidate), self.workshop.context.baseline
        return [(candidate.recipe, None), (fp32, None), *([(fp32, other)] if other else [])]

    def _jobs(self) -> int:
        need_mib = JOB_MIB + JOB_COPIES * len(self.workshop.context.model.onnx) / forecast.MIB
        room = int(self.workshop.context.host.ram_mib / need_mib) or 1
        return max(1, min(self.request.jobs, room))

    def _first_worthy(self, family: Family) -> Candidate | None:
        model = self.workshop.context.model
        return next((c for c in family.candidates if not plan.unworthy(c, model)), None)

    def _try_family(self, family: Family) -> None:
        effort = self.request.effort
        last: Outcome | None = None
        for candidate in family.candidates:
            if last and (self._late() or effort == "quick" or (last.accurate and effort != "thorough")):
                return
            if reason := plan.unworthy(candidate, self.workshop.context.model):
                self.outcomes.append(Outcome(candidate, error=f"not worth trying: {reason}"))
                continue
            last = self._try(candidate)
        accurate = any(o.accurate for o in self.outcomes if o.candidate in family.candidates)
        if last and effort != "quick" and not accurate:
            start = self._best_so_far(family) or last
            if not self._outdone(start):
                self._mix(start)

    def _best_so_far(self, family: Family) -> Outcome | None:
        """Of the family's measured outcomes, the one with the best answers: mixing starts there."""
        mine = [o for o in self.outcomes if o.candidate in family.candidates and o.figures]
        metric = self.workshop.context.metric
        return max(
            mine, key=lambda o: metric.goodness(o.figures.accuracy.value) if o.figures else 0, default=None
        )

    def _outdone(self, start: Outcome) -> bool:
        """What passes already is better than this candidate, and layers in floating point would only make it
        slower and larger."""
        goal = objective(self.request)
        if self.request.effort == "thorough" or start.figures is None or goal.name == "accuracy":
            return False
        mine, sign = goal.read(start.figures), -1 if goal.higher_is_better else 1
        decides = start.figures.on_target or not goal.is_timing
        return any(
            sign * goal.read(rival.figures) <= sign * mine if decides else True
            for rival in self._passing(start.candidate.profile)
            if rival.figures
        )

    def _passing(self, profile: Profile) -> list[Outcome]:
        mine = [o for o in self.outcomes if o.candidate.profile.name == profile.name]
        return [o for o in mine if o.figures and gates.passed(o.gates)]

    def _mix(self, start: Outcome) -> None:
        """Give layers back to floating point until the accuracy gates pass or half of them are back."""
        candidate = start.candidate
        made = self._made.get(_bytes_of(candidate.recipe))
        if start.figures is None or made is None or made.error:
            return
        try:
            mixing, self.layers[candidate.name] = self.mixed(candidate, made)
        except EngineError as exc:
            self.notes.append(f"{candidate.name}: no mixed precision: {exc.message}")
            return
        too_few = 0
        for count in mixing.counts():
            outcome = self._try_keeping(mixing, count, start)
            if outcome is None:
                return
            if outcome.accurate:
                self._shrink(mixing, too_few, count, start, outcome)
                return
            too_few = count

    def _shrink(self, mixing: Mixing, too_few: int, enough: int, start: Outcome, found: Outcome) -> None:
        """Between a number of layers that was too small and one that suffices, look for the smallest: with
        `--effort thorough`, and where what suffices fails another gate, such as speed."""
        while enough - too_few > 1 and (self.request.effort == "thorough" or not gates.passed(found.gates)):
            count = (too_few + enough) // 2
            outcome = self._try_keeping(mixing, count, start)
            if outcome is None:
                return
            if outcome.accurate:
                enough, found = count, outcome
            else:
                too_few = count

    def _try_keeping(self, mixing: Mixing, count: int, start: Outcome) -> Outcome | None:
        """None when there is no time left."""
        candidate = start.candidate
        if self._late():
            self.notes.append(f"{candidate.name}: mixed precision stopped, the time budget is spent")
            return None
        mixed = dataclasses.replace(candidate, recipe=mixing.keeping(count))
        self.layers[mixed.name] = mixing.left(count, self.layers[candidate.name])
        return self._try(mixed)

    def _try(self, candidate: Candidate) -> Outcome:
        outcome = self._outcome(candidate)
        self.outcomes.append(outcome)
        return outcome

    def _outcome(self, candidate: Candidate) -> Outcome:
        own, source, *other = (self.made(*need) for need in self._needs(candidate))
        base = other[0] if other else source
        try:
            give_up_ms = self._give_up_ms(candidate, own)
            measurement = self.workshop.measure(candidate, own, base, give_up_ms, source)
            figures, verdicts = self.judge(candidate, measurement)
        except DataError:
            raise  # the data do not fit the metric: true of every candidate
        except EngineError as exc:
            model = self.workshop.context.model
            return Outcome(candidate, error=support.named(exc.message, candidate.recipe.engine, model))
        return Outcome(candidate, measurement, figures, verdicts)

    def _give_up_ms(self, candidate: Candidate, own: Made) -> float:
        """HOPELESS times the fastest smaller candidate that passes, where the host is the target and the
        objective is something that such a candidate is sure to lose."""
        goal = objective(self.request)
        if (
            self.request.effort == "thorough"
            or not own.files
            or not (goal.is_timing or goal.name == "size_mib")
        ):
            return 0.0
        size = sum(map(len, own.files.values()))
        rivals = [
            rival.figures.latency.p50_ms
            for rival in self._passing(candidate.profile)
            if rival.figures and rival.figures.on_target and rival.figures.size_bytes <= size
        ]
        return HOPELESS * min(rivals) if rivals else 0.0

    def made(self, recipe: Recipe, model: SourceModel | None = None) -> Made:
        """What a recipe made, built at most once; of `model` where that is not the source model."""
        key = _bytes_of(recipe, model)
        if key not in self._made:
            self._made[key] = self.workshop.make(recipe, model)
        return self._made[key]

    def _late(self) -> bool:
        return time.monotonic() > self._deadline


def refusal(failed: Sequence[str], outcomes: Sequence[choose.Outcome]) -> tuple[str, str]:
    """One line that names, for the first profile without a candidate, each one's reason; and the hint."""
    reasons = [
        f"{outcome.candidate.recipe.name}: {outcome.problem}"
        for outcome in outcomes
        if outcome.candidate.profile.name == failed[0]
    ]
    return (
        f"no candidate for {', '.join(failed)} passes the gates; {'; '.join(reasons)}",
        "nothing was written; check the calibration data, try other precisions, or force it with --no-gate",
    )


def _bytes_of(recipe: Recipe, model: SourceModel | None = None) -> bytes:
    """Recipes that make the same files: what the device's engine is told does not change them. `model`: the
    baseline where it is another than the source."""
    name = model.sha256.encode() if model else b""
    return name + codec.to_json(dataclasses.replace(recipe, runtime_options={}))
