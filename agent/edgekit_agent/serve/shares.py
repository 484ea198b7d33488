"""Fair shares: what one client holds of connections, waiting requests and buffered bytes.

A client is a token, else an address, else the process behind a Unix socket. It may have everything that
nobody else wants but the last quarter, so that the next one always finds room; when that quarter is
reached, clients that are active together keep what does not exceed an equal part, and whoever has more is
told to come back. Nothing is queued here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ACTIVE_S = 2.0
"""A client counts as active for so long after its last request."""
_COUNT_S = 0.05
_SMALLEST_QUEUE = 4


@dataclass(eq=False, slots=True)
class Share:
    """Of one client, for as long as it has a connection or something in flight."""

    key: str
    connections: int = 0
    requests: int = 0
    """Asked and not answered."""
    buffered: int = 0
    """Bytes of large bodies that have come and are not answered."""
    asked: float = float("-inf")
    """When it last asked, on the loop's clock."""
    turn: int = 0
    """On the clock of `Turns`: when its next request may be served."""


class Turns:
    """In which order requests that wait are served: start-time fair queuing.

    A client's requests are served one after the other, and between two of them everybody else who waits gets
    a turn; a request of many samples counts as many turns. Who is alone notices nothing.
    P. Goyal, H. M. Vin, H. Cheng: Start-time fair queueing, IEEE/ACM Transactions on Networking 5 (1997).
    """

    def __init__(self) -> None:
        self.asking: Share | None = None
        """Whose request is being taken; set around the call that hands it to a protocol."""
        self._now = 0
        self._nobody = Share("")

    def stamp(self, share: Share | None, samples: int) -> int:
        """The turn of a request that comes now: the smallest is next."""
        share = share or self._nobody
        turn = max(self._now, share.turn)
        share.turn = turn + samples
        return turn

    def served(self, turn: int) -> None:
        """A request with this turn has begun."""
        self._now = max(self._now, turn)


class Shares:
    """On the event loop."""

    def __init__(
        self, max_connections: int, max_queue: int, max_buffered: int, waiting: Callable[[], int]
    ) -> None:
        """`waiting`: inference requests of all clients that wait for the engine now."""
        self._max_connections = max_connections
        self._max_queue = max_queue
        # A queue without a quarter is left to the core, which refuses everybody alike.
        self._tight = _but_a_quarter(max_queue) if max_queue >= _SMALLEST_QUEUE else max_queue + 1
        self._max_buffered = max_buffered
        self._waiting = waiting
        self._known: dict[str, Share] = {}
        self._buffered = 0
        self._active = 0
        self._counted = float("-inf")

    def join(self, key: str) -> Share:
        """One connection more of the client `key`; whether that is too many is `crowded`."""
        share = self._known.get(key)
        if share is None:
            share = self._known[key] = Share(key)
        share.connections += 1
        return share

    def leave(self, share: Share) -> None:
        share.connections -= 1
        self._forget(share)

    def crowded(self, share: Share) -> bool:
        """Whether it holds more connections than one client may."""
        return share.connections > _but_a_quarter(self._max_connections)

    def begin(self, share: Share, now: float) -> bool:
        """Count a request; False (and not counted) when others need the room."""
        share.asked = now
        if self._waiting() >= self._tight and share.requests >= self._part(now):
            return False
        share.requests += 1
        return True

    def end(self, share: Share) -> None:
        share.requests -= 1
        self._forget(share)

    def hold(self, share: Share, size: int) -> bool:
        """Count `size` bytes of a body; False (and not counted) when there is no room for them."""
        if self.full(size) or share.buffered + size > _but_a_quarter(self._max_buffered):
            return False
        share.buffered += size
        self._buffered += size
        return True

    def full(self, size: int) -> bool:
        """Whether nobody could hold so many bytes more."""
        return self._buffered + size > self._max_buffered

    def release(self, share: Share, size: int) -> None:
        share.buffered -= size
        self._buffered -= size
        self._forget(share)

    def _part(self, now: float) -> int:
        """Requests that a client keeps when it gets tight; one that is alone leaves as much as it has."""
        if now - self._counted > _COUNT_S:
            self._counted = now
            self._active = sum(1 for one in self._known.values() if now - one.asked < ACTIVE_S)
        return max(1, self._max_queue // max(2, self._active))

    def _forget(self, share: Share) -> None:
        if not share.connections and not share.requests and not share.buffered:
            self._known.pop(share.key, None)


def _but_a_quarter(total: int) -> int:
    return total - total // 4
