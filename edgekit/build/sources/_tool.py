"""A foreign format through its tool environment: ONNX, and the source framework's own answers to compare."""

from __future__ import annotations

import io
from contextlib import nullcontext
from typing import Any

import numpy as np

from edgekit import toolenv
from edgekit.build.sources._base import Converted, Format, Look, Probe, SourceOptions
from edgekit.errors import EngineError, EngineMissing, ModelError

MEMORY_MIB = 8192
_TIMES_SIZE = 8
"""Converters hold several copies of the weights: a large model gets this many times its size."""
TIMEOUT_S = 900.0


def convert(look: Look, form: Format, options: SourceOptions, progress: toolenv.Steps | None) -> Converted:
    """Run the converter. Raises ModelError with the library's words, EngineMissing when it is not there."""
    name = "model" + "".join(look.path.suffixes[-1:])  # Keras and XGBoost choose their reader by suffix
    name = {"keras": "model.keras", "keras-h5": "model.h5"}.get(form.name, name)
    if form.name == "xgboost":
        name = "model.ubj" if look.head.startswith(b"{L") else "model.json"
    job: dict[str, Any] = {
        "format": form.name,
        "name": name,
        "shapes": {key: list(shape) for key, shape in options.shapes.items()},
        "trust": options.trust,
    }
    memory = max(MEMORY_MIB, _TIMES_SIZE * look.size >> 20)
    try:
        toolenv.ensure(form.env, progress)
        with progress.step(f"convert {form.title} to ONNX") if progress else nullcontext():
            result, out = toolenv.run(
                form.env,
                form.script,
                job,
                {name: look.path.resolve()},
                memory_mib=memory,
                timeout_s=TIMEOUT_S,
            )
        return _converted(result, out)
    except EngineMissing:
        raise
    except EngineError as exc:
        hint = (
            exc.hint or "if the file is whole, its converter does not know a part: export it to ONNX yourself"
        )
        raise ModelError(f"{look.path}: {exc.message}", hint) from None


def _converted(result: dict[str, Any], out: dict[str, bytes]) -> Converted:
    with np.load(io.BytesIO(out["probes.npz"]), allow_pickle=False) as file:
        probes = tuple(
            Probe(
                {name: file[f"{number}/i{place}"] for place, name in enumerate(result["inputs"])},
                {name: file[f"{number}/o{place}"] for place, name in enumerate(result["outputs"])},
            )
            for number in range(result["probes"])
        )
    slack = dict(zip(result["outputs"], result["slack"], strict=False))
    return Converted(out["model.onnx"], probes, bool(result["batch"]), slack)
