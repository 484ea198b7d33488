"""Takes the place of this host's answers for profiles that this host is not; timings stay the host's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit import codec
from edgekit.backends import Recipe
from edgekit.build import plan, userfunc
from edgekit.build.cache import Cache, key_of
from edgekit.build.certify import Context
from edgekit.build.emulate._machine import Job, Machine, machine, needed
from edgekit.build.measurement import Measurement
from edgekit.build.plan import Candidate, Family
from edgekit.build.progress import Progress
from edgekit.bundle.model import GoldenSpec
from edgekit.runtimes import _golden
from edgekit.runtimes._answers import unpack_outputs

Outputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Told:
    """What one candidate said on the emulated CPU."""

    engine_version: str
    golden: GoldenSpec
    coverage: dict[str, int]
    golden_files: Mapping[str, bytes]
    outputs: Outputs
    """(rows, ...), decoded where the request names a decoder."""


@dataclass
class Emulation:
    """`rows`: at most so many evaluation rows go through the emulated CPU, spread over all of them."""

    context: Context
    cache: Cache
    progress: Progress
    rows: int
    notes: list[str] = field(default_factory=list)
    _machines: dict[tuple[str, str], Machine | None] = field(default_factory=dict)

    def prepare(self, families: Sequence[Family]) -> None:
        """Make every system that the families need, before anything is built. Raises SystemFault."""
        for family in families:
            if found := self.machine(family.first):
                found.prepare(self.progress)

    def machine(self, candidate: Candidate) -> Machine | None:
        """The emulated device for a candidate; None when this host will do, or has to (a note says why)."""
        profile, target = candidate.profile, candidate.target
        key = profile.name, codec.to_json(target).decode()
        if key not in self._machines:
            found: Machine | str | None = None
            if needed(profile, self.context.host):
                found = machine(profile, target, self.context.host)
                if plan.stand_in(target.runtime):
                    found = f"{target.runtime} runs on another engine here"
            if isinstance(found, str):
                self.notes.append(f"{profile.name}: {target.runtime} not emulated: {found}")
            self._machines[key] = None if isinstance(found, str) else found
        return self._machines[key]

    def retake(
        self,
        candidate: Candidate,
        own: tuple[str, Mapping[str, bytes]],
        base: tuple[str, Mapping[str, bytes]],
        source: tuple[str, Mapping[str, bytes]],
        here: Measurement,
    ) -> Measurement:
        """The same measurement with the device's answers. `own`, `base`, `source`: build key and files of the
        candidate, of the baseline, and of the source model's fp32, whose classes golden samples carry.

        Raises EngineError when the engine fails there.
        """
        device = self.machine(candidate)
        if device is None:
            return here
        chosen = self._chosen()
        baseline = self._told(device, candidate, plan.baseline(candidate), base, chosen, None)
        told = baseline
        if not here.is_baseline:
            classes = None
            if self.context.metric.classifies and own[0] != source[0]:
                fp32 = self._told(device, candidate, plan.baseline(candidate), source, chosen, None)
                classes = _golden.classes(next(iter(fp32.outputs.values())))
            told = self._told(device, candidate, candidate.recipe, own, chosen, classes)
        measured = dataclasses.replace(
            here.measured,
            engine_version=told.engine_version,
            golden=told.golden,
            coverage=told.coverage,
        )
        gaps = (
            _gap(told.outputs, here.outputs, chosen),
            _gap(baseline.outputs, here.baseline_outputs, chosen),
        )
        # What agrees on the chosen rows agrees on the others: then all rows judge, by this host's answers.
        alike = max(gaps) <= candidate.profile.verify.max_abs_difference
        return dataclasses.replace(
            here,
            measured=measured,
            golden_files=told.golden_files,
            outputs=_joined(here.outputs, told.outputs, chosen) if alike else told.outputs,
            baseline_outputs=(
                _joined(here.baseline_outputs, baseline.outputs, chosen) if alike else baseline.outputs
            ),
            emulated=device.name,
            emulated_rows=len(chosen),
            rows=() if alike else tuple(chosen),
            host_gap=min(max(gaps), sys.float_info.max),  # JSON knows no infinity
        )

    def _chosen(self) -> list[int]:
        """Row numbers, ascending; whole samples where a sample is a pair of rows."""
        evaluation = self.context.evaluation
        each = 1 if evaluation.truth is None else max(evaluation.rows // len(evaluation.truth), 1)
        samples = evaluation.rows // each
        count = min(max(self.rows // each, 1), samples)
        first = np.arange(count) * samples // count * each
        return [int(row) + i for row in first for i in range(each)]

    def _told(
        self,
        device: Machine,
        candidate: Candidate,
        recipe: Recipe,
        built: tuple[str, Mapping[str, bytes]],
        chosen: Sequence[int],
        reference: NDArray[Any] | None,
    ) -> _Told:
        """From the cache, or fresh."""
        build_key, files = built
        question = {
            "candidate": build_key,
            "evaluation": self.context.evaluation.sha256,
            "preprocessing": self.context.preprocessing,
            "rows": list(chosen),
            "verify": candidate.profile.verify,
            "runtime_options": recipe.runtime_options,
            "reference": "" if reference is None else hashlib.sha256(reference.tobytes()).hexdigest(),
            "classify": self.context.metric.classifies,
            "hardware": candidate.profile.hardware,
            "machine": device.identity(),
            # The host's own engine runs where there is no system of another architecture.
            "engine": "" if device.lock else self._engine(recipe.engine),
        }
        key = key_of("emulate", question)
        found = self.cache.get(key)
        if found is None:
            inputs = {name: array[list(chosen)] for name, array in self.context.evaluation.inputs.items()}
            verify, classify = candidate.profile.verify, self.context.metric.classifies
            result, made = device.run(Job(recipe, verify, classify, files, inputs, reference), self.progress)
            found = {**made, "told.json": json.dumps(result).encode()}
            self.cache.put(key, found)
        return self._read(found)

    def _engine(self, name: str) -> str:
        from edgekit import runtimes

        return runtimes.get(name).version()

    def _read(self, files: Mapping[str, bytes]) -> _Told:
        told = json.loads(files["told.json"])
        outputs: Outputs = unpack_outputs(told["outputs"], files)
        if self.context.decode:
            outputs = userfunc.decode(self.context.decode, outputs)
        return _Told(
            engine_version=told["engine_version"],
            golden=codec.from_plain(GoldenSpec, told["golden"], what="golden"),
            coverage=told["coverage"],
            golden_files={
                n: d for n, d in files.items() if n != "told.json" and not n.startswith("answers/")
            },
            outputs=outputs,
        )


def _gap(there: Outputs, here: Outputs, chosen: Sequence[int]) -> float:
    """Largest difference on the chosen rows; infinite where only one is a number, or texts differ."""
    found = 0.0
    for name, array in there.items():
        other = here[name][list(chosen)]
        if array.dtype.kind not in "fiu" or other.shape != array.shape:
            found = max(found, 0.0 if np.array_equal(array, other) else np.inf)
        elif array.size:
            with np.errstate(invalid="ignore"):  # inf - inf is NaN
                difference = np.abs(array.astype(np.float64) - other.astype(np.float64))
            unequal = np.where(array == other, 0.0, np.nan_to_num(difference, nan=np.inf))
            found = max(found, float(unequal.max()))
    return found


def _joined(here: Outputs, there: Outputs, chosen: Sequence[int]) -> Outputs:
    """This host's answers to all rows, the chosen ones replaced."""
    whole = {name: array.copy() for name, array in here.items()}
    for name, array in there.items():
        whole[name][list(chosen)] = array
    return whole
