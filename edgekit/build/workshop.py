"""Makes and measures candidates in worker processes, each only once: within a build and across builds."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import backends, codec
from edgekit.backends import Recipe, SourceModel
from edgekit.build import plan, userfunc, worker
from edgekit.build.cache import Cache, key_of
from edgekit.build.certify import Context
from edgekit.build.data import Data
from edgekit.build.emulate import Emulation
from edgekit.build.measure import Measured, Plan
from edgekit.build.measurement import Measurement
from edgekit.build.progress import Progress
from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes import _golden, _pace
from edgekit.runtimes._answers import unpack_outputs

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Seen:
    """One measurement, its answers unpacked and decoded."""

    measured: Measured
    golden_files: Mapping[str, bytes]
    outputs: Outputs


@dataclass(frozen=True)
class Made:
    """A candidate's files, or why there are none."""

    key: str
    files: Mapping[str, bytes]
    error: EngineError | None = None
    seconds: float = 0.0
    """What building took; 0 from the cache."""


@dataclass
class Workshop:
    context: Context
    calibration: Data
    cache: Cache
    progress: Progress
    builder: Callable[[worker.Job], tuple[dict[str, Any], dict[str, bytes]]] = worker.run
    """Runs build jobs: here, or on a cluster. Measuring stays here: timings of many machines say nothing."""
    emulation: Emulation | None = None
    """Where answers come from for profiles that this host is not; None: from this host all the same."""
    hits: int = 0
    _known: dict[str, _Seen] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, recipe: Recipe, model: SourceModel | None = None) -> Made:
        """Build one candidate, of `model` where that is not the source model; a failure is remembered in the
        result. Called by several threads."""
        model = model or self.context.model
        try:
            tools = backends.get(recipe.engine).tools()
        except EngineMissing as exc:
            return Made("", {}, exc)
        question = {
            "model": model.sha256,
            "recipe": dataclasses.replace(recipe, runtime_options={}),
            "calibration": self.calibration.sha256 if recipe.needs_calibration else "",
            "preprocessing": self.context.preprocessing if recipe.needs_calibration else "",
            "tools": tools,
        }
        key = key_of("build", question)
        if files := self.remembered(key):
            return Made(key, files)
        with self.progress.step(f"build {recipe.name}"):
            arrays = self.calibration.inputs if recipe.needs_calibration else {}
            job = worker.Job("build", recipe, model=model, arrays=arrays)
            begin = time.monotonic()
            try:
                _, files = self.builder(job)
            except EngineError as exc:
                return Made(key, {}, exc)
        self.cache.put(key, files)
        return Made(key, files, seconds=time.monotonic() - begin)

    def measure(
        self,
        candidate: plan.Candidate,
        own: Made,
        base: Made,
        give_up_ms: float = 0.0,
        source: Made | None = None,
    ) -> Measurement:
        """Figures of one candidate beside its baseline. Raises EngineError when there are none, or when its
        first runs take longer than `give_up_ms` (0: never).

        `source`: fp32 of the source model, where the baseline is another model. Golden samples ask for its
        classes, for they tell whether a device computes the variant rightly.
        """
        source = source or base
        for made in (own, base, source):
            if made.error:
                raise made.error
        here = self._here(candidate, own, base, source, give_up_ms)
        if self.emulation is None or here.stand_in:
            return here  # an emulated CPU has no GPU either
        first, second, third = ((made.key, made.files) for made in (own, base, source))
        return self.emulation.retake(candidate, first, second, third, here)

    def _here(
        self, candidate: plan.Candidate, own: Made, base: Made, source: Made, give_up_ms: float
    ) -> Measurement:
        is_baseline = own.key == base.key
        fp32 = plan.Candidate(candidate.profile, candidate.target, plan.baseline(candidate), 0)
        reference = None if is_baseline else self._here(fp32, base, base, base, 0.0).outputs
        golden = None if own.key == source.key else self._here(fp32, source, source, source, 0.0).outputs
        seen = self._measured(candidate, own, base, golden, give_up_ms)
        return Measurement(
            measured=seen.measured,
            golden_files=seen.golden_files,
            files=own.files,
            outputs=seen.outputs,
            baseline_outputs=seen.outputs if reference is None else reference,
            is_baseline=is_baseline,
            stand_in=plan.stand_in(candidate.recipe.engine),
        )

    def _measured(
        self,
        candidate: plan.Candidate,
        own: Made,
        base: Made,
        reference: Outputs | None,
        give_up_ms: float,
    ) -> _Seen:
        """From this build's memory, from the cache, or fresh."""
        classes = None
        if reference is not None and self.context.metric.classifies:
            classes = _golden.classes(next(iter(reference.values())))
        question = {
            "candidate": own.key,
            "baseline": base.key,
            "evaluation": self.context.evaluation.sha256,
            "preprocessing": self.context.preprocessing,
            "verify": candidate.profile.verify,
            "runtime_options": candidate.recipe.runtime_options,
            "reference": "" if classes is None else hashlib.sha256(classes.tobytes()).hexdigest(),
            "classify": self.context.metric.classifies,
            "engine": plan.stand_in(candidate.recipe.engine),
            "cores": self._cores(candidate),
            "host": [self.context.host.cpu, self.context.host.isa],
        }
        key = key_of("measure", question)
        if key not in self._known:
            files = self.remembered(key) or self._fresh(key, candidate, own, base, classes, give_up_ms)
            self._known[key] = self._seen(files)
        return self._known[key]

    def _cores(self, candidate: plan.Candidate) -> int:
        """Threads that are worth trying for serving; 0: another engine serves than is measured."""
        if plan.stand_in(candidate.recipe.engine):
            return 0
        return max(1, min(candidate.profile.hardware.cores, self.context.host.cores))

    def _seen(self, files: Mapping[str, bytes]) -> _Seen:
        measured = codec.from_json(Measured, files["measured.json"], what="measurement")
        outputs = unpack_outputs(measured.outputs, files)
        if self.context.decode:
            outputs = userfunc.decode(self.context.decode, outputs)
        own = ("answers/", "measured.json")
        return _Seen(measured, {n: d for n, d in files.items() if not n.startswith(own)}, outputs)

    def remembered(self, key: str) -> dict[str, bytes] | None:
        """An answer of another build; counted."""
        files = self.cache.get(key)
        if files is not None:
            with self._lock:
                self.hits += 1
        return files

    def answers(
        self, candidate: plan.Candidate, own: Made, base: Made, inputs: Outputs
    ) -> tuple[Outputs, Outputs]:
        """What candidate and baseline answer to other rows (n, ...), decoded.

        Raises EngineError, DataError."""
        engine = plan.stand_in(candidate.recipe.engine)
        recipe, files, options = _loaded(candidate, own, base)
        todo = Plan(candidate.profile.verify, classify=False, baseline_options=options, engine=engine)
        arrays = {f"input/{name}": array for name, array in inputs.items()}
        job = worker.Job("answer", recipe, measure=todo, files=files, arrays=arrays)
        result, made = worker.run(job)
        found = []
        for who in ("candidate/", "baseline/"):
            answers = {name.removeprefix(who): data for name, data in made.items() if name.startswith(who)}
            outputs = unpack_outputs(tuple(result["outputs"]), answers)
            found.append(userfunc.decode(self.context.decode, outputs) if self.context.decode else outputs)
        return found[0], found[1]

    def _fresh(
        self,
        key: str,
        candidate: plan.Candidate,
        own: Made,
        base: Made,
        reference: NDArray[Any] | None,
        give_up_ms: float,
    ) -> dict[str, bytes]:
        arrays = {f"input/{name}": array for name, array in self.context.evaluation.inputs.items()}
        if reference is not None:
            arrays["reference"] = reference.astype(np.int64)
        recipe, files, baseline_options = _loaded(candidate, own, base)
        todo = Plan(
            candidate.profile.verify,
            classify=self.context.metric.classifies,
            baseline_options=baseline_options,
            engine=plan.stand_in(recipe.engine),
            cores=self._cores(candidate),
            joins=_pace.joinable(self.context.model.inputs, self.context.model.outputs),
            give_up_ms=give_up_ms,
        )
        job = worker.Job("measure", recipe, measure=todo, files=files, arrays=arrays)
        with self.progress.step(f"measure {recipe.name}"):
            result, made = worker.run(job)
        files = {**made, "measured.json": codec.to_json(result["measured"])}
        self.cache.put(key, files)
        return files


def _loaded(
    candidate: plan.Candidate, own: Made, base: Made
) -> tuple[Recipe, dict[str, bytes], plan.Options]:
    """What the worker loads: recipe, files, the baseline's options; the stand-in's where there is one."""
    recipe, fp32 = candidate.recipe, plan.baseline(candidate)
    mine, options = plan.measured(recipe.engine, own.files, recipe.runtime_options)
    theirs, baseline_options = plan.measured(fp32.engine, base.files, fp32.runtime_options)
    files = {f"candidate/{name}": data for name, data in mine.items()}
    files |= {f"baseline/{name}": data for name, data in theirs.items()}
    return dataclasses.replace(recipe, runtime_options=options), files, baseline_options
