"""A baseline that is another model: matched by position, refused where it cannot answer the same rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit import runtimes
from edgekit.build import baseline, sources
from edgekit.build.cache import Cache
from edgekit.build.sources import SourceOptions
from edgekit.errors import ModelError

X = np.array([[1, -2, 3, 4]], np.float32)


def saved(path: Path, source: str, inner: str, target: str, width: int = 4) -> Path:
    """y = relu(x) + 1, with these names."""
    graph = helper.make_graph(
        [helper.make_node("Relu", [source], [inner]), helper.make_node("Add", [inner, "one"], [target])],
        "g",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(target, TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def loaded(folder: Path, other: Path) -> bytes:
    model = sources.load(saved(folder / "model.onnx", "x", "h", "y"))
    return baseline.load(other, model, Cache(None), SourceOptions(), None).onnx


@pytest.mark.parametrize(
    "names", [("x", "h", "y"), ("input", "h", "logits"), ("y", "h", "x"), ("a", "x", "b"), ("a", "y", "b")]
)
def test_it_takes_the_models_names(tmp_path: Path, names: tuple[str, str, str]) -> None:
    made = loaded(tmp_path, saved(tmp_path / "other.onnx", *names))
    session = runtimes.get("onnxruntime").load({"model.onnx": made}, {})
    np.testing.assert_array_equal(session.run({"x": X})["y"], np.maximum(X, 0) + 1)


def test_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"inputs are FP32\[-1, 5\], the model's are FP32\[-1, 4\]"):
        loaded(tmp_path, saved(tmp_path / "other.onnx", "x", "h", "y", width=5))
