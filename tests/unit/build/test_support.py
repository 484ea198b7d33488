"""Operators that an engine lacks: found in its own words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit import profile
from edgekit.backends import SourceModel
from edgekit.build import sources, support
from edgekit.runtimes import get
from tests.unit.build import models


@pytest.fixture(scope="module")
def bent(tmp_path_factory: pytest.TempPathFactory) -> SourceModel:
    """A deformable convolution: ONNX Runtime has it, OpenVINO has not."""
    weight = onnx.numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    node = helper.make_node("DeformConv", ["x", "w", "offset"], ["y"], name="bend")
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 4, 4)),
        helper.make_tensor_value_info("offset", TensorProto.FLOAT, (1, 2, 4, 4)),
    ]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 2, 4, 4))
    graph = helper.make_graph([node], "g", inputs, [output], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    model.ir_version = 10
    return sources.load(models.saved(tmp_path_factory.mktemp("model"), model))


def test_the_node_is_found_in_the_engines_words(bent: SourceModel) -> None:
    words = "No conversion rule found for operations: DeformConv-22"
    assert support.missing(words, bent) == "node 'bend' (DeformConv)"
    assert support.named(words, "openvino", bent).endswith("node 'bend' (DeformConv) is not in openvino")
    tvm = "TVM's importer has no operator DeformConv (node 'bend')"
    assert support.missing(tvm, bent) == "node 'bend' (DeformConv)"
    assert support.named(tvm, "tvm", bent) == tvm  # it says so itself
    for other in ("out of memory in DeformConv", "not supported: Conv", ""):
        assert support.missing(other, bent) == ""
        assert support.named(other, "openvino", bent) == other


def test_the_engines_that_take_a_model_are_found_by_trying(bent: SourceModel) -> None:
    rows = {"x": np.ones((1, 1, 4, 4), np.float32), "offset": np.zeros((1, 2, 4, 4), np.float32)}
    assert get("openvino").version()  # it is here, and still does not take it
    takers = support.takers(bent, rows, profile.get("intel-nuc"), but=("tvm", "litert", "tensorrt"))
    assert takers == ["onnxruntime"]


def test_a_build_says_which_node_and_which_engine(tmp_path: Path) -> None:
    """With OpenVINO alone, on a table model whose trees it lacks."""
    from edgekit.build.api import build
    from edgekit.errors import GateError

    trees = Path(__file__).parents[4] / "shared" / "data" / "tabular" / "cancer_xgb.onnx"
    if not trees.exists():
        pytest.skip("no example data beside the repository")
    model = onnx.load(trees)
    del model.graph.output[0]  # the label; probabilities stay
    onnx.save(model, tmp_path / "trees.onnx")
    rows = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    with pytest.raises(GateError, match=r"\(TreeEnsembleClassifier\) is not in openvino") as refusal:
        build(
            tmp_path / "trees.onnx",
            "intel-nuc",
            calibration=rows,
            evaluate=[(row, 0) for row in rows],
            engines=["openvino"],
            precisions=["fp16"],
            cache=tmp_path / "cache",
        )
    assert "onnxruntime" in refusal.value.hint
    assert "the model" in refusal.value.hint
