"""What backends ask an ONNX graph: where its arithmetic is, and which nodes quantization touches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from edgekit.backends._base import SourceModel

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose second input may be a weight."""


@dataclass(frozen=True)
class Facts:
    layers: tuple[str, ...]
    """Names of the nodes of WEIGHTED, in graph order."""
    kinds: tuple[str, ...]
    """Their operators."""
    convolution_weights: int
    """Elements."""
    product_weights: int
    """Elements of matrix products' constant weights."""
    attention: bool
    """It looks like a transformer: a Softmax between products of activations."""
    depthwise: bool
    """It has convolutions in groups, as mobile networks do."""

    @property
    def mostly_products(self) -> bool:
        return self.product_weights > self.convolution_weights


def facts(model: SourceModel) -> Facts:
    return _facts(model.onnx)


@lru_cache(maxsize=8)
def _facts(data: bytes) -> Facts:
    import onnx

    graph = onnx.ModelProto.FromString(data).graph
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in WEIGHTED]
    sizes = {True: 0, False: 0}
    for node in nodes:
        sizes[node.op_type.startswith("Conv")] += weights.get(node.input[1], 0)
    return Facts(
        layers=tuple(node.name for node in nodes),
        kinds=tuple(node.op_type for node in nodes),
        convolution_weights=sizes[True],
        product_weights=sizes[False],
        attention=_attention(graph, weights),
        depthwise=any(a.name == "group" and a.i > 1 for node in nodes for a in node.attribute),
    )


def _attention(graph: Any, weights: dict[str, int]) -> bool:
    softmax = any(node.op_type == "Softmax" for node in graph.node)
    products = [node for node in graph.node if node.op_type == "MatMul"]
    return softmax and any(all(name not in weights for name in node.input) for node in products)


def kept(options: dict[str, Any]) -> list[str]:
    """The recipe's option "keep" as a list of node names."""
    return [name for name in str(options.get("keep", "")).split("\n") if name]
