"""LiteRT (TensorFlow Lite): fp32 through onnx2tf, everything else through ai-edge-quantizer.

Weights are symmetric with one scale per output channel, activations have a zero point, as LiteRT's
specification of 8-bit quantization says; ranges are the calibration's smallest and largest values.

One of a target's options is for the builder and not for the engine on the device:
    implementation   str   "tflite-runtime" where the device has no ai-edge-litert (32-bit ARM): then only
                           what the older engine is known to compute rightly is built
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from edgekit import codec, toolenv
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value
from edgekit.backends._graph import facts, kept
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes._base import DTYPE_NAMES

_NAME = "litert"
_ENV = "litert"
_TOOLS = ("onnx2tf", "ai-edge-quantizer", "ai-edge-litert", "onnxslim", "onnx")
_TIMEOUT_S = 870.0  # a build job has 900
_CALIBRATED = ("int8", "int16x8")
_PRECISIONS = ("fp32", "fp16", "int8-dynamic", "int8-weights", "int4-weights", *_CALIBRATED)
_NEW, _OLD = "ai-edge-litert", "tflite-runtime"
_OLD_KNOWS = ("fp32", "int8", "int8-weights")
"""tflite-runtime 2.14 answers nonsense for int8-dynamic and dies of 4-bit weights, both without an error."""


class Engine:
    """onnx2tf and ai-edge-quantizer, in the tool environment "litert"."""

    runtime = _NAME
    isolated = True

    def tools(self) -> dict[str, str]:
        return toolenv.versions(_ENV, _TOOLS)

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        del policy  # the quantizer knows minimum and maximum only
        old = target.options.get("implementation") == _OLD
        if precision in (_OLD_KNOWS if old else _PRECISIONS):
            runtime_options = {k: v for k, v in target.options.items() if k != "implementation"}
            for options in _options(precision):
                yield Recipe(
                    _NAME, precision, options, runtime_options, needs_calibration=precision in _CALIBRATED
                )

    def worth(self, model: SourceModel, recipe: Recipe) -> str:
        found, products = facts(model), recipe.options.get("only") == "products"
        if recipe.precision == "int8-dynamic" and found.depthwise:
            return "convolutions in groups have no fast dynamic int8 kernel (0.3 x fp32)"
        if products and not found.mostly_products:
            return "most weights are convolutions, which would stay in floating point"
        if recipe.precision == "int8" and found.attention and not products:
            return "the graph has attention, and a recipe for it comes next"
        return ""

    def layers(self, model: SourceModel) -> list[str]:
        return list(facts(model).layers)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        """Raises EngineError for a model that cannot be converted, or not run once it is."""
        try:
            job: dict[str, Any] = {
                "inputs": [{"shape": _one_row(item)} for item in model.inputs],
                "precision": recipe.precision,
                "only": recipe.options.get("only", ""),
                "keep": kept(recipe.options),
            }
            files = {"model.onnx": model.onnx}
            if recipe.needs_calibration:
                files["calibration.npz"] = _rows(model, calibration)
            result, made = toolenv.run(_ENV, "litert_build", job, files, timeout_s=_TIMEOUT_S)
            about = _description(model, recipe, result, made["model.tflite"])
        except EngineError as exc:
            raise type(exc)(f"{recipe.name}: {exc.message}", exc.hint) from None
        return {"model.tflite": made["model.tflite"], "io.json": codec.to_json(about)}


def _options(precision: str) -> Iterator[dict[str, Value]]:
    """For the quantizer, best guess first."""
    yield {}
    if precision == "int8":
        # What is left of a transformer when softmax, normalisation and sums stay in floating point.
        yield {"only": "products"}


def _one_row(item: TensorSpec) -> list[int]:
    if -1 in item.shape[1:]:
        raise EngineError(
            f"input {item.name!r} has an open dimension besides the batch: {list(item.shape)}",
            "export it with a fixed size",
        )
    return [1 if size == -1 else size for size in item.shape]


def _rows(model: SourceModel, calibration: Calibration) -> bytes:
    """An .npz with "I/J": input I of row J, in the model's order."""
    arrays = {}
    for place, item in enumerate(model.inputs):
        for row, value in enumerate(calibration[item.name]):
            arrays[f"{place}/{row}"] = value[None]
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)
        return buffer.getvalue()


def _description(model: SourceModel, recipe: Recipe, result: dict[str, Any], file: bytes) -> dict[str, Any]:
    """io.json; see `edgekit.runtimes.litert`."""
    batched = any(item.shape[:1] == (-1,) for item in model.inputs)
    both = zip(model.inputs, result["inputs"], strict=True)
    inputs = [{**codec.to_plain(item), **told} for item, told in both]
    outputs = []
    for item, told in zip(model.outputs, result["outputs"], strict=True):
        shape = told["shape"]
        if batched and shape[:1] != [1]:
            raise EngineError(f"output {item.name!r} has no batch dimension: {shape}")
        datatype = DTYPE_NAMES[np.dtype(told["datatype"])]
        shape = [-1, *shape[1:]] if batched else shape
        outputs.append({**told, "name": item.name, "datatype": datatype, "shape": shape})
    return {
        "format": f"edgekit-{_NAME}",
        "version": 1,
        "implementations": [_NEW, _OLD] if recipe.precision in _OLD_KNOWS else [_NEW],
        "inputs": inputs,
        "outputs": outputs,
        "sha256": hashlib.sha256(file).hexdigest(),
    }


BACKEND: Backend = Engine()
