"""HTTP/2 on the wire: real server, real sockets, frames by hand. What a well-behaved library never sends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from edgekit_agent.serve.core import Core
from edgekit_agent.serve.grpc import status
from edgekit_agent.serve.grpc.framing import prefix
from edgekit_agent.serve.grpc.h2 import errors as e
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.server import Server, best_parser
from tests.unit.agent.serve.h2.client import HELLO, Frame, data
from tests.unit.agent.serve.test_http import serving

LIMITS = Limits(
    max_body_bytes=1 << 20, max_buffered_bytes=4 << 20, max_connections=8,
    read_timeout_s=0.3, write_timeout_s=0.5, idle_timeout_s=60,
)  # fmt: skip
SERVICE = "/inference.GRPCInferenceService/"
END = frames.END_HEADERS | frames.END_STREAM
X = np.arange(4, dtype="<f4").reshape(1, 4)


def request(raw: bytes = X.tobytes(), shape: tuple[int, ...] = (1, 4), identity: str = "") -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=shape)
    made = pb.ModelInferRequest(model_name="kws", id=identity, inputs=[tensor], raw_input_contents=[raw])
    return bytes(made.SerializeToString())


def message(body: bytes) -> bytes:
    return prefix(len(body)) + body


def head(
    method: str, *more: tuple[bytes, bytes], kind: bytes = b"application/grpc", verb: bytes = b"POST"
) -> bytes:
    path = method if method.startswith("/") else SERVICE + method
    return hpack.encode(
        [(b":method", verb), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x"),
         (b"content-type", kind), (b"te", b"trailers"), *more]
    )  # fmt: skip


def buffered(server: Server) -> int:
    """Bytes of large messages that all clients together hold."""
    return server.shares._buffered


class Wire:
    """One client connection that answers PING and SETTINGS by itself."""

    def __init__(self, port: int, opened: list[Wire] | None = None) -> None:
        self.port = port
        self.opened: list[Wire] = [] if opened is None else opened
        self.decoder = hpack.Decoder(1 << 16, 100)
        self.got: list[Frame] = []
        self.open_windows = True

    async def open(self, hello: bytes = HELLO) -> Wire:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(self)
        self.send(hello)
        return self

    async def another(self, hello: bytes = HELLO) -> Wire:
        return await Wire(self.port, self.opened).open(hello)

    def send(self, octets: bytes) -> None:
        self.writer.write(octets)

    async def frame(self) -> Frame:
        top = await asyncio.wait_for(self.reader.readexactly(9), 20)
        upper, lower, kind, flags, stream = frames.HEAD.unpack(top)
        item = Frame(kind, flags, stream, await self.reader.readexactly(upper << 8 | lower))
        self.got.append(item)
        if kind == frames.SETTINGS and not flags:
            self.send(frame(frames.SETTINGS, frames.ACK, 0))
        if kind == frames.PING and not flags:
            self.send(frame(frames.PING, frames.ACK, 0, item.payload))
        if kind == frames.DATA and self.open_windows and item.payload:
            self.send(frames.window_update(0, len(item.payload)))
            if not flags:
                self.send(frames.window_update(stream, len(item.payload)))
        return item

    async def until(self, wanted: Callable[[Frame], bool]) -> Frame:
        while True:
            item = await self.frame()
            if wanted(item):
                return item

    async def answer(self, stream: int) -> tuple[dict[bytes, bytes], list[bytes]]:
        """All header fields of a call's answer and its messages."""
        fields: dict[bytes, bytes] = {}
        body = b""
        while True:
            item = await self.until(lambda f: f.stream == stream or f.kind == frames.GOAWAY)
            assert item.kind not in (frames.GOAWAY, frames.RST_STREAM), item
            if item.kind == frames.HEADERS:
                fields |= dict(self.decoder.decode(item.payload) or [])
            elif item.kind == frames.DATA:
                body += item.payload
            if item.kind in (frames.HEADERS, frames.DATA) and item.flags & frames.END_STREAM:
                break
        messages = []
        while body and b"grpc-status" in fields:
            size = struct.unpack(">I", body[1:5])[0]
            messages.append(body[5 : 5 + size])
            body = body[5 + size :]
        return fields, messages or [body]

    async def goaway(self) -> tuple[int, str]:
        item = await self.until(lambda f: f.kind == frames.GOAWAY)
        return struct.unpack(">I", item.payload[4:8])[0], item.payload[8:].decode()

    async def closed(self) -> bool:
        while await asyncio.wait_for(self.reader.read(65536), 20):
            pass
        return True

    def begin(self, number: int, block: bytes, body: bytes = b"", *, end: bool = False) -> None:
        """A request's header and a first or only part of its body."""
        self.send(frame(frames.HEADERS, frames.END_HEADERS, number, block))
        if body or end:
            self.send(data(number, body, end=end))

    def call(self, number: int, method: str, body: bytes, *more: tuple[bytes, bytes]) -> None:
        self.begin(number, head(method, *more), message(body), end=True)


@contextlib.asynccontextmanager
async def connected(limits: Limits) -> AsyncIterator[tuple[Wire, Server, Core]]:
    async with serving(best_parser(), limits) as (server, core, port):
        wire = await Wire(port).open()
        try:
            yield wire, server, core
        finally:
            for one in wire.opened:
                one.writer.close()
                with contextlib.suppress(ConnectionError):
                    await one.writer.wait_closed()


def run(test: Callable[[Wire, Server, Core], Awaitable[None]], limits: Limits = LIMITS) -> None:
    async def main() -> None:
        async with connected(limits) as parts:
            await test(*parts)

    asyncio.run(main())


async def alive(wire: Wire, number: int) -> None:
    """The connection still answers."""
    wire.call(number, "ModelInfer", request())
    fields, (body,) = await wire.answer(number)
    assert fields[b"grpc-status"] == b"0", fields
    assert pb.ModelInferResponse.FromString(body).raw_output_contents == [X.tobytes()]


def test_calls_on_one_connection() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        for number in range(1, 40, 2):
            await alive(wire, number)
        for number in range(41, 141, 2):
            wire.call(number, "ModelInfer", request(identity=str(number)))
        for number in range(41, 141, 2):
            fields, (body,) = await wire.answer(number)
            assert pb.ModelInferResponse.FromString(body).id == str(number), fields

    run(test)


def test_calls_cut_at_every_octet() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        whole = frame(frames.HEADERS, frames.END_HEADERS, 1, head("ModelInfer"))
        whole += data(1, message(request()), pad=3) + data(1, b"", end=True)
        for octet in whole:
            wire.send(bytes((octet,)))
            await asyncio.sleep(0)
        fields, _ = await wire.answer(1)
        assert fields[b"grpc-status"] == b"0"

    run(test, Limits())


@pytest.mark.parametrize(
    ("method", "kind", "body", "code", "text"),
    [
        ("Nope", b"application/grpc", message(b""), status.UNIMPLEMENTED, "unknown method"),
        ("/a/b", b"application/grpc", message(b""), status.UNIMPLEMENTED, "unknown method /a/b"),
        ("ServerLive", b"application/grpc+json", message(b""), status.UNIMPLEMENTED, "protocol buffers"),
        ("ServerLive", b"application/grpc", b"", status.INVALID_ARGUMENT, "before its message"),
        ("ServerLive", b"application/grpc", b"\0\0\0\0\5abc", status.INVALID_ARGUMENT, "before its message"),
        ("ServerLive", b"application/grpc", message(b"") * 2, status.UNIMPLEMENTED, "more than one"),
        ("ServerLive", b"application/grpc", b"\7\0\0\0\0", status.INVALID_ARGUMENT, "flag 7"),
        ("ServerLive", b"application/grpc", b"\1\0\0\0\0", status.INTERNAL, "grpc-encoding"),
        ("ModelInfer", b"application/grpc", prefix(1 << 24), status.RESOURCE_EXHAUSTED, "larger than"),
        ("ModelInfer", b"application/grpc", message(b"\xff"), status.INVALID_ARGUMENT, "cut short"),
        ("ModelInfer", b"application/grpc", message(request(b"abc")), status.INVALID_ARGUMENT, "3 bytes"),
        ("ModelInfer", b"application/grpc;x=y", message(b""), status.NOT_FOUND, "unknown model"),
        ("ModelStreamInfer", b"application/grpc", message(b"\xff"), status.INVALID_ARGUMENT, "cut short"),
        ("ModelStreamInfer", b"application/grpc", b"\0\0\0\0\5a", status.INVALID_ARGUMENT, "middle of a"),
    ],
)  # fmt: skip
def test_calls_that_fail(method: str, kind: bytes, body: bytes, code: int, text: str) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.begin(1, head(method, kind=kind), body, end=True)
        fields, _ = await wire.answer(1)
        assert fields[b":status"] == b"200" and fields[b"content-type"] == b"application/grpc"
        assert int(fields[b"grpc-status"]) == code and text in fields[b"grpc-message"].decode(), fields
        await alive(wire, 3)

    run(test)


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [(b"grpc-timeout", b"soon", status.INVALID_ARGUMENT), (b"grpc-encoding", b"br", status.UNIMPLEMENTED)],
)
def test_fields_that_are_not_understood(field: bytes, value: bytes, code: int) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.call(1, "ModelInfer", request(), (field, value))
        fields, _ = await wire.answer(1)
        assert int(fields[b"grpc-status"]) == code
        assert b"gzip" in fields[b"grpc-accept-encoding"]
        await alive(wire, 3)

    run(test)


def test_a_deadline_that_has_passed() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.call(1, "ModelInfer", request(), (b"grpc-timeout", b"1n"))
        fields, _ = await wire.answer(1)
        assert int(fields[b"grpc-status"]) == status.DEADLINE_EXCEEDED

    run(test)


def test_many_messages_in_one_call_keep_their_order() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.begin(1, head("ModelStreamInfer"))
        bad = pb.ModelInferRequest(model_name="nope", id="bad").SerializeToString()
        stream = b"".join(message(request(identity=str(i))) for i in range(300)) + message(bad)
        for start in range(0, len(stream), 1000):
            wire.send(data(1, stream[start : start + 1000]))
        wire.send(data(1, b"", end=True))
        fields, messages = await wire.answer(1)
        assert fields[b"grpc-status"] == b"0"
        answers = [pb.ModelStreamInferResponse.FromString(body) for body in messages]
        assert [one.infer_response.id for one in answers] == [*map(str, range(300)), "bad"]
        assert (
            all(not one.error_message for one in answers[:-1])
            and "unknown model" in answers[-1].error_message
        )

    run(test)


def test_a_message_larger_than_the_window_is_let_in() -> None:
    """900 kB through a window of 256 KiB: the prefix tells the size, and the rest is granted at once."""

    async def test(wire: Wire, server: Server, core: Core) -> None:
        rows = np.zeros((56_000, 4), "<f4")
        body = message(request(rows.tobytes(), rows.shape))
        wire.send(frame(frames.HEADERS, frames.END_HEADERS, 1, head("ModelInfer")))
        window = 256 * 1024
        wire.send(data(1, body[:window]))
        granted = await wire.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 1)
        assert struct.unpack(">I", granted.payload)[0] == len(body) - window
        assert buffered(server) == len(body) - window
        wire.send(data(1, body[window:], end=True))
        fields, _ = await wire.answer(1)
        assert b"256 are allowed" in fields[b"grpc-message"], "too large a batch, after all"
        assert buffered(server) == 0

    run(test)


def test_memory_for_large_messages_is_shared() -> None:
    """Who begins large messages and stops gets its share of the memory and a time; others are served."""

    async def test(wire: Wire, server: Server, core: Core) -> None:
        begin = message(bytes(1 << 20))[:100_000]
        for number in range(1, 21, 2):
            wire.send(
                frame(frames.HEADERS, frames.END_HEADERS, number, head("ModelInfer")) + data(number, begin)
            )
        other = await wire.another()
        await alive(other, 1)
        assert 0 < buffered(server) <= 3 << 20
        codes = [(await wire.answer(number))[0][b"grpc-status"] for number in range(1, 21, 2)]
        assert {int(code) for code in codes} == {status.DEADLINE_EXCEEDED}
        assert buffered(server) == 0
        await alive(wire, 21)

    run(test)


def test_a_cancelled_upload_gives_its_memory_back() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        begin = message(bytes(1 << 20))[:100_000]
        wire.begin(1, head("ModelInfer"), begin)
        wire.begin(3, head("ModelStreamInfer"), begin)
        await wire.until(lambda f: f.kind == frames.WINDOW_UPDATE and f.stream == 3)
        wire.send(frames.rst_stream(1, e.CANCEL) + frames.rst_stream(3, e.CANCEL))
        await alive(wire, 5)
        assert buffered(server) == 0

    run(test)


# --- ordinary requests


def test_ordinary_requests_go_to_the_router() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        get = head("/v2/models/kws?x=y", kind=b"text/plain", verb=b"GET")
        wire.send(frame(frames.HEADERS, END, 1, get))
        fields, (body,) = await wire.answer(1)
        assert fields[b":status"] == b"200" and json.loads(body)["name"] == "kws"
        assert int(fields[b"content-length"]) == len(body)
        document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}]}
        post = head("/v2/models/kws/infer", kind=b"application/json")
        wire.begin(3, post, json.dumps(document).encode(), end=True)
        fields, (body,) = await wire.answer(3)
        assert fields[b":status"] == b"200" and json.loads(body)["outputs"][0]["data"] == [0, 1, 2, 3]
        wire.send(frame(frames.HEADERS, END, 5, head("/v2/models/kws/infer", kind=b"x", verb=b"GET")))
        fields, _ = await wire.answer(5)
        assert fields[b":status"] == b"405" and fields[b"allow"] == b"POST"
        wire.send(frame(frames.HEADERS, END, 7, head("/v2", kind=b"x", verb=b"HEAD")))
        fields, (body,) = await wire.answer(7)
        assert fields[b":status"] == b"405" and body == b""

    run(test)


@pytest.mark.parametrize("told", [True, False])
def test_bodies_larger_than_allowed(told: bool) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        size = LIMITS.max_body_bytes + 1
        more = [(b"content-length", str(size).encode())] if told else []
        wire.begin(1, head("/v2/models/kws/infer", *more, kind=b"x"))
        if not told:
            answer = asyncio.create_task(wire.answer(1))
            for _ in range(17):
                wire.send(data(1, bytes(65_000)))
                await asyncio.sleep(0.01)
            fields, _ = await answer
        else:
            fields, _ = await wire.answer(1)
        assert fields[b":status"] == b"413"
        await alive(wire, 3)
        assert buffered(server) == 0

    run(test)


# --- who breaks rules, is slow, or too much


def test_a_flood_ends_with_a_reason() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.send(frame(frames.PING, 0, 0, bytes(8)) * 2000)
        assert await wire.goaway() == (e.ENHANCE_YOUR_CALM, "too many PING frames")
        assert await wire.closed()
        await alive(await wire.another(), 1)

    run(test)


def test_a_client_that_does_not_read_is_hung_up_on() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.send(frames.window_update(0, 1 << 30) + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 30}))
        await alive(wire, 1)
        rows = np.zeros((250, 4), "<f4")
        body = message(request(rows.tobytes(), rows.shape))
        with contextlib.suppress(ConnectionError):
            for number in range(3, 20_000, 2):
                wire.send(
                    frame(frames.HEADERS, frames.END_HEADERS, number, head("ModelInfer"))
                    + data(number, body, end=True)
                )
                if number % 100 == 1:
                    await asyncio.wait_for(wire.writer.drain(), 20)
                    await asyncio.sleep(0.001)
        async with asyncio.timeout(20):
            while server.connections:
                await asyncio.sleep(0.01)

    run(test)


def test_windows_that_stay_closed_lose_their_stream() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
        wire.open_windows = False
        wire.call(1, "ModelInfer", request())
        reset = await wire.until(lambda f: f.kind == frames.RST_STREAM)
        assert reset.stream == 1 and reset.payload == struct.pack(">I", e.CANCEL)
        assert len(b"".join(f.payload for f in wire.got if f.kind == frames.DATA)) == 10
        wire.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 65535}))
        await alive(wire, 3)

    run(test)


@pytest.mark.parametrize("calls", [("ModelInfer", "ServerLive"), ("ServerLive", "ServerReady")])
def test_windows_that_can_never_open_lose_their_stream_at_once(calls: tuple[str, str]) -> None:
    """A client that has closed its side sends no WINDOW_UPDATE any more."""

    async def test(wire: Wire, server: Server, core: Core) -> None:
        await wire.until(lambda f: f.kind == frames.SETTINGS)
        wire.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
        for number, method in zip((1, 3), calls, strict=True):
            wire.call(number, method, request() if method == "ModelInfer" else b"")
        wire.writer.write_eof()
        for number in (1, 3):
            item = await wire.until(lambda f, of=number: f.kind == frames.RST_STREAM and f.stream == of)  # type: ignore[misc]
            assert item.payload == struct.pack(">I", e.CANCEL)
        assert await asyncio.wait_for(wire.closed(), 5)

    run(test, dataclasses.replace(LIMITS, write_timeout_s=30))


def test_slow_requests_are_given_up() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.begin(1, head("ModelInfer"), b"\0\0")
        wire.begin(3, head("ModelStreamInfer"), b"\0\0")
        wire.begin(5, head("/v2/models/kws/infer", kind=b"x"))
        first, second, third = await wire.answer(1), await wire.answer(3), await wire.answer(5)
        assert int(first[0][b"grpc-status"]) == int(second[0][b"grpc-status"]) == status.DEADLINE_EXCEEDED
        assert third[0][b":status"] == b"408"
        await alive(wire, 7)

    run(test)


@pytest.mark.parametrize(
    "part", [b"PR", frames.PREFACE[:20], frames.PREFACE, HELLO + b"\0\0\x10\1\4\0\0\0\1x"]
)
def test_slow_frames_end_the_connection(part: bytes) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        slow = await wire.another(part)
        assert await slow.closed()
        await alive(wire, 1)

    run(test)


def test_idle_connections_are_closed() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        await alive(wire, 1)
        assert await wire.goaway() == (e.NO_ERROR, "idle")
        assert await wire.closed()

    run(test, Limits(idle_timeout_s=0.2))


def test_an_idle_stream_of_messages_is_ended() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        wire.send(frame(frames.HEADERS, frames.END_HEADERS, 1, head("ModelStreamInfer")))
        wire.send(data(1, message(request())))
        fields, messages = await wire.answer(1)
        assert len(messages) == 1 and int(fields[b"grpc-status"]) == status.UNAVAILABLE

    run(test, Limits(idle_timeout_s=0.2))


def test_too_many_connections() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        others = [await wire.another() for _ in range(5)]
        for other in others:
            await alive(other, 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
        assert (await reader.readline()).startswith(b"HTTP/1.1 503")
        writer.close()

    run(test)


def test_both_protocols_on_one_socket_in_any_pieces() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        for first in (b"G", b"P", b"PO"):
            reader, writer = await asyncio.open_connection("127.0.0.1", wire.port)
            verb = b"GET" if first == b"G" else b"POST"
            text = verb + b" /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
            writer.write(text[: len(first)])
            await asyncio.sleep(0.02)
            writer.write(text[len(first) :])
            assert b"HTTP/1.1 " in await asyncio.wait_for(reader.readline(), 20)
            writer.close()
        slow = await wire.another(b"P")
        for octet in HELLO[1:]:
            await asyncio.sleep(0.001)
            slow.send(bytes((octet,)))
        await alive(slow, 1)

    run(test)


def test_the_server_leaves_after_answering() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        await alive(wire, 1)
        wire.send(frame(frames.HEADERS, frames.END_HEADERS, 3, head("ModelInfer")))
        await alive(wire, 5)
        drained = asyncio.create_task(server.drain(5))
        assert (await wire.goaway())[0] == e.NO_ERROR
        wire.begin(7, head("ModelInfer"))  # it was on its way
        body = message(request())
        await wire.until(lambda f: f.kind == frames.PING)
        last = await wire.until(lambda f: f.kind == frames.GOAWAY)
        assert struct.unpack(">II", last.payload) == (7, e.NO_ERROR)
        wire.send(data(3, body, end=True) + data(7, body, end=True))
        for number in (3, 7):
            fields, _ = await wire.answer(number)
            assert fields[b"grpc-status"] == b"0"
        assert await wire.closed() and await drained

    run(test)


def test_a_client_that_vanishes_leaves_nothing_behind() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        for _ in range(20):
            other = await wire.another()
            for number in range(1, 41, 2):
                other.call(number, "ModelInfer", request())
            other.begin(41, head("ModelInfer"), prefix(1 << 19))
            await asyncio.sleep(0.002)
            other.writer.transport.abort()
            await asyncio.sleep(0.01)
        await alive(wire, 1)
        async with asyncio.timeout(20):
            while server.connections > 1 or core.in_flight or buffered(server):
                await asyncio.sleep(0.01)

    run(test)
