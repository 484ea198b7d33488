"""A small interpreter in plain NumPy: no library to install, no thread, no surprise.

It is slow and meant for tests of everything around an engine, and as a second opinion on small models.
Files: `graph.json` and `weights.bin`, made by `pack`. `graph.json` is an object:

    format   "edgekit-reference", version 1
    inputs   [{"name", "datatype", "shape"}], as in a bundle: -1 is a dimension of any size
    outputs  [name]
    weights  [{"name", "datatype", "shape", "offset"}] in bytes of weights.bin: little-endian, C order
    nodes    [{"op", "inputs", "output", "attributes"}] in the order of execution

Operators, with ONNX's meaning unless said (attributes in parentheses):
    add sub mul matmul relu clip(low, high) softmax(axis) reshape(shape; 0 copies the dimension)
    transpose(axes) concat(axis) global_average_pool (NCHW -> NC) argmax(axis)
    conv2d(stride, padding, groups): NCHW, weights OIHW, one stride and one padding for both axes
    quantize(scale, zero, datatype) dequantize(scale, zero)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit import codec
from edgekit.errors import EngineError
from edgekit.runtimes._base import DTYPES, Array, Files, Options, Runtime
from edgekit.runtimes._ports import Port, check_inputs, dtype_name

_NAME = "reference"
_VERSION = 1


@dataclass(frozen=True)
class Node:
    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True)
class Graph:
    format: str
    version: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    weights: tuple[Tensor, ...]
    nodes: tuple[Node, ...]


def pack(
    inputs: Sequence[Tensor], outputs: Sequence[str], weights: Mapping[str, Array], nodes: Sequence[Node]
) -> dict[str, bytes]:
    """The two files of a model. Equal arguments give equal bytes."""
    blob, tensors = bytearray(), []
    for name, array in weights.items():
        tensors.append(Tensor(name, dtype_name(array.dtype), tuple(array.shape), len(blob)))
        blob += array.astype(array.dtype.newbyteorder("<")).tobytes()
    graph = Graph(f"edgekit-{_NAME}", _VERSION, tuple(inputs), tuple(outputs), tuple(tensors), tuple(nodes))
    return {"graph.json": codec.to_json(graph), "weights.bin": bytes(blob)}


class ReferenceSession:
    """A graph and its weights. Holds no state between runs, hence thread-safe."""

    thread_safe = True

    def __init__(self, graph: Graph, weights: dict[str, Array]) -> None:
        self._graph: Graph | None = graph
        self._weights = weights
        self._ports = tuple(Port(item.name, DTYPES[item.datatype], item.shape) for item in graph.inputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        graph = self._graph
        if graph is None:
            raise EngineError(f"{_NAME}: the session is closed")
        check_inputs(_NAME, inputs, self._ports)
        values: dict[str, Array] = {**self._weights, **inputs}
        for node in graph.nodes:
            try:
                arguments = [values[name] for name in node.inputs]
                values[node.output] = _OPERATORS[node.op](*arguments, **node.attributes)
            except (TypeError, ValueError, LookupError, ArithmeticError) as exc:
                raise EngineError(f"{_NAME}: {node.op} to {node.output!r}: {exc}") from None
        return {name: np.array(values[name]) for name in graph.outputs}

    def coverage(self) -> dict[str, int]:
        return {"numpy": len(self._graph.nodes)} if self._graph else {}

    def close(self) -> None:
        self._graph, self._weights = None, {}


class Engine:
    """NumPy, always there: its version is that of the file format and operators."""

    name = _NAME

    def version(self) -> str:
        return f"{_VERSION}.0"

    def load(self, files: Files, options: Options) -> ReferenceSession:
        if options:
            raise EngineError(f"{_NAME}: unknown option {next(iter(options))!r}", "this engine has none")
        if set(files) != {"graph.json", "weights.bin"}:
            found = ", ".join(files) or "nothing"
            raise EngineError(f"{_NAME}: expected graph.json and weights.bin, got {found}")
        what = f"{_NAME}: graph.json"
        graph = codec.from_json(Graph, bytes(files["graph.json"]), what=what, error=EngineError)
        weights = {item.name: _weight(item, files["weights.bin"]) for item in graph.weights}
        _check(graph)
        return ReferenceSession(graph, weights)


def _check(graph: Graph) -> None:
    if (graph.format, graph.version) != (f"edgekit-{_NAME}", _VERSION):
        raise EngineError(f"{_NAME}: graph.json is {graph.format} version {graph.version}")
    known = {item.name for item in (*graph.inputs, *graph.weights)}
    for node in graph.nodes:
        if node.op not in _OPERATORS:
            raise EngineError(f"{_NAME}: unknown operator {node.op!r}", f"known: {', '.join(_OPERATORS)}")
        _check_known(node.inputs, known)
        known.add(node.output)
    _check_known(graph.outputs, known)
    if not all(item.datatype in DTYPES for item in graph.inputs):
        raise EngineError(f"{_NAME}: an input has an unknown data type")


def _check_known(names: Sequence[str], known: set[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise EngineError(f"{_NAME}: tensor {unknown[0]!r} is used before anything makes it")


def _weight(item: Tensor, data: bytes | memoryview) -> Array:
    try:
        dtype = DTYPES[item.datatype]
        size = dtype.itemsize * int(np.prod(item.shape, dtype=object))
        chunk = memoryview(data)[item.offset : item.offset + size]
        if item.offset < 0 or min(item.shape, default=0) < 0:
            raise ValueError("negative")
        return np.frombuffer(chunk, dtype).reshape(item.shape)
    except (KeyError, ValueError):
        raise EngineError(f"{_NAME}: weight {item.name!r} does not fit weights.bin") from None


def _softmax(x: Array, axis: int = -1) -> Array:
    power = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(power / power.sum(axis=axis, keepdims=True))


def _conv2d(
    x: Array, w: Array, b: Array | None = None, stride: int = 1, padding: int = 0, groups: int = 1
) -> Array:
    """(n, c, h, w) with (o, c / groups, kh, kw) and bias (o,): cross-correlation, as ONNX's Conv."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(w, groups), strict=True)
    y = np.concatenate([np.einsum("nchwij,ocij->nohw", a, k) for a, k in parts], axis=1)
    return y if b is None else y + b[:, None, None]


def _reshape(x: Array, shape: Sequence[int]) -> Array:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _quantize(x: Array, scale: float, zero: int, datatype: str = "INT8") -> Array:
    limits = np.iinfo(DTYPES[datatype])
    steps = np.clip(np.rint(x / np.float32(scale)) + zero, limits.min, limits.max)
    return np.asarray(steps.astype(DTYPES[datatype]))


def _dequantize(x: Array, scale: float, zero: int) -> Array:
    return np.asarray((x.astype(np.float32) - np.float32(zero)) * np.float32(scale))


_OPERATORS: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "matmul": np.matmul,
    "relu": lambda x: np.maximum(x, x.dtype.type(0)),
    "clip": lambda x, low, high: np.clip(x, x.dtype.type(low), x.dtype.type(high)),
    "softmax": _softmax,
    "reshape": _reshape,
    "transpose": lambda x, axes: np.transpose(x, axes),
    "concat": lambda *parts, axis: np.concatenate(parts, axis=axis),
    "global_average_pool": lambda x: x.mean(axis=(2, 3), dtype=x.dtype),
    "argmax": lambda x, axis=-1: np.asarray(np.argmax(x, axis=axis), np.int64),  # 32 bits on 32-bit ARM
    "conv2d": _conv2d,
    "quantize": _quantize,
    "dequantize": _dequantize,
}

RUNTIME: Runtime = Engine()
