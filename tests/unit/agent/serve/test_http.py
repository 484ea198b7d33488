"""HTTP/1.1 on the wire, the same for both parsers: real server, real sockets, one thread of asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import json
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from edgekit_agent.process import rss_mib
from edgekit_agent.serve import engine
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.grpc import services
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.router import Router
from edgekit_agent.serve.server import Server
from edgekit_agent.worker import new_loop
from tests.support.serving import linear

LIMITS = Limits(
    max_header_bytes=4096, max_body_bytes=100_000, max_connections=5, read_timeout_s=0.3, idle_timeout_s=60
)
BODY = json.dumps(
    {"id": "7", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
).encode()
STACKS = (("httptools", "uvloop"), ("httptools", "asyncio"), ("python", "asyncio"))
Test = Callable[["Wire"], Awaitable[None]]


class Wire:
    """One client connection, byte by byte."""

    def __init__(self, port: int, opened: list[Wire] | None = None) -> None:
        self.port = port
        self.opened: list[Wire] = opened if opened is not None else []

    async def open(self) -> Wire:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.opened.append(self)
        return self

    async def another(self) -> Wire:
        return await Wire(self.port, self.opened).open()

    async def close_all(self) -> None:
        for wire in self.opened:
            wire.writer.close()
            with contextlib.suppress(ConnectionError):
                await wire.writer.wait_closed()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head_only: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields (lower case) and body."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode()
        first, *lines = head.strip().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        status = int(first.split()[1])
        size = 0 if head_only or status == 100 else int(fields["content-length"])
        return status, fields, await asyncio.wait_for(self.reader.readexactly(size), 20)

    async def closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 20) == b""


@contextlib.asynccontextmanager
async def serving(parser: str, limits: Limits = LIMITS) -> AsyncIterator[tuple[Server, Core, int]]:
    core = Core(limits)
    server = Server(Router(core).handle, limits, parser, grpc=lambda: services.registry(core))
    candidate = linear()
    with candidate.memory() as fds:
        proven = engine.load(candidate.load, fds)
    counters = core.ledger.open("kws", "1")
    config = candidate.load.config
    core.swap(Model("kws", "1", config, proven.session, proven.pace, Gate(1), counters))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await server.listen([listener])
        try:
            yield server, core, listener.getsockname()[1]
        finally:
            await server.drain(5)
            server.close()
            core.swap(None)
            await core.retired()
            await asyncio.sleep(0.01)


@pytest.fixture(params=STACKS, ids="-".join)
def with_wire(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Run a coroutine function with one open connection."""
    parser, loop = request.param

    def run(test: Test, limits: Limits = LIMITS) -> None:
        async def main() -> None:
            async with serving(parser, limits) as (_, _, port):
                wire = await Wire(port).open()
                try:
                    await test(wire)
                finally:
                    await wire.close_all()

        with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
            runner.run(main())

    return run


def post(body: bytes = BODY, extra: str = "", path: str = "/v2/models/kws/infer") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def fine(answer: tuple[int, dict[str, str], bytes]) -> None:
    status, _, body = answer
    assert status == 200, body
    assert json.loads(body)["outputs"][0]["data"] == [1.0, 2.0, 3.0, 4.0] and json.loads(body)["id"] == "7"


def refused(answer: tuple[int, dict[str, str], bytes], status: int) -> None:
    assert answer[0] == status, answer
    document = json.loads(answer[2])
    assert set(document) == {"error"} and isinstance(document["error"], str) and document["error"]


def test_requests_cut_at_every_byte(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        message = post(extra="X-Long: abc\r\n")
        for cut in range(1, len(message), 7):
            wire.send(message[:cut])
            await asyncio.sleep(0.001)
            wire.send(message[cut:])
            fine(await wire.answer())

    with_wire(test)


def tensor(values: list[float], name: str = "x", pad: str = "") -> tuple[bytes, bytes]:
    """JSON and binary part of a request."""
    item = {"name": name, "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    return json.dumps({"inputs": [item], "pad": pad}).encode(), struct.pack("<4f", *values)


def test_heads_that_repeat_are_read_as_the_first_one_was(with_wire: Callable[..., None]) -> None:
    """Whatever a connection has sent before, an answer is the one that a fresh connection gets."""

    async def test(wire: Wire) -> None:
        def binary(values: list[float], extra: str = "", **fields: str) -> bytes:
            head, raw = tensor(values, **fields)
            return post(head + raw, f"Inference-Header-Content-Length: {len(head)}\r\n{extra}")

        messages = [
            binary([1, 2, 3, 4]), binary([1, 2, 3, 4]), binary([5, 6, 7, 8]), binary([5, 6, 7, 8], pad="!"),
            binary([1, 2, 3, 4], name="z"), binary([1, 2, 3, 4], "X-Id: 1\r\n"), post(), post(),
            post(path="/v2/nope"), post(BODY.replace(b"1, 2", b"1; 2")), post(), binary([0, 0, 0, 1]),
            b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
            post(b"\xff\xd8\xff" + BODY[3:]), post(b" " + BODY[:-1]), post(path="/v2/models/kws/inferr"),
            binary([9, 9, 9, 9]),
        ]  # fmt: skip
        wanted = []
        for message in messages:
            fresh = await wire.another()
            fresh.send(message)
            wanted.append(await fresh.answer())
            fresh.writer.close()
            await fresh.writer.wait_closed()
        order = random.Random(5)
        for _ in range(120):
            picks = [order.randrange(len(messages)) for _ in range(order.randrange(1, 4))]
            picks *= order.randrange(1, 4)  # what a head means is remembered from its second time on
            data = b"".join(messages[pick] for pick in picks)
            cut = order.randrange(len(data)) if order.random() < 0.5 else 0
            wire.send(data[:cut])
            if cut:
                await asyncio.sleep(0.001)
            wire.send(data[cut:])
            for pick in picks:
                assert await wire.answer() == wanted[pick], messages[pick]
        raw = messages[0]
        for _ in range(3):
            wire.send(raw)  # known by now
            assert await wire.answer() == wanted[0]
        wire.send(raw + b"rubbish\r\n\r\n")
        assert await wire.answer() == wanted[0]
        refused(await wire.answer(), 400)

    with_wire(test)


LARGE = Limits(
    max_header_bytes=4096, max_body_bytes=2_000_000, max_batch=100_000, max_connections=40, read_timeout_s=20
)


def rows(count: int, start: float, extra: str = "") -> tuple[bytes, bytes]:
    """A request of `count` rows of four numbers, and the bytes that its answer ends with."""
    raw = struct.pack(f"<{4 * count}f", *(start + number % 1000 for number in range(4 * count)))
    item = {
        "name": "x",
        "datatype": "FP32",
        "shape": [count, 4],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [item], "parameters": {"binary_data_output": True}}).encode()
    return post(head + raw, f"Inference-Header-Content-Length: {len(head)}\r\n{extra}"), raw


@pytest.mark.parametrize("count", [4_000, 5_000, 20_000, 100_000])
@pytest.mark.parametrize("piece", [0, 1000, 70_000])
def test_large_bodies_arrive_as_they_were_sent(
    with_wire: Callable[..., None], count: int, piece: int
) -> None:
    """Read past the parser when large enough: the first with a head, those after it, and what follows."""

    async def test(wire: Wire) -> None:
        for start, extra in ((1, ""), (2, ""), (3, "X-Id: 7\r\n"), (4, ""), (5, "Expect: 100-continue\r\n")):
            message, raw = rows(count, start, extra)
            data = message + post() + message
            step = piece or len(data)
            for at in range(0, len(data), step):
                wire.send(data[at : at + step])
                if piece:
                    await asyncio.sleep(0)
            status, _, body = await wire.answer()
            while status == 100:
                status, _, body = await wire.answer()
            assert status == 200 and body.endswith(raw)
            fine(await wire.answer())
            status, _, body = await wire.answer()
            while status == 100:
                status, _, body = await wire.answer()
            assert status == 200 and body.endswith(raw)

    with_wire(test, LARGE)


def padded(count: int, start: float, pad: int) -> tuple[bytes, bytes]:
    """As `rows`, with a JSON part that is `pad` bytes longer."""
    message, raw = rows(count, start)
    head = message.partition(b"\r\n\r\n")[2][: -len(raw)] + b" " * pad
    return post(head + raw, f"Inference-Header-Content-Length: {len(head)}\r\n"), raw


@pytest.mark.parametrize("pad", [0, 1, 2, 7, 16])
def test_large_bodies_after_the_same_head_go_straight_to_their_place(
    with_wire: Callable[..., None], pad: int
) -> None:
    async def test(wire: Wire) -> None:
        begins = [padded(20_000, start, pad) for start in range(5)]
        length = begins[0][0].index(b"\r\n\r\n") + 4
        assert len({message[:length] for message, _ in begins}) == 1
        for cut in (0, 1, 20, 60, length, length + 1, 100_000):
            for message, raw in begins:
                wire.send(message[:cut])
                if cut:
                    await asyncio.sleep(0.001)
                wire.send(message[cut:])
                assert (await wire.answer())[2].endswith(raw)
        others = [padded(20_000, 7, pad + 1), padded(30_000, 8, pad), rows(20_001, 9)]  # heads begin alike
        for message, raw in [*others, begins[0], *others, begins[1]]:
            wire.send(message + message + post() + message)
            for number in range(4):
                answer = await wire.answer()
                if number == 2:
                    fine(answer)
                else:
                    assert answer[2].endswith(raw)
        message, raw = begins[2]
        wire.send(message + message)
        assert [(await wire.answer())[2].endswith(raw) for _ in range(2)] == [True, True]
        wire.send(message[:30])
        refused(await wire.answer(), 408)
        assert await wire.closed()

    with_wire(test, dataclasses.replace(LARGE, read_timeout_s=2))


@pytest.mark.parametrize("stack", STACKS, ids="-".join)
def test_large_bodies_wait_in_their_sockets_while_there_is_enough_to_do(stack: tuple[str, str]) -> None:
    parser, loop = stack
    message, raw = rows(100_000, 1)
    limits = dataclasses.replace(LARGE, max_ahead_bytes=1000, read_timeout_s=1.5)

    async def main() -> None:
        async with serving(parser, limits) as (server, _, port):
            wire = await Wire(port).open()
            try:
                wire.send(message)
                assert (await wire.answer())[2].endswith(raw)  # its head is known from now on
                for _ in range(3):
                    server.room.ahead.add(10_000)  # as if so many were complete
                others = [wire, await wire.another(), await wire.another()]
                for other in others:
                    other.send(message)
                gone = await wire.another()
                gone.send(message[:-1])
                await asyncio.sleep(2.5)  # longer than a client may take: it does not count
                assert not any(other.reader._buffer for other in others)  # type: ignore[attr-defined]
                small = await wire.another()
                small.send(post())
                fine(await small.answer())
                assert server.shares._buffered < 4 * 1_600_000
                gone.writer.close()
                for _ in range(3):
                    server.room.ahead.remove(10_000)
                for other in others:
                    assert (await other.answer())[2].endswith(raw)
                assert (server.room.ahead._count, server.room.ahead._bytes) == (0, 0)
                assert not server.room.ahead._waiting and server.shares._buffered == 0
            finally:
                await wire.close_all()

    with asyncio.Runner(loop_factory=lambda: new_loop(loop)) as runner:
        runner.run(main())


def test_a_large_body_that_stops_is_an_error_and_its_memory_is_let_go(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        message, raw = rows(100_000, 1)
        for _ in range(2):  # with a head that is new, and with one that is known
            wire.send(message)
            assert (await wire.answer())[2].endswith(raw)
            late = await wire.another()
            late.send(message)
            assert (await late.answer())[2].endswith(raw)
            late.send(message[:-100])
            refused(await late.answer(), 408)
            late.send(message[-100:])  # too late; thrown away
            late.writer.write_eof()
            assert await late.closed()
        for _ in range(20):
            gone = await wire.another()
            gone.send(message[:200_000])
            await asyncio.sleep(0.005)
            gone.writer.close()
            await gone.writer.wait_closed()
        ended = await wire.another()
        ended.send(message[:200_000])
        ended.writer.write_eof()
        assert await ended.closed()
        wire.send(message + post())
        assert (await wire.answer())[2].endswith(raw)
        fine(await wire.answer())

    with_wire(test, dataclasses.replace(LARGE, read_timeout_s=2))


def test_what_is_announced_costs_nothing_until_it_comes(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        before = rss_mib()
        head = post(b"", "Content-Length: 60000000\r\n").replace(b"Content-Length: 0\r\n", b"")
        for _ in range(30):
            wire = await wire.another()
            wire.send(head + b"x")
        await asyncio.sleep(0.2)
        assert rss_mib() - before < 60

    with_wire(test, Limits(max_body_bytes=100_000_000, max_connections=40))


def test_chunked_bodies(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        parts = [BODY[:10], BODY[10:11], BODY[11:]]
        chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        wire.send(
            b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        )
        fine(await wire.answer())
        wire.send(post())
        fine(await wire.answer())

    with_wire(test)


def test_pipelined_requests_are_answered_in_order(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        big = json.loads(BODY)
        big["inputs"][0] |= {"shape": [200, 4], "data": [[1, 2, 3, 4]] * 200, "pad": " " * 66_000}
        slow = post(json.dumps(big).encode())  # large: goes through the model's thread
        wire.send((slow + post() + b"GET /v2/nope HTTP/1.1\r\nHost: x\r\n\r\n") * 20)
        for _ in range(20):
            status, _, body = await wire.answer()
            assert status == 200 and json.loads(body)["outputs"][0]["shape"] == [200, 4]
            fine(await wire.answer())
            refused(await wire.answer(), 404)

    with_wire(test)


def test_too_many_pipelined_requests(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        wire.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        statuses: list[int] = []
        while not statuses or statuses[-1] == 200:
            statuses.append((await wire.answer())[0])
        assert len(statuses) > 1 and statuses[-1] == 503 and await wire.closed()

    with_wire(test)


def test_expect_continue(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        head, _, body = post(extra="Expect: 100-continue\r\n").partition(b"\r\n\r\n")
        wire.send(head + b"\r\n\r\n")
        assert (await wire.answer())[0] == 100
        wire.send(body)
        fine(await wire.answer())
        wire.send(post(extra="Expect: 100-continue\r\n"))  # did not wait: no 100 is needed
        fine(await wire.answer())
        wire.send(head.replace(b"100-continue", b"miracles") + b"\r\n\r\n")
        refused(await wire.answer(), 417)

    with_wire(test)


def test_an_offer_of_another_protocol_is_ignored(with_wire: Callable[..., None]) -> None:
    """As Java's HttpClient sends it with its first request."""

    async def test(wire: Wire) -> None:
        offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
        wire.send(post(extra=offer) + post())
        fine(await wire.answer())
        fine(await wire.answer())

    with_wire(test)


def test_http_1_0_and_connection_close(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        wire.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
        status, fields, _ = await wire.answer()
        assert (status, fields["connection"]) == (200, "close") and await wire.closed()
        other = await wire.another()
        other.send(post(extra="Connection: close\r\n") + b"trailing rubbish")
        fine(await other.answer())
        assert await other.closed()
        half = await wire.another()
        half.send(post())
        half.writer.write_eof()
        fine(await half.answer())
        assert await half.closed()

    with_wire(test)


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("HEAD /v2/health/live", 405),
        ("GET /v2/models/kws/infer", 405),
        ("PUT /v2/models/kws/infer", 405),
        ("DELETE /metrics", 405),
        ("GET /v2/nope", 404),
        ("GET /", 404),
        ("GET /v2/models/other", 404),
        ("GET /v2/models/kws/versions/2", 404),
        ("GET /v2/models/kws/versions/1?x=y", 200),
        ("GET /v2/models/%6bws", 200),
        ("GET /v2/models/%ff%fe", 404),
        ("GET /v2/models/stats", 200),
    ],
)
def test_paths_and_methods(with_wire: Callable[..., None], request_line: str, status: int) -> None:
    async def test(wire: Wire) -> None:
        wire.send(f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        head = request_line.startswith("HEAD")
        answer = await wire.answer(head_only=head)
        assert answer[0] == status
        if status == 405:
            assert answer[1]["allow"] in ("get", "post")
        if status != 200 and not head:
            refused(answer, status)
        wire.send(post())  # the connection is still good
        fine(await wire.answer())

    with_wire(test)


GET = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v2 HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS hello\r\n\r\n", 400),
        (GET + b"bad header\r\n\r\n", 400),
        (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (GET + b"Content-Length: -5\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400),
        (POST + CHUNKED + b"\r\nzz\r\n\r\n", 400),
        (POST + b"Content-Length: 100001\r\n\r\n", 413),
        (POST + CHUNKED + b"\r\n" + b"4000\r\n%s\r\n" % (b"a" * 16384) * 9, 413),
        (GET + b"X: " + b"a" * 5000 + b"\r\n\r\n", 431),
        (GET + b"X: " + b"a" * 300_000, 431),
        (GET + b"".join(b"X-%d: a\r\n" % i for i in range(200)) + b"\r\n", 431),
    ],
)
def test_broken_requests_get_a_reason_and_are_closed(
    with_wire: Callable[..., None], message: bytes, status: int
) -> None:
    async def test(wire: Wire) -> None:
        wire.send(post() + message)
        fine(await wire.answer())  # what came before is answered
        answer = await wire.answer()
        wanted = {status, 400} if status == 501 else {status}
        assert answer[0] in wanted and answer[1]["connection"] == "close"
        refused(answer, answer[0])
        wire.writer.write_eof()
        assert await wire.closed()
        again = await wire.another()
        again.send(post())
        fine(await again.answer())

    with_wire(test)


@pytest.mark.parametrize("sent", [b"POST /v2/models/kws/infer HT", post()[:-5], b"P"])
def test_slow_requests_end(with_wire: Callable[..., None], sent: bytes) -> None:
    async def test(wire: Wire) -> None:
        wire.send(sent)
        refused(await wire.answer(), 408)
        assert await wire.closed()

    with_wire(test)


def test_too_many_connections_and_recovery(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        wire.send(post())
        fine(await wire.answer())
        others = [await wire.another() for _ in range(3)]
        for other in others:
            other.send(post())
            fine(await other.answer())
        extra = await wire.another()
        refused(await extra.answer(), 503)
        assert await extra.closed()
        extra.writer.close()
        for other in others:
            other.writer.close()
        for _ in range(200):
            late = await wire.another()
            late.send(post())
            if (await late.answer())[0] == 200:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("closed connections still count")

    with_wire(test)


def test_compressed_bodies_and_bombs(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        wire.send(post(gzip.compress(BODY), "Content-Encoding: gzip\r\n"))
        fine(await wire.answer())
        bomb = gzip.compress(b" " * 50_000_000)
        assert len(bomb) < LIMITS.max_body_bytes
        for body, coding in (
            (bomb, "gzip"),
            (gzip.compress(BODY)[:-9], "gzip"),
            (gzip.compress(BODY) + b"x", "gzip"),
            (BODY, "deflate"),
            (BODY, "br"),
        ):
            wire.send(post(body, f"Content-Encoding: {coding}\r\n"))
            refused(await wire.answer(), 400)

    with_wire(test)


def test_a_client_that_does_not_read_is_cut_off(with_wire: Callable[..., None]) -> None:
    async def test(wire: Wire) -> None:
        wire.reader._transport.pause_reading()  # type: ignore[attr-defined]
        rows: dict[str, Any] = json.loads(BODY)
        rows["inputs"][0] |= {"shape": [256, 4], "data": [[1, 2, 3, 4]] * 256}
        message = post(json.dumps(rows).encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(4000):
                wire.send(message)
                await wire.writer.drain()
            raise AssertionError("40 MB of requests were taken although no answer was read")

    with_wire(test, Limits(max_header_bytes=4096, write_timeout_s=0.2))


def test_drain_answers_what_is_begun_and_closes_the_rest() -> None:
    async def main() -> None:
        async with serving("httptools") as (server, _, port):
            idle = await Wire(port).open()
            begun = await idle.another()
            for wire in (idle, begun):
                wire.send(post())
                fine(await wire.answer())
            begun.send(post()[:-5])
            async with asyncio.timeout(20):
                while all(one.idle for one in server._connections):
                    await asyncio.sleep(0.001)
            draining = asyncio.create_task(server.drain(10))
            assert await idle.closed()
            begun.send(post()[-5:])
            answer = await begun.answer()
            fine(answer)
            assert answer[1]["connection"] == "close" and await begun.closed() and await draining
            late = await idle.another()  # the listener is the test's and still open, but nobody accepts
            late.send(post())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(late.reader.read(1), 0.2)
            await idle.close_all()

    asyncio.run(main())
