"""Predict requests of TensorFlow Serving that repeat (templates.py), and the answers to them."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import oip, tfs
from edgekit_agent.serve.grpc import templates, tfs_tensors, wire
from edgekit_agent.serve.grpc import tfs_messages as m
from edgekit_agent.serve.grpc.framing import Buffer
from edgekit_agent.serve.grpc.patterns import MAX_BYTES, Octets, Pattern
from edgekit_agent.serve.grpc.wire import Values
from edgekit_agent.serve.model import Model

_FIELDS = {"float32": "float_val", "float64": "double_val"}
"""Those of TensorProto whose octets are the array's, beside tensor_content."""
_Around = tuple[tuple[tuple[bytes, str], ...], bytes]
"""Of an answer: what precedes each tensor and its name, and what follows the last."""


class Template(templates.Template):
    """A PredictRequest without its tensors' octets."""

    __slots__ = ("_answers", "spec", "wanted")

    def __init__(
        self, pattern: Pattern, tensors: tuple[templates.Tensor, ...], spec: Values, wanted: tuple[str, ...]
    ) -> None:
        super().__init__(pattern, tensors)
        self.spec = spec
        """Its model_spec."""
        self.wanted = wanted
        """Names of outputs; empty: all."""
        self._answers: dict[Any, _Around | None] = {}  # by everything that they depend on

    def encode(self, model: Model, outputs: dict[str, Array]) -> list[Buffer] | None:
        """A PredictResponse in pieces; None: its tensors are not sent as they lie. Raises EngineError."""
        key = (model.number, *[array.shape for array in outputs.values()])
        if key in self._answers:
            known = self._answers[key]
        else:
            known = self._around(model, outputs)
            if len(self._answers) < templates.KEPT_ANSWERS:
                self._answers[key] = known
        if known is None:
            return None
        parts: list[Buffer] = []
        for before, name in known[0]:
            parts += (before, oip.raw(outputs[name]))
        parts.append(known[1])
        return parts

    def _around(self, model: Model, outputs: dict[str, Array]) -> _Around | None:
        before = []
        for name in self.wanted or [spec.name for spec in model.config.outputs]:
            parts = entry(name, outputs)
            array = outputs[name]
            if not array.size or dtype_name(array.dtype) not in tfs_tensors.AS_THEY_LIE:
                return None  # numbers of variable size, or none
            before.append((b"".join(parts[:-1]), name))
        return tuple(before), tail(model)


def model_spec(model: Model) -> Values:
    """Of an answer."""
    version = {"value": tfs.number(model.version)}
    return {"name": model.name, "version": version, "signature_name": tfs.SIGNATURE}


def tail(model: Model) -> bytes:
    """What follows the outputs of a PredictResponse."""
    return wire.encode(m.PREDICT_RESPONSE, {"model_spec": model_spec(model)})


def entry(name: str, outputs: dict[str, Array]) -> list[Buffer]:
    """One of PredictResponse.outputs in pieces, of which the tensor's octets are the last.

    Raises EngineError.
    """
    if name not in outputs:
        raise EngineError(f"the engine gave no output {name!r}")
    key = name.encode()
    parts: list[Buffer] = [wire.begin(1, len(key)) + key]
    parts += tfs_tensors.nest(2, tfs_tensors.encode(outputs[name]))
    return tfs_tensors.nest(1, parts)


class Templates(templates.Templates[Template]):
    """What is known of Predict."""

    def learn(self, message: Octets, spec: Values, arrays: dict[str, Array], wanted: tuple[str, ...]) -> None:
        """Keep what `message` was found to say, when its like may come again. `arrays`: as it was parsed."""
        if not arrays or any(array.dtype.kind in "bO" for array in arrays.values()):
            return  # their octets are looked at each time
        if len(message) - sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
            return
        values = wire.decode(m.PREDICT_REQUEST, memoryview(message))
        end = len(message)
        found: list[templates.Tensor] = []
        for name, array in arrays.items():
            start = _place(message, values["inputs"][name] or b"", array)
            if start < 0:
                return
            found.append((name, array.dtype, array.shape, start - end, start + array.nbytes - end))
        places = sorted((end + start, end + stop) for _, _, _, start, stop in found)
        self.keep(Template(Pattern(message, places), tuple(found), spec, wanted))


def _place(message: Octets, tensor: Buffer, array: Array) -> int:
    """Where in `message` the octets are that tfs_tensors.decode has made `array` of; -1: in no one place.

    `tensor`: the TensorProto, a view of the message.
    """
    values = wire.decode(m.TENSOR, tensor)
    octets = values.get("tensor_content", b"")
    if not len(octets):
        octets = values.get(_FIELDS.get(array.dtype.name, ""), b"")
    view = octets if isinstance(octets, np.ndarray) else np.frombuffer(octets, np.uint8)
    base = np.frombuffer(message, np.uint8)
    if not view.nbytes or view.nbytes != array.nbytes or not np.shares_memory(base, view):
        return -1  # of variable size, filled up, or put together
    return int(view.ctypes.data - base.ctypes.data)
