"""One tiny model in every engine's own format: an entry here, or what the engine's own backend makes of ONNX.

Inputs a (batch, 3) and b (batch, 3), FP32; outputs total = a + b (batch, 3) and score = a @ W (batch, 2).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends
from edgekit.backends import SourceModel
from edgekit.bundle.model import TensorSpec
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import Array, reference

WEIGHT = np.array([[1.0, -2.0], [0.5, 4.0], [-3.0, 0.25]], np.float32)
INPUTS = ("a", "b")
OUTPUTS = ("total", "score")


def expected(a: Array, b: Array) -> dict[str, Array]:
    return {"total": a + b, "score": a @ WEIGHT}


def onnx_files(_: Path) -> dict[str, bytes]:
    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])

    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("MatMul", ["a", "w"], ["score"]),
    ]
    outputs = [value("total", 3), value("score", 2)]
    weights = [numpy_helper.from_array(WEIGHT, "w")]
    graph = helper.make_graph(nodes, "tiny", [value("a", 3), value("b", 3)], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return {"model.onnx": model.SerializeToString()}


def openvino_files(folder: Path) -> dict[str, bytes]:
    model = openvino.Core().read_model(onnx_files(folder)["model.onnx"])
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return {name: (folder / name).read_bytes() for name in ("model.xml", "model.bin")}


def reference_files(_: Path) -> dict[str, bytes]:
    return reference.pack(
        [reference.Tensor(name, "FP32", (-1, 3)) for name in INPUTS],
        OUTPUTS,
        {"w": WEIGHT},
        [reference.Node("add", ("a", "b"), "total"), reference.Node("matmul", ("a", "w"), "score")],
    )


MODELS: dict[str, Callable[[Path], dict[str, bytes]]] = {
    "onnxruntime": onnx_files,
    "openvino": openvino_files,
    "reference": reference_files,
}


def files_of(engine: str, folder: Path) -> dict[str, bytes]:
    """The tiny model for an engine; without an entry its own backend makes it from ONNX."""
    return MODELS[engine](folder) if engine in MODELS else _built_by_backend(engine)


@cache
def _built_by_backend(engine: str) -> dict[str, bytes]:
    """Once per test process: compilers and converters take seconds."""
    inputs = tuple(TensorSpec(name, "FP32", (-1, 3)) for name in INPUTS)
    outputs = tuple(TensorSpec(n, "FP32", (-1, width)) for n, width in zip(OUTPUTS, (3, 2), strict=True))
    backend = backends.get(engine)
    recipe = next(iter(backend.recipes("fp32", Target(engine, ("fp32",)), CalibrationPolicy())))
    return backend.build(SourceModel(onnx_files(Path())["model.onnx"], inputs, outputs), recipe, {})


NEEDS_HARDWARE = ("tensorrt",)
"""Engines that a machine without their hardware cannot have. Their tests here are skipped with the reason
that `version()` gives; any other engine that is missing is a failure."""
LIBRARIES = {
    "litert": "ai_edge_litert",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tvm": "tvm_ffi",
}
"""The package that an engine imports inside its methods; engines without one are not listed."""
