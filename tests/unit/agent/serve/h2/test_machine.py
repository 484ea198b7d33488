"""The rules of RFC 9113, one after the other, by section."""

from __future__ import annotations

import struct

import pytest

from edgekit_agent.serve.grpc.h2 import errors as e
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.closed import LINGER_S
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.h2.sink import Config
from tests.unit.agent.serve.h2.client import DONE, HELLO, OK, REQUEST, Peer, data, goaway, reset_code, split

END = frames.END_HEADERS | frames.END_STREAM


def head(**changes: bytes | None) -> bytes:
    """A request's block with pseudo-fields changed or (None) left out."""
    fields = {"method": b"POST", "scheme": b"http", "path": b"/a"} | changes
    return hpack.encode([(f":{name}".encode(), value) for name, value in fields.items() if value is not None])


# --- a whole request


def test_an_exchange() -> None:
    peer = Peer()
    assert [f.kind for f in peer.greeting] == [frames.SETTINGS, frames.WINDOW_UPDATE]
    stream = peer.request()
    assert (stream.head.method, stream.head.path) == (b"POST", b"/a.B/C")
    assert stream.head.headers[b"host"] == b"x" and stream.head.length == -1
    assert peer.send(data(1, b"abc") + data(1, b"def", end=True)) == []
    assert peer.sink.bodies[1] == b"abcdef" and peer.sink.ended == [1]
    peer.machine.headers(stream, OK)
    peer.machine.data(stream, b"answer")
    peer.machine.end(stream, DONE)
    got = peer.take()
    assert [(f.kind, f.flags) for f in got] == [
        (frames.HEADERS, frames.END_HEADERS),
        (frames.DATA, 0),
        (frames.HEADERS, END),
    ]
    assert got[0].payload == hpack.NO_TABLE + OK and got[1].payload == b"answer" and got[2].payload == DONE
    assert not peer.machine.streams and not peer.machine.closed


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_octets_may_come_in_any_pieces(step: int) -> None:
    peer = Peer(hello=False)
    block = frame(frames.HEADERS, 0, 1, REQUEST[:9]) + frame(
        frames.CONTINUATION, frames.END_HEADERS, 1, REQUEST[9:]
    )
    whole = (
        HELLO
        + block
        + data(1, b"abc", pad=3)
        + data(1, b"", pad=0)
        + data(1, b"de" * 5000, end=True, pad=255)
    )
    for start in range(0, len(whole), step):
        peer.machine.receive(whole[start : start + step], peer.now)
    assert not peer.machine.closed and not peer.machine.mid_frame
    assert peer.sink.bodies[1] == b"abc" + b"de" * 5000 and peer.sink.ended == [1]


def test_trailers_end_a_request() -> None:
    peer = Peer()
    peer.request()
    peer.send(data(1, b"abc") + frame(frames.HEADERS, END, 1, hpack.encode([(b"x-sum", b"1")])))
    assert peer.sink.ended == [1]


def test_equal_blocks_are_decoded_once_and_mean_the_same() -> None:
    peer = Peer()
    first = peer.request(1, end=True)
    assert peer.request(3, end=True).head is first.head
    entry = b"\x40\x03x-a\x01b"  # becomes an entry of the table: the block must be decoded anew
    assert peer.request(5, end=True, block=REQUEST + entry).head is not first.head
    again = peer.request(7, end=True, block=REQUEST + b"\xbe").head
    assert again.headers[b"x-a"] == b"b"
    assert peer.request(9, end=True, block=REQUEST + b"\xbe").head is again
    peer.request(11, end=True, block=REQUEST + b"\x40\x03x-c\x01d")
    assert peer.request(13, end=True, block=REQUEST + b"\xbe").head.headers[b"x-c"] == b"d"


# --- section 3.4: the preface


@pytest.mark.parametrize(
    "text", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"\x00" * 30]
)
def test_another_preface(text: bytes) -> None:
    assert Peer(hello=False).refused(text) == e.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "first",
    [frame(frames.PING, 0, 0, b"12345678"), frame(frames.SETTINGS, frames.ACK, 0), data(1, b"x")],
)
def test_the_first_frame_is_settings(first: bytes) -> None:
    assert Peer(hello=False).refused(frames.PREFACE + first) == e.PROTOCOL_ERROR


# --- sections 4 and 6: frames that end the connection


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (frames.head(frames.DATA, 0, 1, (1 << 20) + 1), e.FRAME_SIZE_ERROR),
        (frames.head(frames.HEADERS, 0, 1, 40000), e.ENHANCE_YOUR_CALM),
        (data(0, b"x"), e.PROTOCOL_ERROR),
        (data(1, b"x"), e.PROTOCOL_ERROR),
        (data(2, b"x"), e.PROTOCOL_ERROR),
        (frame(frames.DATA, frames.PADDED, 1), e.FRAME_SIZE_ERROR),
        (frame(frames.DATA, frames.PADDED, 1, b"\x02xx"[:2]), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END, 0, REQUEST), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END, 2, REQUEST), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END | frames.PADDED, 1), e.FRAME_SIZE_ERROR),
        (frame(frames.HEADERS, END | frames.PADDED, 1, b"\xff" + REQUEST), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END | frames.PRIORITY_FLAG, 1, b"1234"), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, END, 1, b"\x80"), e.COMPRESSION_ERROR),
        (frame(frames.HEADERS, 0, 1, REQUEST) + frame(frames.PING, 0, 0, bytes(8)), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, REQUEST) + frame(99, 0, 1), e.PROTOCOL_ERROR),
        (frame(frames.HEADERS, 0, 1, REQUEST) + frame(frames.CONTINUATION, 4, 3), e.PROTOCOL_ERROR),
        (frame(frames.CONTINUATION, 4, 1, REQUEST), e.PROTOCOL_ERROR),
        (frame(frames.PRIORITY, 0, 1, b"1234"), e.FRAME_SIZE_ERROR),
        (frame(frames.PRIORITY, 0, 0, b"12345"), e.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 0, bytes(4)), e.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(4)), e.PROTOCOL_ERROR),
        (frame(frames.RST_STREAM, 0, 1, bytes(3)), e.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 1), e.PROTOCOL_ERROR),
        (frame(frames.SETTINGS, frames.ACK, 0, bytes(6)), e.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 0, bytes(5)), e.FRAME_SIZE_ERROR),
        (frame(frames.SETTINGS, 0, 0, bytes(6 * 65)), e.ENHANCE_YOUR_CALM),
        (frames.settings({frames.ENABLE_PUSH: 2}), e.PROTOCOL_ERROR),
        (frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}), e.FLOW_CONTROL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 16383}), e.PROTOCOL_ERROR),
        (frames.settings({frames.MAX_FRAME_SIZE: 1 << 24}), e.PROTOCOL_ERROR),
        (frame(frames.PUSH_PROMISE, 4, 1, bytes(4)), e.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 1, bytes(8)), e.PROTOCOL_ERROR),
        (frame(frames.PING, 0, 0, bytes(7)), e.FRAME_SIZE_ERROR),
        (frame(frames.GOAWAY, 0, 1, bytes(8)), e.PROTOCOL_ERROR),
        (frame(frames.GOAWAY, 0, 0, bytes(7)), e.FRAME_SIZE_ERROR),
        (frames.window_update(0, 0), e.PROTOCOL_ERROR),
        (frames.window_update(0, frames.MAX_WINDOW), e.FLOW_CONTROL_ERROR),
        (frames.window_update(1, 1), e.PROTOCOL_ERROR),
        (frame(frames.WINDOW_UPDATE, 0, 0, bytes(3)), e.FRAME_SIZE_ERROR),
    ],
)
def test_broken_rules_end_the_connection(bad: bytes, code: int) -> None:
    peer = Peer()
    assert peer.refused(bad) == code
    assert peer.machine.closed and peer.machine.error
    assert peer.send(HELLO) == [], "nothing is read any more"


def test_what_is_not_understood_is_ignored() -> None:
    """Section 5.5: unknown types, flags and settings."""
    peer = Peer()
    assert peer.send(frame(0x77, 0xFF, 5, b"x" * 100_000)) == []
    assert peer.send(frames.settings({0x4242: 7}))[0].flags == frames.ACK
    assert peer.send(frame(frames.PING, 0xFE, 0, b"12345678"))[0].payload == b"12345678"
    assert peer.send(frame(frames.PRIORITY, 0, 5, b"12345")) == []
    assert not peer.machine.closed


def test_a_reserved_bit_is_ignored() -> None:
    peer = Peer()
    peer.send(frame(frames.HEADERS, END, 1 | 1 << 31, REQUEST))
    assert peer.sink.ended == [1]


# --- section 5.1: streams


def test_numbers_only_rise() -> None:
    peer = Peer()
    peer.request(5)
    assert peer.refused(frame(frames.HEADERS, END, 3, REQUEST)) == e.STREAM_CLOSED
    assert peer.sink.reset == [5]


@pytest.mark.parametrize("late", [data(1, b"x" * 100), frame(frames.HEADERS, END, 1, REQUEST)])
def test_after_end_stream_comes_nothing(late: bytes) -> None:
    peer = Peer()
    peer.request(end=True)
    assert reset_code(peer.send(late)) == e.STREAM_CLOSED
    assert peer.sink.reset == [1] and not peer.machine.closed
    assert peer.send(late) == [], "more of it may be on its way, and is forgiven"
    peer.request(3, end=True)
    assert peer.sink.ended == [1, 3]


def test_a_finished_stream_is_closed_for_good() -> None:
    peer = Peer()
    stream = peer.request(end=True)
    peer.machine.headers(stream, OK, end=True)
    assert (
        peer.send(
            frames.rst_stream(1, 8) + frames.window_update(1, 5) + frame(frames.PRIORITY, 0, 1, bytes(5))
        )[1:]
        == []
    )
    assert peer.refused(data(1, b"x" * 100)) == e.STREAM_CLOSED


def test_an_early_answer_stops_the_client() -> None:
    """Section 8.1: RST_STREAM with NO_ERROR after a complete answer; what is on its way is thrown away."""
    peer = Peer()
    stream = peer.request()
    peer.machine.headers(stream, OK, end=True)
    got = peer.take()
    assert got[0].flags & frames.END_STREAM and reset_code(got) == -1
    assert peer.send(data(1, b"x" * 70000)) == [] and peer.sink.bodies[1] == b""
    peer.now += LINGER_S
    peer.machine.resume(peer.now)
    assert reset_code(peer.take()) == e.NO_ERROR
    assert peer.send(data(1, b"x" * 70)) == [] and peer.send(data(1, b"", end=True)) == []
    assert not peer.machine.closed


@pytest.mark.parametrize(
    "end",
    [data(1, b"x" * 100, end=True), frame(frames.HEADERS, END, 1, b""), frames.rst_stream(1, e.CANCEL)],
)
def test_a_client_that_ends_by_itself_is_not_told(end: bytes) -> None:
    peer = Peer()
    peer.machine.headers(peer.request(), OK, end=True)
    peer.take()
    assert peer.send(end) == []
    peer.now += 10
    peer.machine.resume(peer.now)
    assert peer.take() == []


def test_only_so_many_are_waited_for() -> None:
    peer = Peer()
    told: list[int] = []
    for number in range(1, 401, 2):
        peer.machine.headers(peer.request(number), OK, end=True)
        peer.machine.resume(peer.now)
        told += [item.stream for item in peer.take() if item.kind == frames.RST_STREAM]
    assert told == list(range(1, 145, 2)), "128 of 200 may go on"


def test_the_client_cancels() -> None:
    peer = Peer()
    stream = peer.request()
    stream.busy = True
    peer.send(frames.rst_stream(1, e.CANCEL))
    assert peer.sink.reset == [1] and peer.machine.orphans == 1
    peer.machine.headers(stream, OK)
    peer.machine.data(stream, b"nobody reads this")
    peer.machine.end(stream, DONE)
    assert peer.take() == [] and peer.machine.orphans == 0


def test_too_many_streams_and_orphans_are_refused() -> None:
    peer = Peer(Config(max_streams=2))
    peer.request(1).busy = True
    peer.request(3)
    assert reset_code(peer.send(frame(frames.HEADERS, END, 5, REQUEST)), 5) == e.REFUSED_STREAM
    peer.send(frames.rst_stream(1, e.CANCEL))
    assert reset_code(peer.send(frame(frames.HEADERS, END, 7, REQUEST)), 7) == e.REFUSED_STREAM
    peer.send(frames.rst_stream(3, e.CANCEL))
    peer.request(9)
    assert not peer.machine.closed and len(peer.sink.requests) == 3


def test_a_refused_block_still_counts_for_the_table() -> None:
    peer = Peer(Config(max_streams=1))
    peer.request(1)
    peer.send(frame(frames.HEADERS, END, 3, REQUEST + b"\x40\x03x-a\x01b"))
    peer.send(frames.rst_stream(1, e.CANCEL))
    assert peer.request(5, block=REQUEST + b"\xbe").head.headers[b"x-a"] == b"b"


# --- section 8: what a request is


@pytest.mark.parametrize(
    "block",
    [
        head(method=None),
        head(scheme=None),
        head(path=None),
        head(path=b""),
        head(path=b"a"),
        head(path=b"*"),
        head(method=b"CONNECT"),
        head(method=b"GE T"),
        head(scheme=b"ftp"),
        head(status=b"200"),
        head() + hpack.encode([(b":path", b"/b")]),
        hpack.encode([(b"a", b"b")]) + head(),
        head() + hpack.encode([(b"Upper", b"b")]),
        head() + hpack.encode([(b"", b"b")]),
        head() + hpack.encode([(b"a b", b"b")]),
        head() + hpack.encode([(b"a\xff", b"b")]),
        head() + hpack.encode([(b"a", b"b\r\nc: d")]),
        head() + hpack.encode([(b"a", b"b\0")]),
        head() + hpack.encode([(b"a", b" b")]),
        head() + hpack.encode([(b"a", b"b\t")]),
        head(path=b"/a\nb"),
        head() + hpack.encode([(b"connection", b"close")]),
        head() + hpack.encode([(b"transfer-encoding", b"chunked")]),
        head() + hpack.encode([(b"upgrade", b"h2c")]),
        head() + hpack.encode([(b"te", b"gzip")]),
        head() + hpack.encode([(b"content-length", b"+1")]),
        head() + hpack.encode([(b"content-length", b"1" * 30)]),
        head() + hpack.encode([(b"content-length", b"1"), (b"content-length", b"2")]),
        head() + hpack.encode([(b"content-length", b"1")]),  # and the stream ends with none
    ],
)
def test_malformed_requests_end_their_stream_only(block: bytes) -> None:
    peer = Peer()
    assert reset_code(peer.send(frame(frames.HEADERS, END, 1, block))) == e.PROTOCOL_ERROR
    assert not peer.machine.closed and peer.sink.ended == []
    peer.request(3, end=True)
    assert peer.sink.ended == [3]


def test_well_formed_oddities() -> None:
    peer = Peer()
    peer.request(1, end=True, block=head(path=b"*", method=b"OPTIONS"))
    lengths = hpack.encode([(b"content-length", b"3"), (b"content-length", b"3"), (b"a", b"\xff\t.")])
    peer.request(3, block=head() + lengths)
    peer.send(data(3, b"abc", end=True))
    assert peer.sink.ended == [1, 3]


@pytest.mark.parametrize("body", [b"ab", b"abcd"])
def test_content_length_is_kept(body: bytes) -> None:
    peer = Peer()
    peer.request(block=head() + hpack.encode([(b"content-length", b"3")]))
    assert reset_code(peer.send(data(1, body, end=True))) == e.PROTOCOL_ERROR
    assert peer.sink.reset == [1]


@pytest.mark.parametrize(
    "trailers",
    [(frames.END_HEADERS, b""), (END, hpack.encode([(b":path", b"/")])), (END, hpack.encode([(b"A", b"")]))],
)
def test_bad_trailers(trailers: tuple[int, bytes]) -> None:
    peer = Peer()
    peer.request()
    assert reset_code(peer.send(frame(frames.HEADERS, trailers[0], 1, trailers[1]))) == e.PROTOCOL_ERROR


def test_large_headers_get_431() -> None:
    peer = Peer(Config(max_list_bytes=1000))
    got = peer.send(frame(frames.HEADERS, END, 1, head() + hpack.encode([(b"a", b"b" * 1000)])))
    assert hpack.Decoder(999, 9).decode(got[0].payload) == [(b":status", b"431")]
    assert peer.sink.requests == [] and not peer.machine.streams and not peer.machine.closed


# --- section 5.2: flow control


def answer(peer: Peer, number: int, body: bytes) -> None:
    stream = peer.request(number, end=True)
    peer.machine.headers(stream, OK)
    peer.machine.data(stream, body)
    peer.machine.end(stream, DONE)


def body_of(got: list, number: int) -> bytes:  # type: ignore[type-arg]
    return b"".join(f.payload for f in got if f.kind == frames.DATA and f.stream == number)


def test_the_peers_windows_are_kept() -> None:
    peer = Peer()
    body = bytes(range(256)) * 400  # 102400
    answer(peer, 1, body)
    got = peer.take()
    assert body_of(got, 1) == body[:65535] and all(len(f.payload) <= 16384 for f in got)
    assert peer.send(frames.window_update(1, 100_000)) == [], "the connection's window is closed"
    got = peer.send(frames.window_update(0, 10))
    assert body_of(got, 1) == body[65535:65545] and got[-1].kind == frames.DATA
    got = peer.send(frames.window_update(0, 100_000))
    assert body_of(got, 1) == body[65545:]
    assert got[-1].kind == frames.HEADERS and got[-1].flags == END and not peer.machine.streams


def test_streams_take_turns() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 20}))
    answer(peer, 1, bytes(200_000))
    answer(peer, 3, bytes(200_000))
    peer.take()
    got = [f.stream for f in peer.send(frames.window_update(0, 16384 * 6)) if f.kind == frames.DATA]
    assert got[:4] in ([1, 3, 1, 3], [3, 1, 3, 1])


def test_small_answers_do_not_wait_for_a_blocked_stream() -> None:
    peer = Peer()
    peer.send(frames.window_update(0, 1 << 20))
    answer(peer, 1, bytes(100_000))
    peer.take()
    answer(peer, 3, b"small")
    assert body_of(peer.take(), 3) == b"small" and list(peer.machine.streams) == [1]


def test_settings_move_windows_below_zero_and_back() -> None:
    """Section 6.9.2."""
    peer = Peer()
    answer(peer, 1, bytes(70000))
    peer.take()
    peer.send(frames.window_update(0, 1 << 20) + frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    assert peer.machine.streams[1].send_window == -65535
    assert peer.send(frames.window_update(1, 65535)) == []
    assert len(body_of(peer.send(frames.window_update(1, 1)), 1)) == 1
    assert len(body_of(peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100_000})), 1)) == 70000 - 65536
    assert not peer.machine.streams


@pytest.mark.parametrize(
    ("update", "code"), [(0, e.PROTOCOL_ERROR), (frames.MAX_WINDOW - 65534, e.FLOW_CONTROL_ERROR)]
)
def test_window_updates_that_reset_a_stream(update: int, code: int) -> None:
    peer = Peer()
    peer.request()
    assert reset_code(peer.send(frames.window_update(1, update))) == code
    assert not peer.machine.closed


def test_a_setting_that_overflows_a_window() -> None:
    peer = Peer()
    peer.request()
    peer.send(frames.window_update(1, 1000))
    assert (
        peer.refused(frames.settings({frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW})) == e.FLOW_CONTROL_ERROR
    )


def test_our_windows_are_enforced() -> None:
    peer = Peer(Config(window=1000, connection_window=100_000))
    stream = peer.request()
    peer.send(data(1, bytes(900)))
    peer.machine.grant(stream, 100)
    assert struct.unpack(">I", peer.take()[0].payload) == (100,)
    assert peer.send(data(1, bytes(100), pad=99)) == [frames_window(1, 100)], "padding counts and comes back"
    assert reset_code(peer.send(data(1, bytes(101)))) == e.FLOW_CONTROL_ERROR
    got = peer.send(data(1, bytes(60_000)))
    assert [f.kind for f in got] == [frames.WINDOW_UPDATE], "the connection's window is renewed"
    big = Peer(Config(window=1 << 20, connection_window=70_000))
    big.request()
    assert big.refused(data(1, bytes(70_001))) == e.FLOW_CONTROL_ERROR


def frames_window(stream: int, size: int) -> object:
    return split(frames.window_update(stream, size))[0]


def test_frames_may_be_as_large_as_the_peer_allows() -> None:
    peer = Peer()
    peer.send(frames.settings({frames.MAX_FRAME_SIZE: 50_000}))
    answer(peer, 1, bytes(60_000))
    assert [len(f.payload) for f in peer.take() if f.kind == frames.DATA] == [50_000, 10_000]


def test_a_long_header_block_is_cut() -> None:
    peer = Peer()
    stream = peer.request(end=True)
    block = hpack.encode([(b"x", b"y" * 40_000)])
    peer.machine.headers(stream, block, end=True)
    got = peer.take()
    assert [(f.kind, f.flags) for f in got] == [(1, 1), (9, 0), (9, 4)]
    assert b"".join(f.payload for f in got) == hpack.NO_TABLE + block


# --- section 6.8: leaving


def test_leaving_takes_what_is_on_its_way() -> None:
    peer = Peer()
    peer.machine.leave()
    first, ping = peer.take()
    assert struct.unpack(">II", first.payload[:8]) == (frames.MAX_STREAM, e.NO_ERROR)
    peer.request(1, end=True)
    last = peer.send(frame(frames.PING, frames.ACK, 0, ping.payload))
    assert struct.unpack(">II", last[0].payload) == (1, e.NO_ERROR)
    assert peer.send(frame(frames.HEADERS, frames.END_HEADERS, 3, REQUEST) + data(3, b"x" * 70)) == []
    assert len(peer.sink.requests) == 1 and list(peer.machine.streams) == [1]


def test_the_client_leaves() -> None:
    peer = Peer()
    peer.request(end=True)
    assert goaway(peer.send(frames.goaway(0, e.NO_ERROR))) == -1
    assert peer.machine.peer_leaves and list(peer.machine.streams) == [1]
