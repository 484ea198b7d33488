"""Header blocks: HEADERS with their CONTINUATION frames put together, decoded, remembered.

RFC 9113 sections 4.3, 6.2 and 6.10.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.h2 import frames, guard, head, hpack
from edgekit_agent.serve.grpc.h2.errors import (
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    PROTOCOL_ERROR,
    H2Error,
    StreamError,
)

_MAX_FRAMES = 32
_MEMO_ENTRIES, _MEMO_BLOCK = 64, 1024


class Blocks:
    """At most one block is incomplete; everything that is kept is bounded by the arguments.

    A client repeats itself: a block that leaves the dynamic table as it was means the same the next time,
    as long as the table stays so, and is decoded once.
    """

    def __init__(
        self, points: guard.Guard, max_block_bytes: int, max_list_bytes: int, max_fields: int
    ) -> None:
        self.stream = 0
        """Whose CONTINUATION must come next; 0 when none."""
        self._guard = points
        self._max_bytes = max_block_bytes
        self.decoder = hpack.Decoder(max_list_bytes, max_fields)
        self._parts: list[bytes] = []
        self._bytes = 0
        self._last = False
        self._memo: dict[bytes, head.Head] = {}
        self._memo_changes = 0

    def headers(self, flags: int, number: int, payload: bytes) -> bytes | None:
        """A HEADERS frame; the block when it is complete. Raises H2Error."""
        start, end = 0, len(payload)
        if flags & frames.PADDED:
            if not payload:
                raise H2Error(FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
            start, end = 1, end - payload[0]
        if flags & frames.PRIORITY_FLAG:
            start += 5
        if start > end:
            raise H2Error(PROTOCOL_ERROR, "padding longer than its frame")
        block = payload[start:end] if start or end != len(payload) else payload
        if flags & frames.END_HEADERS:
            return block
        self.stream, self._last = number, bool(flags & frames.END_STREAM)
        self._parts, self._bytes = [block], len(block)
        return None

    def continuation(self, flags: int, payload: bytes) -> tuple[bytes, bool] | None:
        """A CONTINUATION frame; block and END_STREAM of its HEADERS when complete. Raises H2Error."""
        if not self.stream:
            raise H2Error(PROTOCOL_ERROR, "CONTINUATION without a header block")
        if not payload:
            self._guard.spend(guard.EMPTY, "empty frames")
        self._parts.append(payload)
        self._bytes += len(payload)
        if self._bytes > self._max_bytes or len(self._parts) > _MAX_FRAMES:
            raise H2Error(ENHANCE_YOUR_CALM, "a header block is too long")
        if not flags & frames.END_HEADERS:
            return None
        block = b"".join(self._parts)
        self.stream, self._parts = 0, []
        return block, self._last

    def known(self, block: bytes) -> head.Head | None:
        """What a block says that has come before and means the same now."""
        if self.stream or self._memo_changes != self.decoder.changes:
            return None
        return self._memo.get(block)

    def request(self, block: bytes, number: int) -> head.Head | None:
        """What a block says; None when it is larger than allowed. Raises H2Error, StreamError."""
        before = self.decoder.changes
        if self._memo_changes == before and (known := self._memo.get(block)) is not None:
            return known
        fields = self._decode(block)
        if fields is None:
            return None
        try:
            request = head.parse(fields)
        except head.Malformed as exc:
            raise StreamError(number, PROTOCOL_ERROR, str(exc)) from None
        if self.decoder.changes == before and len(block) <= _MEMO_BLOCK:
            if self._memo_changes != before or len(self._memo) >= _MEMO_ENTRIES:
                self._memo.clear()
                self._memo_changes = before
            self._memo[block] = request
        return request

    def trailers(self, block: bytes, number: int) -> None:
        """Check a block that ends a request. Raises H2Error, StreamError."""
        fields = self._decode(block)
        try:
            head.check_trailers(fields or [])
        except head.Malformed as exc:
            raise StreamError(number, PROTOCOL_ERROR, str(exc)) from None

    def skip(self, block: bytes) -> None:
        """Decode for the table's sake. Raises H2Error."""
        self._decode(block)

    def _decode(self, block: bytes) -> list[hpack.Field] | None:
        if len(block) >= guard.HEADER_POINT:
            self._guard.spend(len(block) // guard.HEADER_POINT, "large headers")
        return self.decoder.decode(block)
