"""Whether short runs stay on the event loop, which they block, or take a thread, which costs more."""

from __future__ import annotations

_SLOW = 2.0
"""Times the limit that a run on the loop may take before the next ones go elsewhere."""
_AWAY, _LONGEST_AWAY = 32, 4096
_TRUSTED = 1024


class Inline:
    """One model's. A model that is fast by measurement may be slow on some data: after such a run the next
    ones take the thread, until so many in a row were short; the more often that happens, the more."""

    def __init__(self, limit_ms: float) -> None:
        self._limit_ms = limit_ms
        self._left = 0  # short runs that are still wanted on the thread
        self._away = _AWAY  # of them, after the next slow one
        self._good = 0  # runs on the loop since the last slow one

    def allows(self, estimate_ms: float) -> bool:
        """Whether a run that should take so long may block the loop."""
        return not self._left and estimate_ms < self._limit_ms

    def blocked(self, ms: float) -> None:
        """A run on the loop took so long."""
        if ms > _SLOW * self._limit_ms:
            self._left, self._good = self._away, 0
            self._away = min(2 * self._away, _LONGEST_AWAY)
        elif self._away > _AWAY:
            self._good += 1
            if self._good >= _TRUSTED:
                self._away = _AWAY

    def passed(self, ms: float) -> None:
        """A run on the thread took so long."""
        if self._left:
            self._left = self._left - 1 if ms < self._limit_ms else max(self._left, _AWAY)
