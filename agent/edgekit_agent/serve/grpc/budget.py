"""Memory for messages that are on their way in, shared by all connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Lease:
    """Octets that a message may occupy beyond a stream's first window."""

    owner: object
    octets: int
    granted: Callable[[int], None]
    """Called once, with `octets`, when they are free; perhaps at once."""
    held: bool = False
    ended: bool = False


class Budget:
    """Who asks first gets first, but one owner never holds more than half while others wait or may come.

    Flow control does the waiting: a client that is not granted octets cannot send them (RFC 9113
    section 5.2.1), so waiting costs no memory.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._held: dict[object, int] = {}
        self._waiting: list[Lease] = []

    @property
    def free(self) -> int:
        return self._free

    def ask(self, owner: object, octets: int, granted: Callable[[int], None]) -> Lease:
        """`octets` is at most half of the total."""
        lease = Lease(owner, octets, granted)
        self._waiting.append(lease)
        self._serve()
        return lease

    def end(self, lease: Lease) -> None:
        """The octets are free again, or are not wanted any more. May be called twice."""
        if lease.ended:
            return
        lease.ended = True
        if not lease.held:
            self._waiting.remove(lease)
            return
        self._free += lease.octets
        left = self._held[lease.owner] - lease.octets
        if left:
            self._held[lease.owner] = left
        else:
            del self._held[lease.owner]
        self._serve()

    def _serve(self) -> None:
        for lease in list(self._waiting):
            if lease.ended or lease.held:
                continue
            holds = self._held.get(lease.owner, 0)
            if lease.octets > self._free:
                return  # who is first stays first, or small ones would starve it
            if holds + lease.octets > self._total // 2:
                continue
            self._waiting.remove(lease)
            self._free -= lease.octets
            self._held[lease.owner] = holds + lease.octets
            lease.held = True
            lease.granted(lease.octets)
