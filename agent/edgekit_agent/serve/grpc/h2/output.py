"""What goes to the peer: frames, and the flow control that holds them back (RFC 9113 section 5.2)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from edgekit_agent.serve.grpc.h2 import frames, guard
from edgekit_agent.serve.grpc.h2.errors import FLOW_CONTROL_ERROR, PROTOCOL_ERROR, H2Error, StreamError
from edgekit_agent.serve.grpc.h2.hpack import NO_TABLE
from edgekit_agent.serve.grpc.h2.sink import Chunk
from edgekit_agent.serve.grpc.h2.stream import Stream

HIGH_WATER = 256 * 1024
"""Octets of frames made ahead of what the transport takes."""
_KEPT = 256
_NUMBER = 5  # where a stream's number is in a frame's head


class Around:
    """The header blocks around a body, which ends with `trailers`, as frames but for the stream's number."""

    __slots__ = ("block", "first", "last", "leads", "octets", "trailers")

    def __init__(self, block: bytes, trailers: bytes) -> None:
        """Both are shorter than the smallest frame size that a peer can ask for."""
        self.block, self.trailers = block, trailers
        self.first = frames.head(frames.HEADERS, frames.END_HEADERS, 0, len(block))[:_NUMBER]
        flags = frames.END_HEADERS | frames.END_STREAM
        self.last = frames.head(frames.HEADERS, flags, 0, len(trailers))[:_NUMBER]
        self.leads: dict[int, bytes] = {}
        """Made by `lead`, by size."""
        self.octets = len(block) + len(trailers) + 3 * frames.HEAD_BYTES

    def lead(self, size: int) -> bytes:
        """The header's block, and the beginning of a DATA frame of `size` octets."""
        made = self.block + frames.head(frames.DATA, 0, 0, size)[:_NUMBER]
        if len(self.leads) < _KEPT:
            self.leads[size] = made
        return made


class Output:
    """Frames to send. DATA goes out one frame per stream in turn, as far as the peer's windows reach.

    `ended` is called when a stream's END_STREAM is among the frames to send.
    """

    def __init__(self, points: guard.Guard, ended: Callable[[Stream], None]) -> None:
        self.window = frames.DEFAULT_WINDOW
        self.initial_window = frames.DEFAULT_WINDOW
        self.frame_size = frames.DEFAULT_FRAME
        self.waiting: dict[int, Stream] = {}
        """Streams with something pending, in the order of their turns."""
        self.pending_bytes = 0
        """Of all streams."""
        self._guard = points
        self._ended = ended
        self._out: list[Chunk] = []
        self.queued = 0
        """Octets of them."""
        self._first_block = True

    @property
    def empty(self) -> bool:
        return not self._out

    def take(self) -> bytes:
        """All that may be sent now."""
        out = self._out
        if not out:
            return b""
        self._out = []
        self.queued = 0
        return b"".join(out)

    def put(self, data: bytes) -> None:
        """Whole frames that are under no flow control."""
        self._out.append(data)
        self.queued += len(data)

    def headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """A header block; longer ones are cut into CONTINUATION frames."""
        if self._first_block:
            self._first_block = False
            block = NO_TABLE + block
        flag = frames.END_STREAM if end else 0
        if len(block) <= self.frame_size:
            self.put(frames.frame(frames.HEADERS, flag | frames.END_HEADERS, stream.id, block))
        else:
            self._long(stream, block, flag)
        if end:
            stream.local_done = True
            self._ended(stream)

    def _long(self, stream: Stream, block: bytes, flag: int) -> None:
        kind = frames.HEADERS
        for start in range(0, len(block), self.frame_size):
            part = block[start : start + self.frame_size]
            last = frames.END_HEADERS if start + self.frame_size >= len(block) else 0
            self.put(frames.frame(kind, flag | last, stream.id, part))
            kind, flag = frames.CONTINUATION, 0

    def data(self, stream: Stream, body: Chunk, now: float) -> None:
        """Send, or hold what the windows do not allow."""
        size = len(body)
        if not size:
            return
        if not self.waiting and size <= min(self.frame_size, stream.send_window, self.window):
            self._data(stream, body, 0)
            return
        self.pending_bytes += size
        if stream.pending is None:
            stream.pending = deque()
        stream.pending.append(memoryview(body))
        stream.moved = now
        self.waiting[stream.id] = stream
        self.pump(now)

    def whole(self, stream: Stream, around: Around, parts: list[Chunk], size: int) -> bool:
        """A whole answer with a body of `size` octets, if it can be sent at once; else False.

        Does not call `ended`.
        """
        if self._first_block or self.waiting or not 0 < size <= self.frame_size:
            return False
        if size > self.window or size > stream.send_window:
            return False
        self.window -= size
        if size >= guard.SENT_PER_POINT:
            self._guard.earn(size // guard.SENT_PER_POINT)
        number = stream.id.to_bytes(4, "big")
        lead = around.leads.get(size) or around.lead(size)
        self._out += (around.first, number, lead, number, *parts, around.last, number, around.trailers)
        self.queued += size + around.octets
        stream.local_done = True
        return True

    def end(self, stream: Stream, trailers: bytes) -> None:
        """END_STREAM with `trailers`, or with an empty DATA frame when they are empty."""
        stream.local_done = True
        if stream.pending:
            stream.trailers = trailers
        else:
            self._end(stream, trailers)

    def pump(self, now: float) -> None:
        """Send what has waited, as far as windows and high water allow."""
        moved = True
        while moved and self.waiting and self.queued < HIGH_WATER and self.window > 0:
            moved = False
            for stream in list(self.waiting.values()):
                if self._turn(stream):
                    moved, stream.moved = True, now
                if self.queued >= HIGH_WATER:
                    break

    def forget(self, stream: Stream) -> None:
        """Drop what a stream that was reset still had to send."""
        if self.waiting.pop(stream.id, None) is not None and stream.pending is not None:
            self.pending_bytes -= sum(map(len, stream.pending))
            stream.pending.clear()

    def change_initial_window(self, size: int, streams: list[Stream]) -> None:
        """SETTINGS_INITIAL_WINDOW_SIZE moves the windows of all streams (section 6.9.2). Raises H2Error."""
        delta, self.initial_window = size - self.initial_window, size
        for stream in streams:
            stream.send_window += delta
            if stream.send_window > frames.MAX_WINDOW:
                raise H2Error(FLOW_CONTROL_ERROR, "a window grows beyond 2^31-1")

    def widen(self, stream: Stream | None, increment: int) -> None:
        """WINDOW_UPDATE for a stream, or for the connection (section 6.9). Raises H2Error, StreamError."""
        if stream is None:
            if not increment:
                raise H2Error(PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.window += increment
            if self.window > frames.MAX_WINDOW:
                raise H2Error(FLOW_CONTROL_ERROR, "the window grows beyond 2^31-1")
            return
        if not increment:
            raise StreamError(stream.id, PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            raise StreamError(stream.id, FLOW_CONTROL_ERROR, "the window grows beyond 2^31-1")

    def _turn(self, stream: Stream) -> bool:
        """One DATA frame of a waiting stream; False when its window is closed."""
        pending = stream.pending
        assert pending  # noqa: S101 - it would not wait
        view = pending[0]
        size = min(len(view), self.frame_size, stream.send_window, self.window)
        if size <= 0:
            return False
        if size < len(view):
            pending[0] = view[size:]
        else:
            pending.popleft()
        self.pending_bytes -= size
        del self.waiting[stream.id]
        if pending:
            self.waiting[stream.id] = stream  # to the end of the queue
            self._data(stream, view[:size], 0)
            return True
        last = stream.trailers == b""
        self._data(stream, view[:size], frames.END_STREAM if last else 0)
        if last:
            self._ended(stream)
        elif stream.trailers:
            self.headers(stream, stream.trailers, end=True)
        return True

    def _data(self, stream: Stream, body: Chunk, flags: int) -> None:
        size = len(body)
        stream.send_window -= size
        self.window -= size
        self._guard.earn(size // guard.SENT_PER_POINT)
        self._out.append(frames.head(frames.DATA, flags, stream.id, size))
        self._out.append(body)
        self.queued += size + frames.HEAD_BYTES

    def _end(self, stream: Stream, trailers: bytes) -> None:
        if trailers:
            self.headers(stream, trailers, end=True)
        else:
            self.put(frames.head(frames.DATA, frames.END_STREAM, stream.id, 0))
            self._ended(stream)
