"""Do two models give the same answers? Asked through ONNX Runtime.

Its CPU-specific rewriting is off: whether a graph is right must not depend on the machine that builds.
What an engine makes of the graph is for the gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from edgekit import runtimes
from edgekit.build.sources._base import Arrays, Converted
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, ModelError
from edgekit.runtimes import Session
from edgekit.runtimes._base import DTYPES

TOLERANCE = 1e-4
"""Floating point outputs may differ by this share of the output's largest magnitude ..."""
FLOOR = 1e-6
"""... and always by this much."""
STEPS = 1
"""8-bit outputs may differ by this many steps: rounding is the engine's.

A quantised source may differ further where its framework differs from itself: TFLite's two sets of kernels
answered up to 22 of 256 steps apart on the keyword spotter, where its ONNX form was 6 steps off at most.
"""
_MAX_ELEMENTS = 1 << 28


def load(onnx: bytes) -> Session:
    """Raises EngineError with ONNX Runtime's words."""
    try:
        return runtimes.get("onnxruntime").load({"model.onnx": onnx}, {"graph": "basic"})
    except UnicodeDecodeError:
        raise EngineError("a name in the graph is not text (UTF-8)") from None


def answers(onnx: bytes, probes: Sequence[Arrays]) -> list[Arrays]:
    """Outputs per probe. Raises EngineError with ONNX Runtime's words."""
    session = load(onnx)
    try:
        return [session.run(inputs) for inputs in probes]
    finally:
        session.close()


def difference(
    have: Sequence[Arrays], want: Sequence[Arrays], slack: Mapping[str, float] | None = None
) -> str:
    """Where and by how much the answers differ beyond the tolerance; empty when they agree."""
    for mine, theirs in zip(have, want, strict=True):
        for name, reference in theirs.items():
            if name not in mine or mine[name].shape != reference.shape:
                shape = list(mine[name].shape) if name in mine else "missing"
                return f"output {name!r} has shape {shape} instead of {list(reference.shape)}"
            if said := _apart(mine[name], reference, (slack or {}).get(name, 0.0)):
                return f"output {name!r} {said}"
    return ""


def _apart(mine: NDArray[np.generic], reference: NDArray[np.generic], slack: float) -> str:
    if reference.dtype.kind not in "fiub":
        return "" if np.array_equal(mine, reference) else "differs"
    a, b = mine.astype(np.float64), reference.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(np.isfinite(a), finite) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return "is not finite in the same places"
    if not finite.any():
        return ""
    worst = float(np.abs(a[finite] - b[finite]).max())
    largest = float(np.abs(b[finite]).max())
    if reference.dtype.kind == "f":
        allowed = TOLERANCE * largest + FLOOR
    else:
        allowed = float(STEPS) if reference.dtype.itemsize == 1 and reference.dtype.kind != "b" else 0.0
    allowed = max(allowed, slack)
    return f"differs by {worst:.3g} of {largest:.3g}, allowed are {allowed:.3g}" if worst > allowed else ""


def questions(inputs: Sequence[TensorSpec], rows: int = 1) -> list[Arrays]:
    """Two sets of plausible inputs: standard normal, bytes of the whole range, indices 0 and 1."""
    for spec in inputs:
        if prod(max(size, 1) for size in spec.shape) > _MAX_ELEMENTS:
            raise ModelError(f"input {spec.name!r} of shape {list(spec.shape)} is too large for this machine")
    generator = np.random.default_rng(20260101)
    return [{spec.name: _sample(generator, spec, rows) for spec in inputs} for _ in range(2)]


def _sample(generator: np.random.Generator, spec: TensorSpec, rows: int) -> NDArray[np.generic]:
    dtype = DTYPES[spec.datatype]
    shape = [rows if size < 0 else size for size in spec.shape]
    if dtype.kind == "f":
        return generator.standard_normal(shape).astype(dtype)
    if dtype.itemsize == 1 and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return generator.integers(limits.min, int(limits.max) + 1, shape).astype(dtype)
    return generator.integers(0, 2, shape).astype(dtype)


def check_source(onnx: bytes, converted: Converted, title: str) -> None:
    """Raise ModelError unless the model answers as the source framework did."""
    try:
        have = answers(onnx, [probe.inputs for probe in converted.probes])
    except EngineError as exc:
        raise ModelError(f"the ONNX form does not run: {exc.message}", "export it to ONNX yourself") from None
    if said := difference(have, [probe.outputs for probe in converted.probes], converted.slack):
        raise ModelError(
            f"the ONNX form does not answer as {title} does: {said}",
            "the converter misread a layer; export it to ONNX another way",
        )
