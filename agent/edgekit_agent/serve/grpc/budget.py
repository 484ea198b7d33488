"""Memory for messages that are on their way in, within the shares of all clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgekit_agent.serve.shares import Share, Shares


@dataclass(eq=False, slots=True)
class Lease:
    """Octets that a message may occupy beyond a stream's first window."""

    share: Share
    octets: int
    granted: Callable[[int], None]
    """Called once, with `octets`, when they are free; perhaps at once."""
    held: bool = False
    ended: bool = False


class Budget:
    """Who asks first gets first, but nobody waits for a client that has its share already.

    Flow control does the waiting: a client that is not granted octets cannot send them (RFC 9113
    section 5.2.1), so waiting costs no memory.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._waiting: list[Lease] = []

    def ask(self, share: Share, octets: int, granted: Callable[[int], None]) -> Lease:
        """`octets` is no more than one client may have."""
        lease = Lease(share, octets, granted)
        self._waiting.append(lease)
        self.serve()
        return lease

    def end(self, lease: Lease) -> None:
        """The octets are free again, or are not wanted any more. May be called twice."""
        if lease.ended:
            return
        lease.ended = True
        if lease.held:
            self._shares.release(lease.share, lease.octets)
            self.serve()
        else:
            self._waiting.remove(lease)

    def serve(self) -> None:
        """Grant what there is memory for; called now and then as well, for others use the same memory."""
        for lease in list(self._waiting):
            if lease.ended or lease.held:
                continue
            if self._shares.full(lease.octets):
                return  # who is first stays first, or small ones would starve it
            if self._shares.hold(lease.share, lease.octets):
                self._waiting.remove(lease)
                lease.held = True
                lease.granted(lease.octets)
