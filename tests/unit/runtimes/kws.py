"""The keyword spotter of examples/kws: a real model with 1000 real labelled inputs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from edgekit import runtimes
from edgekit.bundle.model import Affine, Preprocessing, TensorSpec
from edgekit.runtimes import Array

_FOLDER = Path(__file__).parents[3] / "examples" / "kws"
INPUT, OUTPUT = "serving_default_input_1:0", "StatefulPartitionedCall:0"
SPEC = TensorSpec(INPUT, "FP32", (-1, 49, 10, 1))
SCALE = Preprocessing((Affine(INPUT, "INT8", scale=0.5847029089927673, offset=83.0),))


@cache
def data() -> tuple[Array, Array]:
    """Stored inputs (1000, 49, 10, 1) int8 and labels (1000,) int64."""
    with np.load(_FOLDER / "kws01_eval.npz") as archive:
        return archive["x"], archive["y"]


@cache
def model() -> bytes:
    return (_FOLDER / "kws_fp32.onnx").read_bytes()


def session(engine: str, **options: str | int | float | bool) -> runtimes.Session:
    return runtimes.get(engine).load({"model.onnx": model()}, options)
