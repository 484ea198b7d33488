"""Calls whose header repeats and that come in one piece: as right, and as strict, as all others."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from edgekit_agent import logs
from edgekit_agent.serve import trace
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.grpc import status
from edgekit_agent.serve.grpc.framing import prefix
from edgekit_agent.serve.grpc.h2 import frames
from edgekit_agent.serve.grpc.h2.frames import frame
from edgekit_agent.serve.grpc.quick import Quick
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.server import Server
from tests.unit.agent.serve.grpc.test_connection import Wire, X, alive, head, message, request, run
from tests.unit.agent.serve.h2.client import data
from tests.unit.agent.serve.test_trace import PARENT, SPAN, TRACE

BLOCK = head("ModelInfer")


def call(number: int, body: bytes, block: bytes = BLOCK) -> bytes:
    return frame(frames.HEADERS, frames.END_HEADERS, number, block) + data(number, body, end=True)


async def calls(wire: Wire, numbers: range, body: bytes) -> list[dict[bytes, bytes]]:
    wire.send(b"".join(call(number, body) for number in numbers))
    return [(await wire.answer(number))[0] for number in numbers]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Quick]:
    """The calls that went the short way."""
    found: list[Quick] = []
    begin = Quick.on_whole

    def noted(self: Quick, *arguments: Any) -> None:
        found.append(self)
        begin(self, *arguments)

    monkeypatch.setattr(Quick, "on_whole", noted)
    return found


def test_the_second_call_goes_the_short_way(counted: list[Quick]) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        for number in range(1, 41, 2):
            await alive(wire, number)
        assert len(counted) == 19
        assert core.in_flight == 0 and not wire_share(server)

    run(test)


def wire_share(server: Server) -> int:
    """Requests that count in any client's share."""
    return sum(share.requests for share in server.shares._known.values())


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        (b"\1" + message(request())[1:], status.INTERNAL, "grpc-encoding"),
        (message(request())[:-1], status.INVALID_ARGUMENT, "before its message"),
        (message(request()) + b"\0", status.UNIMPLEMENTED, "more than one"),
        (message(request()) * 2, status.UNIMPLEMENTED, "more than one"),
        (b"\0\0\0", status.INVALID_ARGUMENT, "before its message"),
        (b"\2" + message(request())[1:], status.INVALID_ARGUMENT, "flag 2"),
        (message(request(b"abc")), status.INVALID_ARGUMENT, "3 bytes"),
        (message(b"\xff"), status.INVALID_ARGUMENT, "cut short"),
        (message(request())[:5] + bytes(len(request())), status.INVALID_ARGUMENT, "field"),
    ],
)
def test_what_is_wrong_is_still_seen(body: bytes, code: int, text: str) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        fine = await calls(wire, range(1, 7, 2), message(request()))
        assert [fields[b"grpc-status"] for fields in fine] == [b"0"] * 3
        for number in (7, 9):
            wire.send(call(number, body))
            fields, _ = await wire.answer(number)
            assert int(fields[b"grpc-status"]) == code and text in fields[b"grpc-message"].decode(), fields
        await alive(wire, 11)
        assert core.in_flight == 0 and not wire_share(server)

    run(test)


def test_messages_in_all_sizes(counted: list[Quick]) -> None:
    """Copied, looked at where they lie, and larger than the answer's short way."""

    async def test(wire: Wire, server: Server, core: Core) -> None:
        number = 1
        for rows in (1, 200, 100, 250):
            for _ in range(3):
                wire.send(call(number, message(request(X.tobytes() * rows, (rows, 4), str(number)))))
                _, (body,) = await wire.answer(number)
                answer = pb.ModelInferResponse.FromString(body)
                assert answer.raw_output_contents == [X.tobytes() * rows] and answer.id == str(number)
                number += 2
        assert len(counted) == 11

    run(test, Limits())


def test_a_deadline_counts_for_each_call() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        late, early = (
            head("ModelInfer", (b"grpc-timeout", b"1n")),
            head("ModelInfer", (b"grpc-timeout", b"20S")),
        )
        for number in range(1, 17, 4):
            found = []
            for one, block in ((number, late), (number + 2, early)):
                wire.send(call(one, message(request()), block))
                found.append(int((await wire.answer(one))[0][b"grpc-status"]))
            assert found == [status.DEADLINE_EXCEEDED, status.OK]

    run(test)


def test_a_call_that_is_given_up_costs_nothing_afterwards(counted: list[Quick]) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        await calls(wire, range(1, 5, 2), message(request()))
        for number in range(5, 45, 2):
            wire.send(call(number, message(request())) + frames.rst_stream(number, 8))
        await alive(wire, 45)
        assert core.in_flight == 0 and not wire_share(server)
        assert len(counted) == 22
        gc.collect()
        gc.disable()
        try:
            await alive(wire, 47)
            counted.clear()
            assert not [one for one in gc.get_objects() if isinstance(one, Quick)], "no cycle keeps them"
        finally:
            gc.enable()

    run(test)


def test_the_queue_is_as_short_for_them() -> None:
    limits = Limits(max_queue=8, max_connections=8)

    async def test(wire: Wire, server: Server, core: Core) -> None:
        await calls(wire, range(1, 5, 2), message(request()))
        found = await calls(wire, range(5, 21, 2), message(request()))
        codes = {int(fields[b"grpc-status"]) for fields in found}
        assert codes <= {status.OK, status.RESOURCE_EXHAUSTED, status.UNAVAILABLE} and status.OK in codes
        await alive(wire, 101)
        async with asyncio.timeout(20):
            while core.in_flight or wire_share(server):
                await asyncio.sleep(0.01)

    run(test, limits)


def test_ids_come_back_and_a_trace_goes_on() -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        traced = (b"traceparent", PARENT), (b"x-request-id", b"job-7")
        for number in (1, 3, 5):
            wire.call(number, "ModelInfer", request(), *traced)
            fields, _ = await wire.answer(number)
            assert fields[b"grpc-status"] == b"0" and fields[b"x-request-id"] == b"job-7"
            assert fields[b"traceparent"].startswith(f"00-{TRACE}-".encode())
            assert SPAN.encode() not in fields[b"traceparent"]
        wire.call(7, "Nope", b"", *traced)
        wire.call(9, "ModelInfer", b"\xff", *traced)
        wire.begin(11, head("ModelStreamInfer", *traced), message(request()) * 2, end=True)
        wire.call(13, "ModelInfer", request())
        for number, code in ((7, status.UNIMPLEMENTED), (9, status.INVALID_ARGUMENT), (11, status.OK)):
            fields, _ = await wire.answer(number)
            assert int(fields[b"grpc-status"]) == code and fields[b"x-request-id"] == b"job-7", fields
        fields, _ = await wire.answer(13)
        assert b"traceparent" not in fields and b"x-request-id" not in fields

    run(test)


@pytest.mark.parametrize("wanted", ["none", "failed", "all"])
def test_what_is_logged(wanted: logs.Requests, caplog: pytest.LogCaptureFixture) -> None:
    async def test(wire: Wire, server: Server, core: Core) -> None:
        server.registry().log = wanted
        body = request()
        for number in (1, 3):
            wire.call(number, "ModelInfer", body, (b"x-request-id", b"r1"))
            await wire.answer(number)
        wire.call(5, "ModelInfer", b"\xff")
        await wire.answer(5)
        wire.call(7, "Nope", b"")
        await wire.answer(7)
        wire.begin(9, head("ModelStreamInfer"), message(body) * 3, end=True)
        await wire.answer(9)

    caplog.set_level(logging.INFO, trace._log.name)
    run(test)
    found = [getattr(record, logs.FIELDS) for record in caplog.records]
    codes = [fields["grpc_status"] for fields in found]
    bad = [status.INVALID_ARGUMENT, status.UNIMPLEMENTED]
    assert codes == {"none": [], "failed": bad, "all": [0, 0, *bad, 0]}[wanted]
    if wanted == "all":
        assert (
            found[0]["path"] == "/inference.GRPCInferenceService/ModelInfer" and found[0]["method"] == "gRPC"
        )
        assert found[0]["request_id"] == "r1" and found[0]["bytes_in"] == len(request())
        assert (
            found[4]["bytes_in"] == 3 * len(request()) and found[4]["bytes_out"] > found[0]["bytes_out"] > 16
        )
    assert prefix(0) == bytes(5)
