"""Makes and measures candidates in worker processes, each only once: within a build and across builds."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgekit import backends, codec
from edgekit.backends import Recipe
from edgekit.build import plan, worker
from edgekit.build.cache import Cache, key_of
from edgekit.build.certify import Context
from edgekit.build.data import Data
from edgekit.build.measure import Measured, Plan
from edgekit.build.measurement import Measurement
from edgekit.build.progress import Progress
from edgekit.errors import EngineError, EngineMissing

MAX_MEASUREMENT = 256 * 1024 * 1024
"""Bytes; it holds the answer to every evaluation row, and it is our own."""


@dataclass(frozen=True)
class Made:
    """A candidate's files, or why there are none."""

    key: str
    files: Mapping[str, bytes]
    error: EngineError | None = None


@dataclass
class Workshop:
    context: Context
    calibration: Data
    cache: Cache
    progress: Progress
    hits: int = 0
    _known: dict[str, tuple[Measured, dict[str, bytes]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def make(self, recipe: Recipe) -> Made:
        """Build one candidate; a failure is remembered in the result. Called by several threads."""
        try:
            tools = backends.get(recipe.engine).tools()
        except EngineMissing as exc:
            return Made("", {}, exc)
        question = {
            "model": self.context.model.sha256,
            "recipe": dataclasses.replace(recipe, runtime_options={}),
            "calibration": self.calibration.sha256 if recipe.needs_calibration else "",
            "preprocessing": self.context.preprocessing if recipe.needs_calibration else "",
            "tools": tools,
        }
        key = key_of("build", question)
        if files := self._remembered(key):
            return Made(key, files)
        with self.progress.step(f"build {recipe.name}"):
            arrays = self.calibration.inputs if recipe.needs_calibration else {}
            job = worker.Job("build", recipe, model=self.context.model, arrays=arrays)
            try:
                _, files = worker.run(job)
            except EngineError as exc:
                return Made(key, {}, exc)
        self.cache.put(key, files)
        return Made(key, files)

    def measure(self, candidate: plan.Candidate, own: Made, base: Made) -> Measurement:
        """Figures of one candidate beside its baseline. Raises EngineError when there are none."""
        for made in (own, base):
            if made.error:
                raise made.error
        is_baseline = own.key == base.key
        reference = None
        if not is_baseline:
            fp32 = plan.Candidate(candidate.profile, candidate.target, plan.baseline(candidate), 0)
            reference = self.measure(fp32, base, base).measured.answers
        measured, golden = self._measured(candidate, own, base, reference)
        return Measurement(measured, golden, own.files, reference or measured.answers, is_baseline)

    def _measured(
        self, candidate: plan.Candidate, own: Made, base: Made, reference: tuple[int, ...] | None
    ) -> tuple[Measured, dict[str, bytes]]:
        """From this build's memory, from the cache, or fresh."""
        question = {
            "candidate": own.key,
            "baseline": base.key,
            "evaluation": self.context.evaluation.sha256,
            "preprocessing": self.context.preprocessing,
            "verify": candidate.profile.verify,
            "runtime_options": candidate.recipe.runtime_options,
            "reference": hashlib.sha256(codec.to_json(reference)).hexdigest(),
            "host": [self.context.host.cpu, self.context.host.isa],
        }
        key = key_of("measure", question)
        if key not in self._known:
            files = self._remembered(key) or self._fresh(key, candidate, own, base, reference)
            document = files.pop("measured.json")
            measured = codec.from_json(Measured, document, what="measurement", max_bytes=MAX_MEASUREMENT)
            self._known[key] = measured, files
        return self._known[key]

    def _remembered(self, key: str) -> dict[str, bytes] | None:
        files = self.cache.get(key)
        if files is not None:
            with self._lock:
                self.hits += 1
        return files

    def _fresh(
        self, key: str, candidate: plan.Candidate, own: Made, base: Made, reference: tuple[int, ...] | None
    ) -> dict[str, bytes]:
        arrays = {f"input/{name}": array for name, array in self.context.evaluation.inputs.items()}
        if reference is not None:
            arrays["reference"] = np.array(reference, np.int64)
        files = {f"candidate/{name}": data for name, data in own.files.items()}
        files |= {f"baseline/{name}": data for name, data in base.files.items()}
        options = plan.baseline(candidate).runtime_options
        todo = Plan(candidate.profile.verify, classify=True, baseline_options=options)
        job = worker.Job("measure", candidate.recipe, measure=todo, files=files, arrays=arrays)
        with self.progress.step(f"measure {candidate.recipe.name}"):
            result, golden = worker.run(job)
        files = {**golden, "measured.json": codec.to_json(result["measured"])}
        self.cache.put(key, files)
        return files
