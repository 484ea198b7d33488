"""What one connection has of its client's share: its place, its buffered bytes, the request in hand."""

from __future__ import annotations

from edgekit_agent.serve.shares import Share, Shares


class Claim:
    """From the connection's opening to its end; afterwards it only gives back."""

    __slots__ = ("_asked_for", "_held", "_shares", "share")

    def __init__(self, shares: Shares, key: str) -> None:
        """`key`: whose connection it is."""
        self._shares = shares
        self.share = shares.join(key)
        self._held = 0
        self._asked_for: Share | None = None  # whose share the request in hand counts in

    def close(self) -> None:
        """The connection is closed; a request in hand still counts until `end`."""
        self.drop()
        self._shares.leave(self.share)

    def follow(self, key: str) -> None:
        """A token says who the client is: that one's share counts from now on. Nothing may be in hand."""
        if key != self.share.key:
            self._shares.leave(self.share)
            self.share = self._shares.join(key)

    # --- the body that is coming

    def grow(self, size: int) -> bool:
        """Count the body's `size` bytes so far; False when there is no room for them."""
        if not self._shares.hold(self.share, size - self._held):
            return False
        self._held = size
        return True

    def pass_on(self) -> int:
        """The body is complete: whoever has it lets go of so many bytes later."""
        held, self._held = self._held, 0
        return held

    def drop(self) -> None:
        """The body will not be complete."""
        self.let_go(self.pass_on())

    def let_go(self, size: int) -> None:
        if size:
            self._shares.release(self.share, size)

    # --- the request in hand

    def begin(self, now: float) -> bool:
        """Count a request; False when its client may not ask that now."""
        if not self._shares.begin(self.share, now):
            return False
        self._asked_for = self.share
        return True

    def end(self) -> None:
        """It is answered."""
        if self._asked_for is not None:
            self._shares.end(self._asked_for)
            self._asked_for = None
