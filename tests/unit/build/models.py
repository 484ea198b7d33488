"""Small ONNX models, sound and broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHT = np.array([[1, -1], [2, 0.5], [0, 1], [-1, 3]], np.float32)


def linear(
    shape: tuple[int | str, ...] = ("batch", 4), weight: Any = WEIGHT, elem_type: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """y = x W, (batch, 4) to (batch, 2)."""
    x = helper.make_tensor_value_info("x", elem_type, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ("batch", 2))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "linear", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def with_weights_in(folder: Path, location: str) -> Path:
    """The model with its weight in another file, wherever `location` says."""
    model = linear()
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, location)
    tensor.ClearField("raw_data")
    return saved(folder, model)
