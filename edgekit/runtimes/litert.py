"""LiteRT (TensorFlow Lite) on the CPU: ai-edge-litert, or tflite-runtime on boards that have only that.

Files, made by `edgekit.backends.litert`:
    model.tflite   for one row; LiteRT's own names and order of axes stay inside
    io.json        {"format": "edgekit-litert", "version": 1, "sha256" of model.tflite,
                    "implementations": packages that compute this file rightly,
                    "inputs" and "outputs": [{"name", "datatype", "shape", "tensor", "axes"}]}
                   -1 in a shape is the batch; `tensor` is the name inside. `axes`: an input is the given
                   array with its axes in this order, an output is the file's array with its axes so
Options (all optional):
    intra_threads   int    threads inside one operator; default 1, 0: all cores
    xnnpack         bool   compute with XNNPACK where it can; default True

`run` works through a batch row by row: a file for a fixed batch of 1 is what XNNPACK takes whole, where open
sizes leave half of the graph to slower kernels.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import codec
from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes._base import DTYPES, Array, Files, Options, Runtime
from edgekit.runtimes._ports import Port, check_inputs

_NAME = "litert"
_VERSION = 1
_FILES = {"model.tflite", "io.json"}
_PACKAGES = {"ai-edge-litert": "ai_edge_litert", "tflite-runtime": "tflite_runtime"}
"""Package to module, the better first."""


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    tensor: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Description:
    format: str
    version: int
    implementations: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    sha256: str


@dataclass(frozen=True)
class _Slot:
    """A tensor of the file: what goes in or comes out, at which index and in which type."""

    about: Tensor
    index: int
    dtype: np.dtype[Any]


class _Machine:
    """One interpreter with its buffers; serves one run at a time."""

    def __init__(self, make: Any, about: Description) -> None:
        self._interpreter = make()
        self._interpreter.allocate_tensors()
        self._inputs = _slots(about.inputs, self._interpreter.get_input_details(), inward=True)
        self._outputs = _slots(about.outputs, self._interpreter.get_output_details(), inward=False)

    def run(self, rows: Iterable[Array]) -> list[Array]:
        """Arrays of one row in and out; both ways they are copied."""
        for slot, row in zip(self._inputs, rows, strict=True):
            value = np.ascontiguousarray(row.transpose(slot.about.axes), slot.dtype)
            self._interpreter.set_tensor(slot.index, value)
        self._interpreter.invoke()
        values = (self._interpreter.get_tensor(slot.index) for slot in self._outputs)
        return [v.transpose(slot.about.axes) for v, slot in zip(values, self._outputs, strict=True)]

    def coverage(self) -> dict[str, int]:
        """Operators that XNNPACK has taken over, and those that LiteRT's own kernels compute.

        A delegate replaces a part of the graph by one operator of its own: what it covers is found by
        walking back from that operator's outputs to its inputs.
        """
        if not hasattr(self._interpreter, "_get_ops_details"):
            return {}
        ops = self._interpreter._get_ops_details()
        own = [op for op in ops if op["op_name"] != "DELEGATE"]
        maker = {int(tensor): place for place, op in enumerate(own) for tensor in op["outputs"]}
        taken: set[int] = set()
        for part in (op for op in ops if op["op_name"] == "DELEGATE"):
            ends = {int(tensor) for tensor in part["inputs"]}
            reached = [int(tensor) for tensor in part["outputs"]]
            while reached:
                tensor = reached.pop()
                place = maker.get(tensor)
                if place is not None and place not in taken and tensor not in ends:
                    taken.add(place)
                    reached += [int(one) for one in own[place]["inputs"]]
        counts = {"xnnpack": len(taken), "builtin": len(own) - len(taken)}
        return {unit: count for unit, count in counts.items() if count}


class LiteSession:
    """A model and its idle interpreters.

    An interpreter serves one thread at a time, so each `run` borrows one; there are as many as there were
    runs at the same time, and they share the file. The interpreter's calls release the GIL.
    """

    thread_safe = True

    def __init__(self, make: Any, about: Description) -> None:
        self._make: Any = make
        self._about = about
        self._ports = tuple(Port(item.name, DTYPES[item.datatype], item.shape) for item in about.inputs)
        self._batched = any(port.shape[:1] == (-1,) for port in self._ports)
        first = _Machine(make, about)  # a model that does not load must fail now
        self._coverage = first.coverage()
        self._idle: deque[_Machine] = deque([first])

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._make is None:
            raise EngineError(f"{_NAME}: the session is closed")
        check_inputs(_NAME, inputs, self._ports)
        count = self._rows(inputs)
        rooms = [np.empty(_sized(item, count), DTYPES[item.datatype]) for item in self._about.outputs]
        try:
            machine = self._borrow()
            for i in range(count):
                part = slice(i, i + 1) if self._batched else slice(None)
                values = machine.run(inputs[port.name][part] for port in self._ports)
                for room, value in zip(rooms, values, strict=True):
                    room[part] = value
            self._idle.append(machine)
        except (RuntimeError, ValueError) as exc:
            raise EngineError(f"{_NAME}: {_words(exc)}") from None
        return {item.name: room for item, room in zip(self._about.outputs, rooms, strict=True)}

    def coverage(self) -> dict[str, int]:
        return {} if self._make is None else dict(self._coverage)

    def close(self) -> None:
        self._idle.clear()
        self._make = None

    def _rows(self, inputs: Mapping[str, Array]) -> int:
        if not self._batched:
            return 1
        counts = {port.name: len(inputs[port.name]) for port in self._ports if port.shape[:1] == (-1,)}
        if len(set(counts.values())) > 1:
            raise EngineError(f"{_NAME}: the inputs have different numbers of rows: {counts}")
        return next(iter(counts.values()))

    def _borrow(self) -> _Machine:
        try:
            return self._idle.pop()
        except IndexError:
            return _Machine(self._make, self._about)


class Engine:
    """The package ai-edge-litert or, where that is not installed, tflite-runtime."""

    name = _NAME

    def version(self) -> str:
        _, module = _library()
        numbers = re.match(r"\d+(?:\.\d+)+", str(module.__version__))
        return numbers[0] if numbers else "0.0"

    def implementation(self) -> str:
        """Which package that is the version of: "ai-edge-litert" or "tflite-runtime"."""
        return _library()[0]

    def load(self, files: Files, options: Options) -> LiteSession:
        package, _ = _library()
        settings = _settings(package, options)
        about = _description(files)
        if package not in about.implementations:
            wanted = " or ".join(about.implementations)
            raise EngineError(
                f"{_NAME}: {package} computes this file wrongly, it needs {wanted}", f"pip install {wanted}"
            )
        model = bytes(files["model.tflite"])
        interpreter = importlib.import_module(f"{_PACKAGES[package]}.interpreter").Interpreter
        try:
            return LiteSession(lambda: interpreter(model_content=model, **settings), about)
        except (RuntimeError, ValueError) as exc:
            raise EngineError(f"{_NAME}: cannot load the model: {_words(exc)}") from None


def _library() -> tuple[str, Any]:
    """Package and module."""
    problem = ""
    for package, name in _PACKAGES.items():
        try:
            module = importlib.import_module(name)
            importlib.import_module(f"{name}.interpreter")
        except ImportError as exc:
            problem = problem or _words(exc)
            continue
        if package == "tflite-runtime" and int(np.__version__.split(".")[0]) > 1:
            problem, hint = f"tflite-runtime works with NumPy 1 only, this is {np.__version__}", "'numpy<2'"
            raise EngineMissing(f"{_NAME}: {problem}", f"pip install {hint}")
        return package, module
    hint = "pip install 'edgekit-toolkit[litert]', on 32-bit ARM: pip install tflite-runtime 'numpy<2'"
    raise EngineMissing(f"{_NAME} is not installed: {problem}", hint)


def _settings(package: str, options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {"num_threads": 1}
    for key, value in options.items():
        if key == "intra_threads" and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            settings["num_threads"] = value or os.cpu_count() or 1
        elif key == "xnnpack" and isinstance(value, bool):
            if not value:
                kinds = importlib.import_module(f"{_PACKAGES[package]}.interpreter").OpResolverType
                settings["experimental_op_resolver_type"] = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        elif key in ("intra_threads", "xnnpack"):
            raise EngineError(f"{_NAME}: option {key!r} cannot be {value!r}")
        else:
            raise EngineError(f"{_NAME}: unknown option {key!r}", "known: intra_threads, xnnpack")
    return settings


def _description(files: Files) -> Description:
    if set(files) != _FILES:
        found = ", ".join(files) or "nothing"
        raise EngineError(f"{_NAME}: expected {', '.join(sorted(_FILES))}, got {found}")
    what = f"{_NAME}: io.json"
    about = codec.from_json(Description, bytes(files["io.json"]), what=what, error=EngineError)
    if (about.format, about.version) != (f"edgekit-{_NAME}", _VERSION):
        raise EngineError(f"{what} is {about.format} version {about.version}")
    for item in (*about.inputs, *about.outputs):
        if item.datatype not in DTYPES or sorted(item.axes) != list(range(len(item.shape))):
            raise EngineError(f"{what}: {item.name!r} has an unknown data type or order of axes")
        if min(item.shape[1:], default=0) < 0 or min(item.shape[:1], default=0) < -1:
            raise EngineError(f"{what}: {item.name!r} has a negative size")
    if not about.implementations or not about.inputs:
        raise EngineError(f"{what}: no implementations or no inputs")
    # LiteRT reads a cut-off file without a word, and beyond its end.
    if hashlib.sha256(files["model.tflite"]).hexdigest() != about.sha256:
        raise EngineError(f"{_NAME}: model.tflite is not the file that io.json describes")
    return about


def _slots(described: tuple[Tensor, ...], details: list[dict[str, Any]], *, inward: bool) -> list[_Slot]:
    """Where each described tensor is in the file. Raises EngineError for one that is not as described."""
    by_name = {detail["name"]: detail for detail in details}
    slots = []
    for item in described:
        detail = by_name.get(item.tensor)
        if detail is None:
            raise EngineError(f"{_NAME}: the file has no tensor {item.tensor!r}")
        dtype, shape = np.dtype(detail["dtype"]), tuple(map(int, detail["shape"]))
        outside, inside = _sized(item, 1), shape
        fits = tuple((outside if inward else inside)[axis] for axis in item.axes) == (
            inside if inward else outside
        )
        # LiteRT counts in 32 bits where ONNX has 64; a quantized tensor is no floating-point one.
        if not fits or dtype.kind != DTYPES[item.datatype].kind:
            raise EngineError(
                f"{_NAME}: {item.tensor!r} is {dtype} {list(shape)}, which does not fit {item.name!r}: "
                f"{item.datatype} {list(item.shape)}, order {list(item.axes)}"
            )
        slots.append(_Slot(item, int(detail["index"]), dtype))
    return slots


def _sized(item: Tensor, rows: int) -> tuple[int, ...]:
    return tuple(rows if size == -1 else size for size in item.shape)


def _words(exc: Exception) -> str:
    """The interpreter's message in one line."""
    return " ".join(str(exc).split())[:400] or type(exc).__name__


RUNTIME: Runtime = Engine()
