"""Two networks with random weights that mark the ends of what a small device serves.

`mlp`: 64-768-768-10, a run takes less than a request; `cnn`: MobileNet's shape on 3x224x224 pixels
(Howard et al. 2017, arXiv:1704.04861, table 1), a run takes more than everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.runtimes import Array

INPUT, OUTPUT = "x", "y"
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each depthwise separable block."""


@dataclass(frozen=True)
class Net:
    name: str
    model: bytes
    """ONNX, with a free batch dimension."""
    shape: tuple[int, ...]
    """Of one sample."""
    classes: int

    def samples(self, count: int) -> Array:
        """(count, *shape) normally distributed numbers, the same every time."""
        made = np.random.default_rng(7).standard_normal((count, *self.shape))
        return np.asarray(made, dtype=np.float32)


class _Graph:
    def __init__(self) -> None:
        self.random = np.random.default_rng(1)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, shape: Sequence[int], fan_in: int) -> str:
        """He's initialisation, which keeps activations in range through many layers."""
        array = self.random.standard_normal(shape) * (2 / fan_in) ** 0.5
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def zeros(self, size: int) -> str:
        self.weights.append(numpy_helper.from_array(np.zeros(size, np.float32), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def dense(self, x: str, size_in: int, size_out: int, output: str = "") -> str:
        return self.add(
            "Gemm", x, self.weight((size_in, size_out), size_in), self.zeros(size_out), output=output
        )

    def conv(self, x: str, channels: tuple[int, int], kernel: int, stride: int, group: int = 1) -> str:
        size_in, size_out = channels
        weight = self.weight((size_out, size_in // group, kernel, kernel), size_in // group * kernel**2)
        made = self.add(
            "Conv", x, weight, self.zeros(size_out), kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[kernel // 2] * 4, group=group,
        )  # fmt: skip
        return self.add("Relu", made)

    def finish(self, name: str, shape: tuple[int, ...], classes: int) -> Net:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", *shape])],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return Net(name, model.SerializeToString(), shape, classes)


def mlp() -> Net:
    graph = _Graph()
    x = graph.add("Relu", graph.dense(INPUT, 64, 768))
    x = graph.add("Relu", graph.dense(x, 768, 768))
    graph.dense(x, 768, 10, OUTPUT)
    return graph.finish("mlp", (64,), 10)


def cnn() -> Net:
    graph = _Graph()
    x, size = graph.conv(INPUT, (3, 32), 3, 2), 32
    for wide, stride in _BLOCKS:
        x = graph.conv(x, (size, size), 3, stride, group=size)
        x = graph.conv(x, (size, wide), 1, 1)
        size = wide
    x = graph.add("Flatten", graph.add("GlobalAveragePool", x))
    graph.dense(x, size, 1000, OUTPUT)
    return graph.finish("cnn", (3, 224, 224), 1000)
