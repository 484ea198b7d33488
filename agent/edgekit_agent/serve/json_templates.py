"""Infer requests all in JSON that differ from an earlier one in their numbers only, and answers to them.

What stands before and behind the numbers of the only input is kept. JSON lets any value take another's place,
so a request with the same text around its numbers says the same about them. The memory is bounded, and a hit
means what parsing all of it would have found.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve import jsons, oip
from edgekit_agent.serve.message import JSON, Response
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.values import NotFinite

_KEPT = 16
_ANSWERS = 64
_MAX_TEXT_BYTES = 2048
_EAGER, _SELDOM = 64, 256
"""So many requests in a row without a hit are looked at closely, then one of so many: some clients never
repeat themselves, and looking costs as much as parsing."""
_DATA = re.compile(rb'"data"\s*:\s*(?=\[)')
_HOLE = "\x00"


@dataclass(slots=True, eq=False)
class JsonTemplate:
    """An infer request without its numbers."""

    before: bytes
    after: bytes
    request: oip.InferRequest
    """Without inputs."""
    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: list[int]
    answers: dict[Any, tuple[bytes, ...]] = field(default_factory=dict)
    """The text around the numbers of an answer's outputs, by everything that it depends on."""

    def read(self, body: bytes | bytearray) -> Array | None:
        """The input of such a request; None for any other, damaged ones included. Raises InputError."""
        begin, end = len(self.before), len(body) - len(self.after)
        if begin >= end or not body.startswith(self.before) or not body.endswith(self.after):
            return None
        try:
            data = jsons.loads(memoryview(body)[begin:end])
        except (ValueError, RecursionError):
            return None
        return oip.from_list(oip.named(self.name), data, self.datatype, self.dtype, self.shape)

    def encode(self, model: Model, outputs: dict[str, Array]) -> Response:
        """As oip.encode does it."""
        key = (model.number, *[array.shape for array in outputs.values()])
        texts = self.answers.get(key)
        if texts is None:
            return self._first(key, model, outputs)
        parts: list[bytes] = []
        for text, name in zip(texts, self._asked(model), strict=False):
            parts += text, _numbers(outputs[name])
        return Response(200, b"".join((*parts, texts[-1])), JSON)

    def _first(self, key: Any, model: Model, outputs: dict[str, Array]) -> Response:
        config, wanted = model.config, self.request.wanted
        names = (model.name, model.version)
        response = oip.encode(*names, self.request, config.outputs, outputs, config.labels)
        plain = not self.request.binary_default and not any(one.binary or one.classes for one in wanted or ())
        if plain and len(self.answers) < _ANSWERS:
            texts, at = [], 0
            for name in self._asked(model):
                # Within a string the quotes would have backslashes.
                begin = response.body.index(b'"data":', at) + len(b'"data":')
                texts.append(response.body[at:begin])
                at = begin + len(_numbers(outputs[name]))
            self.answers[key] = (*texts, response.body[at:])
        return response

    def _asked(self, model: Model) -> list[str]:
        wanted = self.request.wanted
        return [one.name for one in (model.config.outputs if wanted is None else wanted)]


class JsonTemplates:
    """The last few, the latest first. On the event loop."""

    def __init__(self) -> None:
        self._known: list[JsonTemplate] = []
        self._missed = 0

    def find(self, body: bytes | bytearray) -> tuple[JsonTemplate, Array] | None:
        """Raises InputError for numbers that the input cannot have."""
        for place, template in enumerate(self._known):
            found = template.read(body)
            if found is not None:
                self._missed = 0
                if place:
                    self._known.insert(0, self._known.pop(place))
                return template, found
        self._missed += 1
        return None

    def learn(self, body: bytes | bytearray, parsed: oip.InferRequest) -> None:
        """Keep what `body` was found to say, when its like may come again."""
        if self._missed > _EAGER and self._missed % _SELDOM:
            return
        # Ids differ from request to request, and whose shared memory it is depends on the client.
        if parsed.id is not None or len(parsed.inputs) != 1:
            return
        if any(one.span is not None for one in parsed.wanted or ()):
            return
        ((name, array),) = parsed.inputs.items()
        around = _around(bytes(body))
        if around is not None:
            request = dataclasses.replace(parsed, inputs={}, memory=None)
            made = JsonTemplate(
                *around, request, name, dtype_name(array.dtype), array.dtype, list(array.shape)
            )
            self._known = [made, *self._known[: _KEPT - 1]]


def _around(body: bytes) -> tuple[bytes, bytes] | None:
    """What stands before and behind the numbers of the only input; None where that is not sure."""
    begins = _DATA.search(body)
    if begins is None or begins.end() > _MAX_TEXT_BYTES:
        return None
    begin = begins.end()
    try:
        data, size = json.JSONDecoder().raw_decode(body[begin:].decode())
        before, after = body[:begin], body[begin + size :]
        if len(after) > _MAX_TEXT_BYTES:
            return None
        whole, around = (
            jsons.loads(body),
            jsons.loads(b"%b%b%b" % (before, json.dumps(_HOLE).encode(), after)),
        )
    except (ValueError, RecursionError):
        return None
    # The key may have stood elsewhere (this input lies in shared memory), or come twice: then the hole is
    # elsewhere, or does not show.
    (item,) = whole["inputs"]
    if "data" not in item or item["data"] != data or around["inputs"][0].get("data") != _HOLE:
        return None
    item["data"] = _HOLE
    return (before, after) if whole == around else None


def _numbers(array: Array) -> bytes:
    try:
        return jsons.dumps(jsons.numbers(array))
    except ValueError:
        raise NotFinite from None
