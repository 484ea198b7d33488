"""Which layers suffer from int8: each is quantized alone, and the damage is read at the model's outputs.

The ranges come from one static int8 build. Layer by layer, a copy of the floating-point graph gets that
layer's inputs rounded as the quantized model rounds them (q = round(x / s) + z, back to (q - z) * s; Jacob
et al. 2018, arXiv:1712.05877, eq. 1) and its weights replaced by the rounded ones. Measuring one layer at a
time is the sensitivity analysis of Wu et al. 2020 (arXiv:2004.09602, "partial quantization"). Runs inside a
worker process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.backends import SourceModel

ROWS = 8
MAX_TRIALS = 128
"""Sessions of one ranking. Larger models are ranked in groups of neighbours, whose layers share a figure."""
EXACT_DB = 120.0
"""Stands for an error too small to matter, so that it can be drawn."""
WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators whose third input, if any, is a bias: it has 32 bits and is left out."""
Array = NDArray[Any]


@dataclass(frozen=True)
class LayerError:
    """`sqnr_db`: signal power over error power at the model's outputs when only this layer is quantized."""

    name: str
    op: str
    sqnr_db: float

    @property
    def error(self) -> float:
        """Error power over signal power."""
        return float(10 ** (-self.sqnr_db / 10))


@dataclass(frozen=True)
class Ranking:
    """The most sensitive layer first."""

    layers: tuple[LayerError, ...]


def rank(model: SourceModel, quantized: bytes, rows: Mapping[str, Array]) -> Ranking:
    """Every layer that `quantized` (its static QDQ build) quantizes, the most sensitive first.

    `rows`: engine inputs (n, ...), of which the first ROWS are used.
    """
    import onnx

    plain = onnx.ModelProto.FromString(model.onnx)
    ranges = _Ranges(onnx.ModelProto.FromString(quantized).graph)
    some = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(min(ROWS, _len(rows)))]
    touched = {node.name: ranges.of(node) for node in plain.graph.node}
    layers = [node for node in plain.graph.node if touched[node.name]]
    truth = _answers(plain, some)
    size = -(-len(layers) // MAX_TRIALS) or 1
    found = []
    for i in range(0, len(layers), size):
        group = layers[i : i + size]
        only = _only(plain, {node.name: touched[node.name] for node in group})
        decibel = _decibel(_relative_error(truth, _answers(only, some)))
        found += [LayerError(node.name, node.op_type, decibel) for node in group]
    return Ranking(tuple(sorted(found, key=lambda layer: layer.sqnr_db)))


def _len(rows: Mapping[str, Array]) -> int:
    return len(next(iter(rows.values())))


@dataclass(frozen=True)
class _Rounding:
    scale: Array
    zero_point: Array
    axis: int
    values: Array | None
    """Integers of a weight; None for an activation."""


class _Ranges:
    """What the quantized graph does to each layer's inputs."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self._constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._nodes = {node.name: node for node in graph.node}

    def of(self, plain: Any) -> dict[int, _Rounding]:
        """Input position to rounding, for activations and weights of a node of the plain graph."""
        node = self._nodes.get(plain.name)
        if node is None or node.op_type != plain.op_type:
            return {}
        sources = node.input[:2] if node.op_type in WEIGHTED else node.input
        pairs = ((i, self._rounding(source)) for i, source in enumerate(sources))
        return {i: rounding for i, rounding in pairs if rounding is not None}

    def _rounding(self, source: str) -> _Rounding | None:
        maker = self._makers.get(source)
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        scale = self._constants[maker.input[1]]
        no_zero = np.zeros(scale.shape, np.int64)
        zero = self._constants[maker.input[2]] if len(maker.input) > 2 else no_zero
        axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
        return _Rounding(scale, zero, axis, self._constants.get(maker.input[0]))


def _only(plain: Any, touched: Mapping[str, Mapping[int, _Rounding]]) -> Any:
    """A copy of the graph in which only these nodes are quantized."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(plain)
    graph = model.graph
    nodes = []
    for node in graph.node:
        for position, rounding in touched.get(node.name, {}).items():
            own = f"{node.name}/rounded.{position}"
            if rounding.values is not None:
                graph.initializer.append(numpy_helper.from_array(_restored(rounding), own))
            else:
                scale, zero = f"{own}.scale", f"{own}.zero"
                graph.initializer.append(numpy_helper.from_array(rounding.scale, scale))
                graph.initializer.append(numpy_helper.from_array(rounding.zero_point, zero))
                there = helper.make_node("QuantizeLinear", [node.input[position], scale, zero], [f"{own}.q"])
                nodes += [there, helper.make_node("DequantizeLinear", [f"{own}.q", scale, zero], [own])]
            node.input[position] = own
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return model


def _restored(rounding: _Rounding) -> Array:
    """(q - z) * s along the weight's channel axis."""
    values = rounding.values
    assert values is not None  # noqa: S101 - the caller looked
    shape = [1] * values.ndim
    if rounding.scale.ndim and rounding.scale.size > 1:
        shape[rounding.axis] = -1
    zero = rounding.zero_point.astype(np.int64).reshape(shape)
    restored = (values.astype(np.int64) - zero) * rounding.scale.reshape(shape)
    return np.asarray(restored, np.float32)


def _answers(model: Any, rows: list[dict[str, Array]]) -> list[list[Array]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else the engine would fuse the rounding into an integer kernel, and saturate on some CPUs.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return [session.run(None, row) for row in rows]


def _relative_error(truth: list[list[Array]], answers: list[list[Array]]) -> float:
    """Error power over signal power, the outputs' mean."""
    shares = []
    for i in range(len(truth[0])):
        signal = sum(float(np.square(row[i].astype(np.float64)).sum()) for row in truth)
        noise = sum(
            float(np.square(row[i].astype(np.float64) - other[i]).sum())
            for row, other in zip(truth, answers, strict=True)
        )
        shares.append(noise / max(signal, 1e-30))
    return float(np.mean(shares))


def _decibel(error: float) -> float:
    return round(min(EXACT_DB, -10 * math.log10(max(error, 1e-30))), 2)
