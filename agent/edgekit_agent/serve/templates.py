"""Infer requests that differ from an earlier one in their tensors' bytes only, and answers to them.

Clients send the same JSON before the binary tensors again and again; what it says, and what the answer's JSON
says, is then known. The memory is bounded and keyed by the exact bytes, so that a hit means what parsing
would have found.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.runtimes import Array
from edgekit_agent.serve import oip
from edgekit_agent.serve.infer import PACKED_BYTES, Layout, Prepared, prepare
from edgekit_agent.serve.json_templates import JsonTemplates
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import BINARY, Response
from edgekit_agent.serve.model import Model

_KEPT = 64
_MAX_JSON_BYTES = 2048


@dataclass(slots=True)
class Template:
    """An infer request without its tensors' bytes."""

    text: bytes
    """The JSON that it begins with."""
    size: int
    """Of the whole."""
    request: oip.InferRequest
    """Without inputs."""
    tensors: tuple[tuple[str, np.dtype[Any], tuple[int, ...], int], ...]
    """Name, data type, shape and offset in the body of each input."""
    layout: Layout | None
    """Of the only tensor, when it is small."""
    binary: bool
    """Whether all that it asks for comes as raw tensors: the answer's JSON depends on their shapes only."""
    fits: dict[int, int] = field(default_factory=dict)
    """Samples of such a request by Model.number, where the model takes the tensors as they are and has the
    outputs that are wanted."""
    answers: dict[Any, tuple[bytes, bool]] = field(default_factory=dict)
    """JSON of an answer, and whether its tensors are large, by everything that they depend on."""

    def prepare(self, model: Model, body: bytes | bytearray, limits: Limits, received_ns: int) -> Prepared:
        """As infer.prepare does it, with views of `body`. Raises InputError."""
        samples = self.fits.get(model.number)
        if samples is not None:
            if self.layout is not None:
                prepared = Prepared(None, samples, self, body[len(self.text) :], self.layout)
            else:
                prepared = Prepared(self._arrays(body), samples, note=self)
        else:
            arrays = self._arrays(body)
            if self.request.wanted is not None:
                oip.check_wanted(self.request, model.config.outputs)
            prepared = prepare(model, arrays, limits, self)
            if len(self.fits) < _KEPT and prepared.inputs is arrays:
                self.fits[model.number] = prepared.samples
        self.request.hurry(prepared, received_ns)
        return prepared

    def _arrays(self, body: bytes | bytearray) -> dict[str, Array]:
        arrays = {}
        for name, dtype, shape, offset in self.tensors:
            array: Array = np.ndarray(shape, dtype, body, offset)
            arrays[name] = array if array.flags.aligned else array.copy()
        return arrays

    def encode(self, model: Model, outputs: dict[str, Array]) -> Response:
        """As oip.encode does it."""
        config = model.config
        key = (model.number, *[array.shape for array in outputs.values()])
        known = self.answers.get(key)
        if known is None:
            names = (model.name, model.version)
            response = oip.encode(*names, self.request, config.outputs, outputs, config.labels)
            if self.binary and len(self.answers) < _KEPT:
                self.answers[key] = response.body[: response.json_size], bool(response.tail)
            return response
        text, large = known
        blobs = [oip.raw(outputs[one.name]) for one in self.request.wanted or config.outputs]
        if large:
            return Response(200, text, BINARY, len(text), tail=tuple(map(memoryview, blobs)))
        return Response(200, b"".join((text, *blobs)), BINARY, len(text))


class Templates:
    """The last few."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], Template] = {}
        self._last: Template | None = None
        self.whole = JsonTemplates()
        """For requests all in JSON."""

    def find(self, body: bytes | bytearray, json_size: int) -> Template | None:
        last = self._last
        if (
            last is not None
            and len(last.text) == json_size
            and last.size == len(body)
            and body.startswith(last.text)
        ):
            return last
        if json_size > _MAX_JSON_BYTES:
            return None
        self._last = self._known.get((bytes(body[:json_size]), len(body)))
        return self._last

    def learn(self, body: bytes | bytearray, json_size: int, parsed: oip.InferRequest) -> None:
        """Keep what `body` was found to say, when its like may come again."""
        arrays = parsed.inputs
        views = sum(array.nbytes for array in arrays.values()) == len(body) - json_size
        # A BOOL's bytes are checked each time; what is not in the body cannot be found there.
        if any(one.span is not None for one in parsed.wanted or ()):
            return  # whose memory that is depends on the client
        if not views or json_size > _MAX_JSON_BYTES or any(a.dtype.kind in "bO" for a in arrays.values()):
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        offset, tensors = json_size, []
        for name, array in arrays.items():
            tensors.append((name, array.dtype, array.shape, offset))
            offset += array.nbytes
        if parsed.wanted is None:
            binary = parsed.binary_default
        else:
            binary = all(one.binary and not one.classes for one in parsed.wanted)
        request = dataclasses.replace(parsed, inputs={}, memory=None)
        text, size = bytes(body[:json_size]), len(body)
        layout = None
        if len(tensors) == 1 and size - json_size <= PACKED_BYTES:
            layout = Layout(*tensors[0][:3])
        self._known[text, size] = Template(text, size, request, tuple(tensors), layout, binary)
