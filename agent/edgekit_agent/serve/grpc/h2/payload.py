"""The payload of a frame that is handed on as it comes in: DATA, or one that is not understood."""

from __future__ import annotations

from edgekit_agent.serve.grpc.h2.sink import Chunk, Sink
from edgekit_agent.serve.grpc.h2.stream import Stream

_VIEW_FROM = 8192  # copying fewer octets is cheaper than a view of them


class Payload:
    """Of one frame at a time."""

    __slots__ = ("_left", "_pad", "coming", "into", "last")

    def __init__(self) -> None:
        self.coming = False
        """Whether some of it is still to come."""
        self.into: Stream | None = None
        """Whose body it is; None: it is thrown away."""
        self.last = False
        """Whether its frame ends the stream."""
        self._left = self._pad = 0

    def begin(self, size: int, pad: int, *, last: bool) -> None:
        """The next `size` octets and `pad` more are thrown away, unless `into` becomes a stream."""
        self.coming = bool(size or pad)
        self._left, self._pad, self.last, self.into = size, pad, last, None

    def take(self, sink: Sink, data: bytes, pos: int, end: int) -> int:
        """Hand on what has come; returns where the rest of `data` begins."""
        taken = min(self._left, end - pos)
        self._left -= taken
        into = self.into
        if taken and into is not None and not into.closed:
            into.received += taken
            into.coming -= taken
            whole: Chunk = memoryview(data) if taken >= _VIEW_FROM else data
            sink.on_data(into, whole[pos : pos + taken])
        pos += taken
        skipped = min(self._pad, end - pos)
        self._pad -= skipped
        self.coming = bool(self._left or self._pad)
        return pos + skipped
