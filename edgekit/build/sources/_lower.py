"""Operators of classical machine learning as plain arithmetic, which every engine takes.

ONNX's own domain for them, ai.onnx.ml, is known to ONNX Runtime alone. Trees stay as they are; what a
pipeline puts before a network is arithmetic with constants.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_ML = "ai.onnx.ml"
_FLOAT = 1
"""TensorProto.FLOAT"""


def needed(model: Any) -> bool:
    """Whether `lower` would change anything."""
    return any(map(_is_scaler, model.graph.node))


def lower(model: Any) -> Any:
    """`model` with every Scaler replaced: y = (x - offset) * scale (ai.onnx.ml's Scaler-1). In place."""
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for place, node in enumerate(nodes):
        model.graph.node.extend(_scaled(model.graph, node, place) if _is_scaler(node) else [node])
    return model


def forget_domains(model: Any) -> Any:
    """Without opsets of domains that no node is of: engines refuse a model for the name of one. In place.

    A model with functions of its own keeps them all.
    """
    if model.functions:
        return model
    used = _domains(model.graph) | {"", "ai.onnx"}  # two names of the same domain
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return model


def _domains(graph: Any) -> set[str]:
    found = {node.domain for node in graph.node}
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                found |= _domains(inner)
    return found


def _is_scaler(node: Any) -> bool:
    return bool(node.domain == _ML and node.op_type == "Scaler")


def _scaled(graph: Any, node: Any, place: int) -> list[Any]:
    """Scaler takes any number and answers in float, so a cast comes first."""
    from onnx import helper, numpy_helper

    given = {attribute.name: np.array(attribute.floats, np.float32) for attribute in node.attribute}
    base = node.name or f"Scaler_{place}"
    steps = (
        ("Sub", "offset", given.get("offset", np.zeros(1, np.float32))),
        ("Mul", "scale", given.get("scale", np.ones(1, np.float32))),
    )
    value = f"{base}/float"
    made = [helper.make_node("Cast", [node.input[0]], [value], name=f"{base}/Cast", to=_FLOAT)]
    for kind, name, numbers in steps:
        constant, result = f"{base}/{name}", node.output[0] if kind == "Mul" else f"{base}/shifted"
        graph.initializer.append(numpy_helper.from_array(numbers, constant))
        made.append(helper.make_node(kind, [value, constant], [result], name=f"{base}/{kind}"))
        value = result
    return made
