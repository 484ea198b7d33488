"""Measuring a model while it serves: one run now and then, between those of requests.

Readiness does not wait for figures. Nine tenths of the time belong to requests however busy they are, and one
that comes meanwhile waits for a single run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._pace import Pace, Ran, Step, Trials
from edgekit_agent.serve.model import Model

LONGEST_MS = 250.0
"""No joined run is tried that should take longer: somebody may wait for it."""
AFTER_S = 0.5
"""First answers come first."""
_SHARE = 9.0  # times what a run took, until the next


class Tryout:
    """The runs of `trials`, one by one. On the event loop, but for `run`."""

    def __init__(self, model: Model, made: Trials, due: Callable[[], None]) -> None:
        """`due` is called when the next run may be made."""
        self._model, self._made, self._announce = model, made, due
        self._inputs: dict[str, Array] = next(made)
        self._loop = asyncio.get_running_loop()
        self.due = False
        self._timer = self._loop.call_later(AFTER_S, self._wake)

    def run(self) -> tuple[Pace | None, float]:
        """Make one run: the pace, if that is all, and the seconds until the next. On a thread of the model.

        Raises what the engine raises when not even one sample runs.
        """
        begin = time.perf_counter()
        try:
            outputs = self._model.session.run(self._inputs)
        except EngineError as exc:
            step = Step.failed(self._made, exc)
        else:
            step = Step.ran(self._made, Ran(outputs, (time.perf_counter() - begin) * 1e3))
        self._inputs = step.inputs
        return step.pace, _SHARE * (time.perf_counter() - begin)

    def again(self, wait_s: float) -> None:
        self.due = False
        self._timer = self._loop.call_later(wait_s, self._wake)

    def stop(self) -> None:
        self._timer.cancel()
        self.due = False

    def _wake(self) -> None:
        self.due = True
        self._announce()
