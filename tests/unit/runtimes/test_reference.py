"""The operators of the reference engine against ONNX Runtime's."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import runtimes
from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes.reference import RUNTIME, Node, Tensor, pack

RNG = np.random.default_rng(3)


def by_reference(x: Array, weights: dict[str, Array], nodes: list[Node]) -> Array:
    shape = (-1, *x.shape[1:])
    files = pack([Tensor("x", "FP32", shape)], [nodes[-1].output], weights, nodes)
    return RUNTIME.load(files, {}).run({"x": x})[nodes[-1].output]


def by_onnx(x: Array, weights: dict[str, Array], op: str, **attributes: Any) -> Array:
    node = helper.make_node(op, ["x", *weights], ["y"], **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = runtimes.get("onnxruntime").load({"m.onnx": model.SerializeToString()}, {})
    return session.run({"x": x})["y"]


@pytest.mark.parametrize(("stride", "padding", "groups"), [(1, 0, 1), (2, 1, 1), (1, 1, 2), (2, 2, 4)])
def test_conv2d(stride: int, padding: int, groups: int) -> None:
    x = RNG.normal(size=(2, 4, 9, 7)).astype(np.float32)
    weights = {
        "w": RNG.normal(size=(8, 4 // groups, 3, 3)).astype(np.float32),
        "b": RNG.normal(size=8).astype(np.float32),
    }
    attributes = {"stride": stride, "padding": padding, "groups": groups}
    got = by_reference(x, weights, [Node("conv2d", ("x", "w", "b"), "y", attributes)])
    want = by_onnx(x, weights, "Conv", strides=[stride] * 2, pads=[padding] * 4, group=groups)
    assert got.shape == want.shape
    assert np.allclose(got, want, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "attributes", "onnx_op", "onnx_attributes"),
    [
        ("relu", {}, "Relu", {}),
        ("softmax", {"axis": 1}, "Softmax", {"axis": 1}),
        ("transpose", {"axes": [0, 2, 3, 1]}, "Transpose", {"perm": [0, 2, 3, 1]}),
        ("argmax", {"axis": 1}, "ArgMax", {"axis": 1, "keepdims": 0}),
    ],
)
def test_operators(
    op: str, attributes: dict[str, Any], onnx_op: str, onnx_attributes: dict[str, Any]
) -> None:
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    got = by_reference(x, {}, [Node(op, ("x",), "y", attributes)])
    want = by_onnx(x, {}, onnx_op, **onnx_attributes)
    assert got.dtype == want.dtype
    assert np.allclose(got, want, atol=1e-6)


def test_pool_reshape_clip_and_arithmetic() -> None:
    x = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    pooled = by_reference(x, {}, [Node("global_average_pool", ("x",), "y")])
    assert np.allclose(pooled, by_onnx(x, {}, "GlobalAveragePool")[:, :, 0, 0], atol=1e-6)
    assert by_reference(x, {}, [Node("reshape", ("x",), "y", {"shape": [0, -1]})]).shape == (2, 60)
    assert by_reference(x, {}, [Node("concat", ("x", "x"), "y", {"axis": 3})]).shape == (2, 3, 4, 10)
    clipped = by_reference(x, {}, [Node("clip", ("x",), "y", {"low": -0.5, "high": 0.5})])
    assert (clipped.min(), clipped.max()) == (-0.5, 0.5)
    two = {"two": np.array(2, np.float32)}
    nodes = [Node("mul", ("x", "two"), "double"), Node("sub", ("double", "x"), "y")]
    assert np.allclose(by_reference(x, two, nodes), x)


def test_quantization_is_onnxs() -> None:
    x = RNG.normal(size=(64, 8)).astype(np.float32) * 3
    scale, zero = 0.02, 5
    attributes = {"scale": scale, "zero": zero, "datatype": "INT8"}
    got = by_reference(x, {}, [Node("quantize", ("x",), "y", attributes)])
    weights: dict[str, Array] = {"s": np.array(scale, np.float32), "z": np.array(zero, np.int8)}
    want = by_onnx(x, weights, "QuantizeLinear")
    assert got.dtype == np.int8
    assert np.array_equal(got, want)
    nodes = [
        Node("quantize", ("x",), "q", attributes),
        Node("dequantize", ("q",), "y", {"scale": scale, "zero": zero}),
    ]
    inside = (x > (-128 - zero) * scale) & (x < (127 - zero) * scale)
    assert np.abs(by_reference(x, {}, nodes) - x)[inside].max() <= scale / 2 + 1e-6


def test_packing_is_deterministic() -> None:
    weights = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    nodes = [Node("matmul", ("x", "w"), "y")]
    assert pack([Tensor("x", "FP32", (-1, 2))], ["y"], weights, nodes) == pack(
        [Tensor("x", "FP32", (-1, 2))], ["y"], weights, nodes
    )


def files(**change: Any) -> dict[str, bytes]:
    good = pack([Tensor("x", "FP32", (-1, 2))], ["y"], {"w": np.eye(2)}, [Node("matmul", ("x", "w"), "y")])
    return {**good, "graph.json": json.dumps({**json.loads(good["graph.json"]), **change}).encode()}


WEIGHT = {"name": "w", "datatype": "FP64", "shape": [2, 2], "offset": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "other version 1"),
        ({"version": 2}, "version 2"),
        (
            {"nodes": [{"op": "exec", "inputs": ["x"], "output": "y", "attributes": {}}]},
            "unknown operator 'exec'",
        ),
        ({"outputs": ["z"]}, "'z' is used before"),
        ({"nodes": []}, "'y' is used before"),
        ({"inputs": [{"name": "x", "datatype": "FP8", "shape": [1], "offset": 0}]}, "unknown data type"),
        ({"weights": [{**WEIGHT, "shape": [2, 3]}]}, "'w' does not fit"),
        ({"weights": [{**WEIGHT, "shape": [1 << 62, 1 << 62]}]}, "'w' does not fit"),
        ({"weights": [{**WEIGHT, "shape": [-2, -2]}]}, "'w' does not fit"),
        ({"weights": [{**WEIGHT, "offset": -32}]}, "'w' does not fit"),
        ({"weights": [{**WEIGHT, "datatype": "FP8"}]}, "'w' does not fit"),
        ({"extra": 1}, "extra"),
    ],
)
def test_bad_graphs(change: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        RUNTIME.load(files(**change), {})


def test_an_operator_that_fails_names_its_output() -> None:
    nodes = [{"op": "reshape", "inputs": ["x"], "output": "y", "attributes": {"shape": [7]}}]
    session = RUNTIME.load(files(nodes=nodes), {})
    with pytest.raises(EngineError, match="reshape to 'y'"):
        session.run({"x": np.zeros((1, 2), np.float32)})
