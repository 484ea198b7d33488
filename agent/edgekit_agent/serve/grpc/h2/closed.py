"""Streams that we have closed and whose frames may still come (RFC 9113 section 5.1)."""

from __future__ import annotations

from collections import OrderedDict

LINGER_S = 1.0
"""How long a client that was answered early may go on before it is told to stop. Section 8.1 would let us
say so at once, but some clients (curl until 8.x) then throw away the answer that they have not read yet."""
_REMEMBERED = 512
_LINGERING = 128


class Closed:
    """The numbers of the latest; older ones are forgotten."""

    def __init__(self) -> None:
        self._forgiven: OrderedDict[int, None] = OrderedDict()
        self._lingering: OrderedDict[int, float] = OrderedDict()

    def __contains__(self, number: int) -> bool:
        return number in self._forgiven

    def __len__(self) -> int:
        return len(self._forgiven)

    def add(self, number: int) -> None:
        """Was reset by us: what was on its way is forgiven."""
        self._forgiven[number] = None
        if len(self._forgiven) > _REMEMBERED:
            self._forgiven.popitem(last=False)

    def linger(self, number: int, now: float) -> None:
        """Was answered before the client had ended its side."""
        self.add(number)
        self._lingering[number] = now

    def ended(self, number: int) -> None:
        """The client has ended its side."""
        self._lingering.pop(number, None)

    def overdue(self, now: float) -> list[int]:
        """Those that are to be told to stop, each once."""
        found: list[int] = []
        while self._lingering:
            number, since = next(iter(self._lingering.items()))
            if now - since < LINGER_S and len(self._lingering) <= _LINGERING:
                break
            del self._lingering[number]
            found.append(number)
        return found
