"""Golden samples: a few inputs with the answers that were certified, to be repeated on the device.

They catch what no signature can: the same bytes giving other answers on another CPU or engine version.
Samples run one by one, because a model may have a fixed batch of 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.bundle.model import GoldenSpec, TensorSpec
from edgekit.errors import DataError, EngineError, FormatError, GoldenError
from edgekit.runtimes._base import DTYPES, Array, Files, Session
from edgekit.runtimes._ports import dtype_name

if TYPE_CHECKING:  # a device has no use for profiles here
    from edgekit.profile import Verify

_REFERENCE = "reference"


@dataclass(frozen=True)
class GoldenReport:
    """What the check found; it raises when a figure is out of tolerance."""

    samples: int
    max_abs_difference: float
    """Between certified and observed outputs, over all samples and outputs; infinite for NaN."""
    reference_agreement: float
    """Share of samples whose class is the source model's; 1.0 when the spec does not ask."""
    run_ms: float = 0.0
    """Median time of one sample, the first left out where there are more."""


def check(session: Session, spec: GoldenSpec, files: Files) -> GoldenReport:
    """Run the golden samples. Raises GoldenError with the figures, FormatError for files that do not fit."""
    if spec.samples < 1 or any(item.shape[:1] != (spec.samples,) for item in (*spec.inputs, *spec.outputs)):
        raise FormatError("golden samples: every tensor needs one row per sample")
    inputs = {item.name: _read(files, f"inputs/{item.name}", item) for item in spec.inputs}
    certified = {item.name: _read(files, f"outputs/{item.name}", item) for item in spec.outputs}
    times: list[float] = []
    observed = _run_each(session, inputs, spec.samples, times)
    differences = [_difference(name, array, observed) for name, array in certified.items()]
    largest = max(differences, default=0.0)
    agreement = 1.0
    if spec.min_reference_agreement > 0:
        shape = TensorSpec(_REFERENCE, "INT64", (spec.samples,))
        reference = _read(files, _REFERENCE, shape)
        agreement = float(np.mean(classes(observed[spec.outputs[0].name]) == reference))
    if not largest <= spec.max_abs_difference:
        raise GoldenError(
            f"golden check: answers differ from the certified ones by up to {largest:.4g},"
            f" {spec.max_abs_difference:.4g} allowed, over {spec.samples} samples",
            "this CPU or engine version computes this variant differently; use another variant",
        )
    if agreement < spec.min_reference_agreement:
        raise GoldenError(
            f"golden check: {agreement:.0%} of {spec.samples} answers agree with the source model,"
            f" {spec.min_reference_agreement:.0%} wanted",
            "the variant itself is bad: calibrate with representative data and build again",
        )
    run_ms = round(float(np.median(times[1:] or times)), 5)
    return GoldenReport(spec.samples, largest, agreement, run_ms)


def make(
    session: Session, inputs: Mapping[str, Array], reference: Array | None, verify: Verify
) -> tuple[GoldenSpec, dict[str, bytes]]:
    """Golden samples of a loaded variant, from engine inputs (n, ...) and the source model's classes (n,).

    The choice is deterministic and spreads over the classes of `reference`; without a reference, over
    the rows. Raises DataError when there are no rows, EngineError when the session fails.
    """
    rows = {array.shape[0] if array.ndim else 0 for array in inputs.values()}
    rows |= {len(reference)} if reference is not None else set()
    if len(rows) != 1 or 0 in rows:
        raise DataError(f"golden samples: found {sorted(rows)} rows, need one number above 0 for all")
    index = choose(reference if reference is not None else np.zeros(rows.pop()), verify.golden_samples)
    chosen = {name: np.ascontiguousarray(array[index]) for name, array in inputs.items()}
    outputs = _run_each(session, chosen, len(index), [])
    files = {f"inputs/{name}": _bytes(array) for name, array in chosen.items()}
    files |= {f"outputs/{name}": _bytes(array) for name, array in outputs.items()}
    if reference is not None:
        files[_REFERENCE] = _bytes(np.asarray(reference)[index].astype(np.int64))
    spec = GoldenSpec(
        samples=len(index),
        inputs=tuple(_spec(name, array) for name, array in chosen.items()),
        outputs=tuple(_spec(name, array) for name, array in outputs.items()),
        max_abs_difference=verify.max_abs_difference,
        min_reference_agreement=verify.min_reference_agreement if reference is not None else 0.0,
    )
    return spec, files


def choose(classes: Array, samples: int) -> list[int]:
    """Up to `samples` row numbers, ascending: as equal a share of every class as there is, spread in it."""
    members = [np.flatnonzero(classes == value) for value in np.unique(classes)]
    quota = [0] * len(members)
    wanted = min(samples, len(classes))
    while sum(quota) < wanted:
        for i, rows in enumerate(members):
            if quota[i] < len(rows) and sum(quota) < wanted:
                quota[i] += 1
    picks = [rows[np.arange(n) * len(rows) // n] for rows, n in zip(members, quota, strict=True) if n]
    return sorted(int(row) for row in np.concatenate(picks)) if picks else []


def classes(output: Array) -> Array:
    """The class of each sample: (samples, ...) scores to (samples,) positions of the largest."""
    scores: Array = output.reshape(len(output), -1)
    return np.asarray(np.argmax(scores, axis=1))


def _run_each(
    session: Session, inputs: Mapping[str, Array], samples: int, times_ms: list[float]
) -> dict[str, Array]:
    """One run per sample; how long each took is added to `times_ms`."""
    runs = []
    for i in range(samples):
        begin = time.perf_counter()
        runs.append(session.run({name: array[i : i + 1] for name, array in inputs.items()}))
        times_ms.append((time.perf_counter() - begin) * 1e3)
    for name in runs[0]:
        if any(run[name].shape != (1, *runs[0][name].shape[1:]) for run in runs):
            raise EngineError(f"golden samples: output {name!r} is not one row per sample")
    return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}


def _difference(name: str, certified: Array, observed: Mapping[str, Array]) -> float:
    if name not in observed or observed[name].shape != certified.shape:
        found = observed[name].shape if name in observed else "nothing"
        raise GoldenError(f"golden check: output {name!r} should be {certified.shape}, is {found}")
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, which counts as infinitely far below
        gap = np.abs(observed[name].astype(np.float64) - certified.astype(np.float64))
    # Not nan_to_num: its look at the type's limits warns where tflite-runtime has switched subnormals off.
    return float(np.max(np.where(np.isnan(gap), np.inf, gap), initial=0.0))


def _read(files: Files, name: str, spec: TensorSpec) -> Array:
    if name not in files:
        raise FormatError(f"golden samples: {name!r} is missing")
    dtype = DTYPES.get(spec.datatype)
    size = math.prod(spec.shape)
    if dtype is None or min(spec.shape) < 0 or len(files[name]) != size * dtype.itemsize:
        found = f"{len(files[name])} bytes"
        raise FormatError(f"golden samples: {name!r} has {found}, not {spec.datatype} of shape {spec.shape}")
    return np.frombuffer(files[name], dtype).reshape(spec.shape)


def _spec(name: str, array: Array) -> TensorSpec:
    return TensorSpec(name, dtype_name(array.dtype), tuple(array.shape))


def _bytes(array: Array) -> bytes:
    return array.astype(array.dtype.newbyteorder("<")).tobytes()
