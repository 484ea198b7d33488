"""What a release sees and answers, held against the reference in its certificate.

Ten times a second at most one request is looked at, whichever comes then: up to 256 values of each input,
evenly spread, are counted into the reference's bins, and so are the answers. The rest costs a look at the
clock.

An index is the population stability index sum((q - p) ln(q / p)) over bins, p the reference's share of a bin
and q the share among the rows looked at last (runtimes/_drift.py). Counts only grow; a mark is set every
WINDOW rows and the counts at the mark before the last are taken away: the index is that of the last WINDOW
to 2 WINDOW rows, and what came before is forgotten. Rows, not minutes, because fewer rows prove nothing: 500
of them differ from their own distribution by 9/500 = 0.02 on average in ten bins (Yurdakul 2018), the worst
of two dozen columns by 0.05, and nothing is said before there are as many. At ten a second that takes a
minute.

All of it happens on the event loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from edgekit.bundle.model import Reference, VariantConfig
from edgekit.errors import FormatError
from edgekit.runtimes import Array
from edgekit.runtimes._drift import Table, check, tables
from edgekit.runtimes._golden import classes

INTERVAL_S = 0.1
VALUES = 256
WINDOW = 500
_GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples modulo 1 fill an interval evenly, however many there are (Weyl's equidistribution)."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shift:
    """How far one input or output is from its reference."""

    tensor: str
    psi: float
    column: int = -1
    """Where that is, for a tensor of columns; -1: the whole tensor."""


class Window:
    """The histogram of one tensor."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.rows = 0
        self.total = np.zeros(table.real.shape, np.int64)
        """Ever since; those of two sketches add up."""
        self._before = self._last = np.zeros_like(self.total)
        self._marked = 0

    def look(self, array: Array, turn: int) -> None:
        """Count some of the values; `turn` says which, so that in the long run it is all of them."""
        if self.table.columns:
            values = _spread(array, len(array), VALUES // len(self.table.columns) or 1, turn)
            values = values[:, self.table.columns]
            rows = len(values)
        else:
            values = _spread(array.flat, array.size, VALUES, turn).reshape(-1, 1)
            rows = min(len(values), len(array) if array.ndim else 1)
        self.total += self.table.count(values)
        self.rows += rows
        if self.rows - self._marked >= WINDOW:
            self._before, self._last, self._marked = self._last, self.total.copy(), self.rows

    def shift(self) -> Shift | None:
        """The worst column; None while too little was seen."""
        if self.rows < WINDOW:
            return None
        found = self.table.psi(self.total - self._before)
        worst = int(np.argmax(found))
        column = self.table.columns[worst] if self.table.columns else -1
        return Shift(self.table.tensor, round(float(found[worst]), 4), column)


class Sketch:
    """Of one release. Raises FormatError for a reference that is not one of the variant."""

    def __init__(self, reference: Reference, config: VariantConfig) -> None:
        check(reference, config)
        self.reference = reference
        self.due = 0.0
        """time.monotonic() from which the next request is to be looked at."""
        self.requests = 0
        """That were looked at."""
        self._inputs = [Window(table) for table in tables(reference.inputs, reference.rows)]
        self._outputs = [Window(table) for table in tables(reference.outputs, reference.rows)]
        answer = (reference.classes,) if reference.classes is not None else ()
        self._classes = [Window(table) for table in tables(answer, reference.rows)]

    def look(
        self,
        inputs: Sequence[Mapping[str, Array]],
        results: Sequence[Mapping[str, Array] | Exception],
    ) -> None:
        """At one of the requests that ran together, each one in its turn. Never raises."""
        self.due = monotonic() + INTERVAL_S
        at = self.requests % len(inputs)
        outputs = results[at]
        if isinstance(outputs, Exception):
            return
        self.requests += 1
        try:
            for window in self._inputs:
                window.look(inputs[at][window.table.tensor], self.requests)
            for window in self._outputs:
                window.look(outputs[window.table.tensor], self.requests)
            for window in self._classes:
                window.look(classes(outputs[window.table.tensor]), self.requests)
        except Exception as exc:  # requests must not suffer; the same would go wrong with the next one
            self.due = math.inf
            _log.error("drift is no longer watched: %s: %s", type(exc).__name__, exc)

    def inputs(self) -> list[Shift]:
        """One per input of which enough was seen."""
        return list(_shifts(self._inputs))

    def outputs(self) -> list[Shift]:
        """The same of outputs, of their values or of the classes that they stand for."""
        return list(_shifts([*self._outputs, *self._classes]))

    @property
    def rows(self) -> int:
        """Rows that were looked at, of the tensor of which it was most."""
        return max((one.rows for one in (*self._inputs, *self._outputs, *self._classes)), default=0)


def sketch(reference: Reference | None, config: VariantConfig, before: Sketch | None) -> Sketch | None:
    """For a release that is loaded; `before`, of an earlier load, goes on where the reference is the same.
    None where there is no reference, or a wrong one: that is no reason not to serve."""
    if reference is None:
        return None
    if before is not None and before.reference == reference:
        return before
    try:
        return Sketch(reference, config)
    except FormatError as exc:
        _log.error("drift is not watched: %s", exc)
        return None


def largest(found: Sequence[Shift]) -> float | None:
    """None where nothing is known."""
    return max((one.psi for one in found), default=None)


def _shifts(windows: Sequence[Window]) -> Iterator[Shift]:
    for window in windows:
        if (found := window.shift()) is not None:
            yield found


def _spread(values: Array | np.flatiter[Array], size: int, most: int, turn: int) -> Array:
    """Every so many-th of `size` values or rows, `most` at most, from another one each turn on. The step is
    odd and does not fall into step with channels and rows of even sizes."""
    step = -(-size // most) | 1
    return np.asarray(values[int(turn * _GOLDEN % 1 * min(step, size)) :: step])
