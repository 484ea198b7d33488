"""A budget for what costs a server work and brings a client nothing: floods run out of it.

It covers the attacks that RFC 9113 section 10.5 lists (empty frames, small windows, settings, pings,
priority) and those found since: rapid reset (CVE-2023-44487), resets that the server is provoked into
(CVE-2025-8671), CONTINUATION (CVE-2024-27983 and its kin). Useful work and time fill it again.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.h2.errors import ENHANCE_YOUR_CALM, H2Error

CAPACITY = 1000.0
REFILL_PER_S = 200.0

# Costs. A burst may be CAPACITY / cost, a steady stream REFILL_PER_S / cost per second.
RESET = 5
REFUSED = 5
FAULT = 10
SETTINGS = 10
EMPTY = 10
PING = 2
SMALL = 1
WINDOW = 1
OTHER = 1
HEADER_POINT = 2048
"""Octets of a header block that cost a point."""
# Gains.
ANSWER = 10
SENT_PER_POINT = 4096


class Guard:
    """`spend` raises H2Error with ENHANCE_YOUR_CALM when the budget is used up."""

    __slots__ = ("_now", "left")

    def __init__(self, now: float) -> None:
        self.left = CAPACITY
        self._now = now

    def tick(self, now: float) -> None:
        """`now` in seconds, never falling."""
        if self.left < CAPACITY:
            left = self.left + (now - self._now) * REFILL_PER_S
            self.left = left if left < CAPACITY else CAPACITY
        self._now = now

    def spend(self, cost: int, what: str) -> None:
        self.left -= cost
        if self.left < 0:
            raise H2Error(ENHANCE_YOUR_CALM, f"too many {what}")

    def earn(self, points: int) -> None:
        left = self.left + points
        self.left = left if left < CAPACITY else CAPACITY
