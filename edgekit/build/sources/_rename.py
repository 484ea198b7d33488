"""Other names for a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.build.sources.onnx_file import library


def renamed(onnx: bytes, names: Sequence[str]) -> bytes:
    """The same model with `names` for its inputs and outputs, in order."""
    model = library().ModelProto.FromString(onnx)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    ports = [value for value in graph.input if value.name not in weights] + list(graph.output)
    wish = {port.name: name for port, name in zip(ports, names, strict=True)}
    inner = {name for node in graph.node for name in (*node.input, *node.output)} | weights
    # A wished name that already means something else inside makes way.
    pairs = {name: f"{name}/inner" for name in inner & set(wish.values()) - set(wish)} | wish
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = pairs.get(value.name, value.name)
    _inside(graph, pairs)
    return bytes(model.SerializeToString(deterministic=True))


def _inside(graph: Any, pairs: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [pairs.get(name, name) for name in node.input]
        node.output[:] = [pairs.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a branch or loop sees the names around it
                _inside(attribute.g, pairs)
