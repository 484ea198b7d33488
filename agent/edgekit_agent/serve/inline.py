"""Whether short runs stay on the event loop, which they block, or take a thread, which costs more."""

from __future__ import annotations

import time

_MANY, _MANY_TIMES = 8, 2.0
"""Where so many requests share a run the loop has as much to do for them as the engine, and a thread beside
it would fight for the interpreter: the limit is twice what it is otherwise. (Measured with 32 connections to
the mlp of benchmarks/nets.py: .052 CPU-ms a request instead of .057, and 4 % more of them.)"""
_ALONE_TIMES = 50.0
"""While one request is all there is, on the only connection: nobody waits but who connects in that moment.
(The cnn there, 11.3 ms: 0.1 to 0.2 ms sooner answered over HTTP.)"""
_PROVEN = 256
"""Runs on the thread before that, none of which hung: from there a request that hangs is told so."""
_SLOW = 4.0
"""Times the limit, or the estimate where that is longer, that a run on the loop may take before the next ones
go elsewhere: processor time, for on a busy machine every run is interrupted now and then."""
_SHORT = 2.0
"""Times the same that a run on the thread may take, for them to come back."""
_STUCK_MS = 50.0
"""Whatever it did meanwhile."""
_WATCHED = 64
"""Runs whose processor time is looked at after a slow one; reading that clock takes 2 us."""
_AWAY, _LONGEST_AWAY = 32, 4096
_TRUSTED = 1024


class Inline:
    """One model's. A model that is fast by measurement may be slow on some data: after such a run the next
    ones take the thread, until so many in a row were short; the more often that happens, the more."""

    def __init__(self, limit_ms: float) -> None:
        self._limit_ms = limit_ms
        self._usual_ms = limit_ms  # what the last run that was asked for may take without remark
        self._left = 0  # short runs that are still wanted on the thread
        self._away = _AWAY  # of them, after the next slow one
        self._good = 0  # runs on the loop since the last slow one
        self._watched = 0
        self._proven = 0  # short runs on the thread, in all

    def allows(self, estimate_ms: float, requests: int, *, alone: bool = False) -> bool:
        """Whether a run of so many requests that should take so long may block the loop.

        `alone`: nobody else is there.
        """
        alone = alone and self._proven >= _PROVEN
        times = _ALONE_TIMES if alone else _MANY_TIMES if requests >= _MANY else 1.0
        self._usual_ms = max(self._limit_ms, estimate_ms)
        return not self._left and estimate_ms < self._limit_ms * times

    def begin(self) -> int:
        """Before a run on the loop; for `blocked`."""
        return time.thread_time_ns() if self._watched else 0

    def blocked(self, ms: float, begun: int) -> None:
        """A run on the loop took so long since `begin`."""
        if ms > _SLOW * self._usual_ms:
            self._slow(ms, begun)
        elif self._watched:
            self._watched -= 1
        elif self._away > _AWAY:
            self._good += 1
            if self._good >= _TRUSTED:
                self._away = _AWAY

    def _slow(self, ms: float, begun: int) -> None:
        worked_ms = (time.thread_time_ns() - begun) / 1e6 if begun else 0.0
        self._watched = _WATCHED
        if ms > _STUCK_MS or worked_ms > _SLOW * self._usual_ms:
            self._left, self._good = self._away, 0
            self._away = min(2 * self._away, _LONGEST_AWAY)

    def passed(self, ms: float) -> None:
        """A run on the thread took so long."""
        short = ms < _SHORT * self._usual_ms
        self._proven += short
        if self._left:
            self._left = self._left - 1 if short else max(self._left, _AWAY)
