"""A small transformer encoder with random weights: what tests quantize where an exported one is too large.

Input ids (batch, 8) INT64 below WORDS; output sentence (batch, 64) FP32: embeddings, one block of
attention and one feed-forward layer, each with its residual and normalisation, and the mean over the words.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.backends import SourceModel
from edgekit.bundle.model import TensorSpec
from edgekit.runtimes import Array

WORDS, LENGTH, WIDTH, HIDDEN = 500, 8, 64, 256


def ids(rows: int, seed: int = 1) -> dict[str, Array]:
    return {"ids": np.random.default_rng(seed).integers(0, WORDS, (rows, LENGTH)).astype(np.int64)}


@cache
def model() -> SourceModel:
    random = np.random.default_rng(3)
    weights: dict[str, Array] = {"table": random.normal(size=(WORDS, WIDTH))}
    for name in ("query", "key", "value", "out"):
        weights[name] = random.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)
    weights["up"] = random.normal(size=(WIDTH, HIDDEN)) / np.sqrt(WIDTH)
    weights["down"] = random.normal(size=(HIDDEN, WIDTH)) / np.sqrt(HIDDEN)
    weights |= {"one": np.ones(WIDTH), "zero": np.zeros(WIDTH), "root": np.array(np.sqrt(WIDTH))}

    def node(kind: str, given: str, made: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, given.split(), [made], name=f"{kind}.{made}", **attributes)

    nodes = [
        node("Gather", "table ids", "x"),
        *(node("MatMul", f"x {name}", name[0]) for name in ("query", "key", "value")),
        node("Transpose", "k", "kt", perm=[0, 2, 1]),
        node("MatMul", "q kt", "scores"),
        node("Div", "scores root", "scaled"),
        node("Softmax", "scaled", "share", axis=-1),
        node("MatMul", "share v", "mixed"),
        node("MatMul", "mixed out", "projected"),
        node("Add", "x projected", "sum1"),
        node("LayerNormalization", "sum1 one zero", "normal1"),
        node("MatMul", "normal1 up", "wide"),
        node("Relu", "wide", "active"),
        node("MatMul", "active down", "narrow"),
        node("Add", "normal1 narrow", "sum2"),
        node("LayerNormalization", "sum2 one zero", "normal2"),
        node("ReduceMean", "normal2", "sentence", axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", LENGTH])],
        [helper.make_tensor_value_info("sentence", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(np.asarray(w, np.float32), name) for name, w in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return SourceModel(
        proto.SerializeToString(deterministic=True),
        (TensorSpec("ids", "INT64", (-1, LENGTH)),),
        (TensorSpec("sentence", "FP32", (-1, WIDTH)),),
    )
