"""What TensorFlow Serving's protocols say, over REST and gRPC alike: documents and answers as plain values.

Source: github.com/tensorflow/serving, g3doc/api_rest.md and apis/*.proto.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.bundle.model import TensorSpec, VariantConfig
from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array

SIGNATURE = "serving_default"
METHODS = ("tensorflow/serving/predict", "tensorflow/serving/classify", "tensorflow/serving/regress")
LABEL = "stable"
"""The version label of the release that is served; there are no others."""
DTYPES = {
    "BOOL": "DT_BOOL", "UINT8": "DT_UINT8", "UINT16": "DT_UINT16", "UINT32": "DT_UINT32",
    "UINT64": "DT_UINT64", "INT8": "DT_INT8", "INT16": "DT_INT16", "INT32": "DT_INT32", "INT64": "DT_INT64",
    "FP16": "DT_HALF", "FP32": "DT_FLOAT", "FP64": "DT_DOUBLE", "BYTES": "DT_STRING",
}  # fmt: skip
"""Open Inference Protocol data types to TensorFlow's names (tensorflow/core/framework/types.proto)."""
_NUMBERS = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,6}))?(?:\.([0-9]{1,6}))?")


def number(version: str) -> int:
    """A release's version as the integer that TensorFlow's protocols want.

    "7" is 7, "1.2.3" is 1002003; what begins with no number is 1.
    """
    if version.isascii() and version.isdigit() and len(version) <= 18:
        return int(version)
    found = _NUMBERS.match(version)
    if found is None:
        return 1
    major, minor, patch = (int(part or 0) for part in found.groups())
    return (major * 1000 + minor) * 1000 + patch


def wanted(asked: str, served: str) -> str:
    """The version to ask the core for: "" (whichever is served) when `asked` means `served`.

    `asked`: a number as by `number`, "0" (any, as OpenVINO says it), the release's own version, or "" (any).
    """
    same = asked.isascii() and asked.isdigit() and len(asked) <= 18 and int(asked) in (0, number(served))
    return "" if same or asked == served else asked


def not_found(name: str, asked: str) -> str:
    """The text that TensorFlow Serving has for an unknown model; clients compare it."""
    which = f"Specific({name}, {asked})" if asked else f"Latest({name})"
    return f"Servable not found for request: {which}"


def check_signature(name: str) -> None:
    """Raise InputError unless the signature exists: the default one, by its own or a method's name."""
    if name not in ("", SIGNATURE, *METHODS):
        raise InputError(f'Serving signature name: "{name[:80]}" not found in signature def')


def status(version: str) -> dict[str, Any]:
    """GetModelStatusResponse of a model that is served."""
    entry = {
        "version": str(number(version)),
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    return {"model_version_status": [entry]}


def metadata(name: str, version: str, config: VariantConfig) -> dict[str, Any]:
    """GetModelMetadataResponse: one signature, with the engine's data types."""
    signature = {
        "inputs": {spec.name: _info(spec) for spec in config.inputs},
        "outputs": {spec.name: _info(spec) for spec in config.outputs},
        "method_name": METHODS[0],
        "defaults": {},
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": str(number(version))},
        "metadata": {"signature_def": {"signature_def": {SIGNATURE: signature}}},
    }


def classify(config: VariantConfig, outputs: Mapping[str, Array]) -> list[list[tuple[str, float]]]:
    """Of each sample every class with its score, in the model's order. Raises InputError.

    Scores are the first output, (batch, classes); a class without a label has "".
    """
    spec = config.outputs[0]
    scores = _scores(spec, outputs)
    if scores.shape[1] < 1:
        raise EngineError(f"output {spec.name!r} holds no scores")
    labels = config.labels if len(config.labels) == scores.shape[1] else ("",) * scores.shape[1]
    return [list(zip(labels, row, strict=True)) for row in scores.tolist()]


def regress(config: VariantConfig, outputs: Mapping[str, Array]) -> list[float]:
    """One value for each sample: the first output, (batch,) or (batch, 1). Raises InputError."""
    scores = _scores(config.outputs[0], outputs)
    if scores.shape[1] != 1:
        raise InputError(f"the model gives {scores.shape[1]} values for a sample, regression wants one")
    values: list[float] = scores[:, 0].tolist()
    return values


def check_scores(config: VariantConfig) -> None:
    """Raise InputError when the model's first output cannot be scores of samples; before it is run."""
    spec = config.outputs[0]
    if spec.shape[:1] != (-1,) or spec.datatype in ("BOOL", "BYTES"):
        raise InputError(f"output {spec.name!r} of the model is no scores; use predict")


def _scores(spec: TensorSpec, outputs: Mapping[str, Array]) -> Array:
    values = outputs[spec.name]
    if values.ndim == 0:
        raise EngineError(f"output {spec.name!r} has no batch")
    return values.reshape(len(values), -1).astype(np.float64 if values.dtype.itemsize > 4 else np.float32)


def _info(spec: TensorSpec) -> dict[str, Any]:
    dims = [{"size": str(size), "name": ""} for size in spec.shape]
    shape = {"dim": dims, "unknown_rank": False}
    return {"dtype": DTYPES[spec.datatype], "tensor_shape": shape, "name": f"{spec.name}:0"}
