"""The server's side of one HTTP/2 connection, without IO (RFC 9113).

Feed it with `receive`, send what `output.take()` gives. Requests arrive through a `Sink`; each is answered
with `headers`, `data` and `end`, or with `reset`. Every request that the sink marked `busy` is to be
answered, also after `on_reset`: only then its place is free again.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.h2 import blocks, control, frames, guard, head, hpack, whole
from edgekit_agent.serve.grpc.h2 import errors as e
from edgekit_agent.serve.grpc.h2.closed import Closed
from edgekit_agent.serve.grpc.h2.errors import H2Error, StreamError
from edgekit_agent.serve.grpc.h2.output import Around, Output
from edgekit_agent.serve.grpc.h2.payload import Payload
from edgekit_agent.serve.grpc.h2.sink import Chunk, Config, Sink
from edgekit_agent.serve.grpc.h2.stream import Stream

_TINY = 64  # smaller DATA frames cost more than they carry
_RUN_FROM = 1024  # smaller ones are looked at one by one
_GOODBYE = b"goodbye!"
_431 = hpack.encode([(b":status", b"431")])
_NO_HEAD = head.Head(b"", b"", {}, -1)


class Machine:
    def __init__(self, sink: Sink, config: Config, now: float, kind: type[Stream] = Stream) -> None:
        """`kind`: of streams for requests that come whole, again and again; see Stream.on_whole."""
        self.kind = kind
        self.most_streams = config.max_streams
        self.sink = sink
        self.config = config
        self.now = now
        self.guard = guard.Guard(now)
        self.output = Output(self.guard, self.answered)
        self.streams: dict[int, Stream] = {}
        self.closed = False
        """After GOAWAY for an error: send what is left and hang up."""
        self.peer_leaves = False
        """The peer has sent GOAWAY: no further requests will come."""
        self.error = ""
        """Why it is closed."""
        self.left = False
        """After `leave`: the client knows it, and nothing is on its way any more."""
        self.frames = 0
        """That came, at least their head; tells slow from stuck."""
        self.orphans = 0
        """Requests whose stream is closed and whose answer is not made yet."""
        self.last_stream = 0
        """The highest number that the client has used."""
        self.refuse_above = frames.MAX_STREAM
        self.window = config.connection_window
        """Octets of DATA that the peer may send on all streams together; renewed below `least_window`."""
        self.least_window = config.connection_window // 2
        self.blocks = blocks.Blocks(
            self.guard, config.max_block_bytes, config.max_list_bytes, config.max_fields
        )
        self._rest = b""
        self._pos = 0  # behind the frame that is being handled
        self._greeted = False  # the preface has come
        self._set = False  # ... and the first SETTINGS
        self.gone = Closed()
        self.usual: whole.Usual | None = None
        """What most requests look like."""
        self._payload = Payload()
        announced = {
            frames.MAX_CONCURRENT_STREAMS: config.max_streams,
            frames.INITIAL_WINDOW_SIZE: config.window,
            frames.MAX_FRAME_SIZE: config.frame_size,
            frames.MAX_HEADER_LIST_SIZE: config.max_list_bytes,
        }
        wider = frames.window_update(0, config.connection_window - frames.DEFAULT_WINDOW)
        self.output.put(frames.settings(announced) + wider)

    @property
    def mid_frame(self) -> bool:
        """Whether the peer owes the rest of something that it has begun."""
        return bool(self._rest) or not self._set or self._payload.coming or bool(self.blocks.stream)

    def is_idle(self, number: int) -> bool:
        """Whether the client has never opened this stream (section 5.1)."""
        return number > self.last_stream or not number & 1

    # --- in

    def receive(self, data: bytes, now: float) -> bool:
        """Take what the peer sent; True: as most send it. A broken rule becomes RST_STREAM or GOAWAY."""
        if self.closed:
            return False
        self.now = now
        self.guard.tick(now)
        pos = 0
        if self.usual is not None and not self._rest and not self._payload.coming:
            pos = whole.take(self, data, 0, len(data))
            if pos == len(data) or whole.widens(self, data, pos):
                return True
        try:
            self._parse(self._rest + data if self._rest else data, pos)
        except H2Error as exc:
            self.fail(exc.code, str(exc))
        return False

    def _parse(self, data: bytes, pos: int) -> None:
        end = len(data)
        self._rest = b""
        if not self._greeted:
            if data[: len(frames.PREFACE)] != frames.PREFACE[:end]:
                raise H2Error(e.PROTOCOL_ERROR, "not the preface of HTTP/2")
            if end < len(frames.PREFACE):
                self._rest = data
                return
            self._greeted, pos = True, len(frames.PREFACE)
        while pos < end and not self.closed:
            try:
                if self._payload.coming:
                    after = self._pos = self._payload.take(self.sink, data, pos, end)
                    self._payload_taken()
                else:
                    after = whole.take(self, data, pos, end) or self._frame(data, pos, end)
            except StreamError as exc:
                self._refuse(exc)
                after = self._pos
            if after == pos:
                self._rest = data[pos:]
                return
            pos = after

    def _frame(self, data: bytes, pos: int, end: int) -> int:
        """Handle the frame at `pos`; returns where the next begins, `pos` when more octets are needed."""
        if end - pos < frames.HEAD_BYTES:
            return pos
        upper, lower, kind, flags, number = frames.HEAD.unpack_from(data, pos)
        size = upper << 8 | lower
        number &= frames.MAX_STREAM
        if size > self.config.frame_size:
            raise H2Error(e.FRAME_SIZE_ERROR, f"a frame of {size} octets")
        if self.blocks.stream and (kind != frames.CONTINUATION or number != self.blocks.stream):
            raise H2Error(e.PROTOCOL_ERROR, "a header block is interrupted")
        if not self._set and (kind != frames.SETTINGS or flags & frames.ACK):
            raise H2Error(e.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == frames.DATA:
            return self._data(data, pos, end, size, flags, number)
        start = pos + frames.HEAD_BYTES
        if kind > frames.CONTINUATION:  # section 5.5: what is not understood is ignored
            self.guard.spend(guard.OTHER, "frames of unknown types")
            self.frames += 1
            self._payload.begin(size, 0, last=False)
            return start
        if size > self.config.max_block_bytes:
            raise H2Error(e.ENHANCE_YOUR_CALM, f"a frame of type {kind} with {size} octets")
        if end - start < size:
            return pos
        self._pos = start + size
        self.frames += 1
        payload = data[start : start + size]
        if kind == frames.HEADERS:
            self.usual = None
            if not number & 1:
                raise H2Error(e.PROTOCOL_ERROR, "HEADERS on a stream that is not the client's")
            block = self.blocks.headers(flags, number, payload)
            if block is not None:
                self._block(block, number, last=bool(flags & frames.END_STREAM))
        elif kind == frames.CONTINUATION:
            done = self.blocks.continuation(flags, payload)
            if done is not None:
                self._block(done[0], number, last=done[1])
        else:
            control.HANDLERS[kind](self, flags, number, payload)
            self._set = True
        return self._pos

    def _block(self, block: bytes, number: int, *, last: bool) -> None:
        """A request's header or its trailers. Decoded in any case: the table is the connection's."""
        stream = self.streams.get(number)
        if stream is not None:
            if stream.remote_done:
                self.blocks.skip(block)
                raise StreamError(number, e.STREAM_CLOSED, "HEADERS after END_STREAM")
            self.blocks.trailers(block, number)
            if not last:
                raise StreamError(number, e.PROTOCOL_ERROR, "trailers without END_STREAM")
            self._remote_end(stream)
        elif number <= self.last_stream:
            self.blocks.skip(block)
            self._late(number, "HEADERS", last=last)
        elif number > self.refuse_above:
            self.blocks.skip(block)
        elif len(self.streams) + self.orphans >= self.config.max_streams:
            self.last_stream = number
            self.blocks.skip(block)
            self.guard.spend(guard.REFUSED, "requests at once")
            self.gone.add(number)
            self.output.put(frames.rst_stream(number, e.REFUSED_STREAM))
        else:
            self.last_stream = number
            self._request(self.blocks.request(block, number), number, last=last)

    def _request(self, request: head.Head | None, number: int, *, last: bool) -> None:
        windows = self.output.initial_window, self.config.window
        stream = Stream(number, request or _NO_HEAD, self.now, *windows, remote_done=last)
        self.streams[number] = stream
        if request is None:
            self.guard.spend(guard.FAULT + guard.ANSWER, "large headers")
            self.headers(stream, _431, end=True)
            return
        self.sink.on_request(stream)
        if last and not stream.closed:
            self._remote_end(stream)

    # --- DATA (section 6.1)

    def _data(self, data: bytes, pos: int, end: int, size: int, flags: int, number: int) -> int:
        if not flags and size >= _RUN_FROM and (after := self._run(data, pos, end, size, number)):
            return after
        pad = padded = 0
        start = pos + frames.HEAD_BYTES
        if flags & frames.PADDED:
            if not size:
                raise H2Error(e.FRAME_SIZE_ERROR, "a padded frame without the length of its padding")
            if start >= end:
                return pos
            pad, padded = data[start], 1
            start += 1
            if pad >= size:
                raise H2Error(e.PROTOCOL_ERROR, "padding longer than its frame")
        last = bool(flags & frames.END_STREAM)
        body = size - pad - padded
        self._pos = start
        self.frames += 1
        self._payload.begin(body, pad, last=last)
        self._count(size)
        if not number:
            raise H2Error(e.PROTOCOL_ERROR, "DATA on stream 0")
        if size < _TINY and not last:
            self.guard.spend(guard.SMALL if body else guard.EMPTY, "small or empty frames")
        stream = self.streams.get(number)
        if stream is None:
            self._late(number, "DATA", last=last)
            return start
        if stream.remote_done:
            raise StreamError(number, e.STREAM_CLOSED, "DATA after END_STREAM")
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamError(number, e.FLOW_CONTROL_ERROR, "more DATA than the window allows")
        if 0 <= stream.head.length < stream.received + body:
            raise StreamError(number, e.PROTOCOL_ERROR, "more DATA than content-length")
        if padded and not last:
            self.grant(stream, pad + 1)
        self._payload.into = stream
        stream.coming = body
        if not body + pad:
            self._payload_taken()
        return start

    def _run(self, data: bytes, pos: int, end: int, size: int, number: int) -> int:
        """Frames of one body that lie behind each other and have the same head, in one go: clients cut large
        messages into frames of 16 KiB. Returns where the next frame begins, 0 when there are not two."""
        stream = self.streams.get(number)
        if stream is None or stream.remote_done:
            return 0
        step = frames.HEAD_BYTES + size
        most = min((end - pos) // step, stream.receive_window // size, self.window // size)
        if stream.head.length >= 0:
            most = min(most, (stream.head.length - stream.received) // size)
        same, count = data[pos : pos + frames.HEAD_BYTES], 1
        while count < most and data.startswith(same, pos + count * step):
            count += 1
        if count < 2:
            return 0
        view, after = memoryview(data), pos + count * step
        body = b"".join([view[one + frames.HEAD_BYTES : one + step] for one in range(pos, after, step)])
        self._pos = after
        self.frames += count
        self._count(len(body))
        stream.receive_window -= len(body)
        stream.received += len(body)
        self.sink.on_data(stream, body)
        return after

    def _payload_taken(self) -> None:
        if self._payload.coming:
            return
        into, self._payload.into = self._payload.into, None
        if self._payload.last and into is not None and not into.closed:
            self._remote_end(into)

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_done = True
        if stream.head.length not in (-1, stream.received):
            raise StreamError(stream.id, e.PROTOCOL_ERROR, "less DATA than content-length")
        self.sink.on_end(stream)

    def _count(self, size: int) -> None:
        """The connection's own window: wide, and renewed when half of it is used (section 6.9.1)."""
        self.window -= size
        if self.window < 0:
            raise H2Error(e.FLOW_CONTROL_ERROR, "more DATA than the connection's window allows")
        if self.window < self.least_window:
            self.output.put(frames.window_update(0, self.config.connection_window - self.window))
            self.window = self.config.connection_window

    def _late(self, number: int, what: str, *, last: bool) -> None:
        """A frame for a stream that is not open: forgiven when we closed it (section 5.1)."""
        if number > self.refuse_above:
            return
        if self.is_idle(number):
            raise H2Error(e.PROTOCOL_ERROR, f"{what} on a stream that is idle")
        if number not in self.gone:
            raise H2Error(e.STREAM_CLOSED, f"{what} on a stream that is closed")
        if last:
            self.gone.ended(number)
        self.guard.spend(guard.SMALL, "frames on closed streams")

    # --- out. All of these do nothing on a stream that is closed.

    def headers(self, stream: Stream, block: bytes, *, end: bool = False) -> None:
        """Begin the answer; `block` as `hpack.encode` makes it."""
        if stream.closed:
            if end:
                self._released(stream)
            return
        self.output.headers(stream, block, end=end)

    def data(self, stream: Stream, body: Chunk) -> None:
        """A part of the answer's body; held back as flow control wants."""
        if not stream.closed:
            self.output.data(stream, body, self.now)

    def answer(self, stream: Stream, around: Around, parts: list[Chunk], size: int) -> bool:
        """`headers`, `data` for each of `parts` (`size` octets together) and `end` in one.

        False: nothing was done, because it cannot be sent at once.
        """
        if stream.closed or not self.output.whole(stream, around, parts, size):
            return False
        self.answered(stream)
        return True

    def end(self, stream: Stream, trailers: bytes = b"") -> None:
        """The answer is complete; `trailers` is a header block."""
        if stream.closed:
            self._released(stream)
        else:
            self.output.end(stream, trailers)

    def reset(self, stream: Stream, code: int) -> None:
        """Give a stream up. The sink is not called."""
        if stream.closed:
            self._released(stream)
            return
        stream.busy = False
        self.output.put(frames.rst_stream(stream.id, code))
        self.gone.add(stream.id)
        self._close(stream)

    def grant(self, stream: Stream, octets: int) -> None:
        """Let the peer send so many octets more on a stream."""
        if octets > 0 and not stream.closed and not stream.remote_done:
            stream.receive_window += octets
            self.output.put(frames.window_update(stream.id, octets))

    def resume(self, now: float) -> None:
        """The transport takes more, or time has passed."""
        self.now = now
        self.output.pump(now)
        for number in self.gone.overdue(now):
            self.output.put(frames.rst_stream(number, e.NO_ERROR))

    def leave(self) -> None:
        """Say that no more requests are taken; those that are on their way still are (section 6.8)."""
        if not self.closed:
            self.output.put(frames.goaway(frames.MAX_STREAM, e.NO_ERROR, "shutting down"))
            self.output.put(frames.frame(frames.PING, 0, 0, _GOODBYE))

    def pinged(self, payload: bytes) -> None:
        """An answer to our PING: after that of `leave`, nothing is on its way any more."""
        if payload == _GOODBYE and self.refuse_above == frames.MAX_STREAM:
            self.refuse_above, self.left, self.usual = self.last_stream, True, None
            self.output.put(frames.goaway(self.last_stream, e.NO_ERROR))

    def fail(self, code: int, text: str) -> None:
        """GOAWAY, and the end of every stream."""
        if self.closed:
            return
        self.closed, self.error = True, text
        self._rest = b""
        self.output.put(frames.goaway(self.last_stream, code, text))
        for stream in list(self.streams.values()):
            self.lose(stream)

    def lose(self, stream: Stream) -> None:
        """The stream is gone, whoever closed it."""
        self._close(stream)
        self.sink.on_reset(stream)

    def answered(self, stream: Stream) -> None:
        """Our END_STREAM is out. A client that does not end its side is told to stop (section 8.1)."""
        if self.guard.left < guard.CAPACITY:
            self.guard.earn(guard.ANSWER)
        stream.busy = False
        if not stream.remote_done:
            self.gone.linger(stream.id, self.now)
        self.streams.pop(stream.id, None)
        stream.closed = True
        if stream.pending:
            self.output.forget(stream)

    def _refuse(self, exc: StreamError) -> None:
        self.guard.spend(guard.FAULT, f"faults, the last one: {exc}")
        self.output.put(frames.rst_stream(exc.stream_id, exc.code))
        self.gone.add(exc.stream_id)
        stream = self.streams.get(exc.stream_id)
        if stream is not None:
            self.lose(stream)

    def _close(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        stream.closed = True
        self.output.forget(stream)
        if stream.busy:
            self.orphans += 1

    def _released(self, stream: Stream) -> None:
        if stream.busy:
            stream.busy = False
            self.orphans -= 1
