"""How often serving crashed lately, and how it ended."""

from __future__ import annotations

import signal

CALM_S = 60.0
"""Crashes that are further apart have nothing to do with each other."""
AT_ONCE = 5
"""So many crashes in CALM_S are answered at once; the next ones wait, longer each time."""
LONGEST_WAIT_S, LONGEST_WAIT_SERVED_S = 5.0, 0.5


class Crashes:
    """Of the last minute."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def count(self, now: float) -> int:
        self._times = [one for one in self._times if now - one < CALM_S][-16:]
        return len(self._times)

    def add(self, now: float, *, served: bool = False) -> float:
        """Note one more; seconds to wait before the next try. `served`: until then it had answered, so that
        some request is to blame and the others should not wait long."""
        self._times.append(now)
        beyond = self.count(now) - AT_ONCE
        longest = LONGEST_WAIT_SERVED_S if served else LONGEST_WAIT_S
        return min(longest, 0.1 * 2.0**beyond) if beyond > 0 else 0.0

    def clear(self) -> None:
        self._times.clear()


def how(status: int | None) -> str:
    """How a process ended, for people."""
    if status is None:
        return "it was ended"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
