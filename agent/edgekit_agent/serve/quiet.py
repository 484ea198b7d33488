"""When nobody has asked for a while, and what load has left in the heap may go back to the system. Pure."""

from __future__ import annotations

QUIET_S = 10.0
"""The first run afterwards takes 3 ms longer (measured for a network that had 30 MiB to give back)."""
NOBODY_S = 1.0
"""So long is enough where no client is connected: nobody waits."""


class Quiet:
    """Asked now and then; True once after each load, the first of which is the beginning."""

    def __init__(self, now: float) -> None:
        self._answered = 0
        self._since = now
        self.tidy = False
        """Nothing was done since memory was given back."""

    def look(self, now: float, answered: int, connections: int) -> bool:
        """`answered`: requests so far, or any other count of work; `connections`: open ones; `now` in
        seconds, on any clock."""
        if answered != self._answered:
            self._answered, self._since, self.tidy = answered, now, False
        if self.tidy or now - self._since < (QUIET_S if connections else NOBODY_S):
            return False
        self.tidy = True
        return True
