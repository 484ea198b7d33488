"""Infer requests over gRPC that repeat, as serve/templates.py has them for HTTP.

The memory is bounded, and a hit means what parsing would have found: patterns.py says why.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np

from edgekit.runtimes import Array
from edgekit_agent.serve.core import Prepared, prepare
from edgekit_agent.serve.grpc.patterns import Octets, Pattern
from edgekit_agent.serve.infer import PACKED_BYTES, Layout
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model

KEPT_ANSWERS = 64
"""Shapes and releases that a template remembers."""
_KEPT = 16
_SLICED = 4096  # cutting out fewer octets is cheaper than seeing to their alignment

Tensor = tuple[str, np.dtype[Any], tuple[int, ...], int, int]
"""Name, data type and shape of an input, and where its octets begin and end, from the message's end."""


class Template:
    """A request without its tensors' octets. Subclasses add what their protocol has beside them."""

    __slots__ = ("_fits", "_layout", "pattern", "tensors")

    def __init__(self, pattern: Pattern, tensors: tuple[Tensor, ...]) -> None:
        self.pattern = pattern
        self.tensors = tensors
        # Samples of such a request by Model.number, where the model takes the tensors as they are.
        self._fits: dict[int, int] = {}
        name, dtype, shape, start, stop = tensors[0]
        single = len(tensors) == 1 and stop - start <= PACKED_BYTES
        self._layout = Layout(name, dtype, shape) if single else None

    def prepare(self, model: Model, message: Octets, limits: Limits) -> Prepared:
        """As infer.prepare does it. Raises InputError."""
        end, samples = len(message), self._fits.get(model.number)
        if samples is not None and self._layout is not None:
            _, _, _, start, stop = self.tensors[0]
            return Prepared(None, samples, None, bytes(message[end + start : end + stop]), self._layout)
        arrays: dict[str, Array] = {}
        for name, dtype, shape, start, stop in self.tensors:
            if stop - start <= _SLICED:  # octets that are cut out are aligned
                arrays[name] = np.ndarray(shape, dtype, bytes(message[end + start : end + stop]))
            else:
                array: Array = np.ndarray(shape, dtype, message, end + start)
                arrays[name] = array if array.flags.aligned else array.copy()
        if samples is not None:
            return Prepared(arrays, samples)
        prepared = prepare(model, arrays, limits)
        if len(self._fits) < KEPT_ANSWERS and prepared.inputs is arrays:
            self._fits[model.number] = prepared.samples
        return prepared


T = TypeVar("T", bound=Template)


class Templates(Generic[T]):
    """The last few, the latest first. On the event loop."""

    def __init__(self) -> None:
        self.known: list[T] = []

    def find(self, message: Octets) -> tuple[T, bytes] | None:
        """With what the pattern's field of variable size holds."""
        known = self.known
        for template in known:
            found = template.pattern.fits(message)
            if found is not None:
                if template is not known[0]:
                    known.remove(template)
                    known.insert(0, template)
                return template, found
        return None

    def keep(self, template: T) -> None:
        self.known = [template, *self.known[: _KEPT - 1]]
