"""Infer requests of the Open Inference Protocol that repeat (templates.py), and the answers to them."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import oip
from edgekit_agent.serve.grpc import oip_messages as m
from edgekit_agent.serve.grpc import templates, wire
from edgekit_agent.serve.grpc.framing import Buffer
from edgekit_agent.serve.grpc.patterns import MAX_BYTES, MAX_ID, Octets, Pattern, fields
from edgekit_agent.serve.model import Model

_NAME, _VERSION, _ID, _RAW = 0x0A, 0x12, 0x1A, 0x3A
_ORDER = (_NAME, _VERSION, _ID, 0x22, 0x2A, 0x32, _RAW)
"""Tags of ModelInferRequest as encoders write them: field by field."""
_Around = tuple[bytes, bytes, tuple[tuple[bytes, str], ...]]
"""Of an answer: what precedes its id; what precedes the first tensor where there is no id; what precedes each
tensor (but for the former), and the tensor's name."""


class Template(templates.Template):
    """An infer request without its id and its tensors' octets."""

    __slots__ = ("_answers", "name", "raw", "request", "version")

    def __init__(
        self,
        pattern: Pattern,
        tensors: tuple[templates.Tensor, ...],
        name: str,
        version: str,
        request: oip.InferRequest,
    ) -> None:
        super().__init__(pattern, tensors)
        self.name = name
        self.version = version
        self.request = request
        """Without inputs and id."""
        self.raw = all(not one.classes for one in request.wanted or ())
        """Whether all outputs are sent as they are: the rest of the answer depends on their shapes only."""
        self._answers: dict[Any, _Around] = {}  # by everything that they depend on

    def encode(self, model: Model, identity: bytes, outputs: dict[str, Array]) -> list[Buffer]:
        """A ModelInferResponse in pieces, where `raw`. Raises EngineError."""
        key = (model.number, *[array.shape for array in outputs.values()])
        known = self._answers.get(key)
        if known is None:
            known = self._around(model, outputs)
            if len(self._answers) < templates.KEPT_ANSWERS:
                self._answers[key] = known
        front, without, rest = known
        parts: list[Buffer] = []
        for before, name in rest:
            parts += (before, oip.raw(outputs[name]))
        if identity:
            parts.insert(0, front + wire.begin(3, len(identity)) + identity)
        else:
            parts[0] = without
        return parts

    def _around(self, model: Model, outputs: dict[str, Array]) -> _Around:
        names = [item.name for item in self.request.wanted or ()]
        names = names or [spec.name for spec in model.config.outputs]
        entries, before = [], []
        for name in names:
            array = outputs.get(name)
            if array is None:
                raise EngineError(f"the engine gave no output {name!r}")
            datatype = dtype_name(array.dtype)
            entries.append({"name": name, "datatype": datatype, "shape": list(array.shape)})
            before.append(wire.begin(6, array.nbytes))
        front = wire.encode(m.INFER_RESPONSE, {"model_name": model.name, "model_version": model.version})
        before[0] = wire.encode(m.INFER_RESPONSE, {"outputs": entries}) + before[0]
        return front, front + before[0], tuple(zip(before, names, strict=True))


class Templates(templates.Templates[Template]):
    """What is known of ModelInfer."""

    def learn(self, message: Octets, name: str, version: str, parsed: oip.InferRequest) -> None:
        """Keep what `message` was found to say, when its like may come again."""
        arrays = parsed.inputs
        if any(array.dtype.kind in "bO" for array in arrays.values()):
            return  # their octets are looked at each time
        if any(one.span is not None for one in parsed.wanted or ()):
            return  # whose memory that is depends on the client
        found = [*fields(message)]
        tags = [tag for tag, _, _, _ in found]
        single = all(tags.count(tag) <= 1 for tag in (_NAME, _VERSION, _ID))
        if not found or found[-1][3] != len(message) or not set(tags) <= set(_ORDER) or not single:
            return
        places = [(start, stop) for tag, _, start, stop in found if tag == _RAW]
        if tags != sorted(tags, key=_ORDER.index) or len(places) != len(arrays):
            return  # also where an input lies in shared memory or in typed contents
        if len(message) - sum(stop - start for start, stop in places) > MAX_BYTES:
            return
        identity = parsed.id or ""
        if len(identity) > MAX_ID or not identity.isascii():
            return  # would not be found again
        at = max((stop for tag, _, _, stop in found if tag in (_NAME, _VERSION)), default=0)
        after = next((stop for tag, _, _, stop in found if tag == _ID), at)
        end = len(message)
        self.keep(
            Template(
                Pattern(message, places, (at, after)),
                tuple(
                    (key, array.dtype, array.shape, start - end, stop - end)
                    for (key, array), (start, stop) in zip(arrays.items(), places, strict=True)
                ),
                name,
                version,
                dataclasses.replace(parsed, inputs={}, id=None, memory=None),
            )
        )
