"""The core and the router, without sockets: releases, deadlines, protocols by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from edgekit.errors import ConfigError, InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import engine, protocols
from edgekit_agent.serve.core import Core, NotServed, Prepared, prepare
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.router import Router
from tests.support.serving import linear

LIMITS = Limits()


class Plain:
    """A protocol without bytes: rows in, rows or (status, text) out."""

    def __init__(self, rows: object, *, late_ns: int = 0) -> None:
        self.rows, self.late_ns = rows, late_ns

    def decode(self, model: Model, limits: Limits) -> Prepared:
        if not isinstance(self.rows, list):
            raise InputError("rows, please")
        prepared = prepare(model, {"x": np.array(self.rows, np.float32)}, limits, "note")
        prepared.deadline_ns = self.late_ns
        return prepared

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> object:
        assert prepared.note == "note" and prepared.input_ns > 0
        return outputs["y"].tolist()

    def refuse(self, status: int, text: str) -> object:
        return status, text


def model(core: Core, gain: float = 2.0) -> Model:
    candidate = linear(gain)
    with candidate.memory() as fds:
        proven = engine.load(candidate.load, fds)
    counters = core.ledger.open("kws", "1")
    return Model("kws", "1", candidate.load.config, proven.session, proven.pace, Gate(1), counters)


def with_core(test: Callable[[Core], Awaitable[None]], limits: Limits = LIMITS) -> None:
    async def main() -> None:
        core = Core(limits)
        try:
            await test(core)
        finally:
            core.swap(None)
            await core.retired()

    asyncio.run(main())


async def ask(core: Core, codec: Plain, name: str = "kws", version: str = "", **options: int) -> object:
    answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    heavy = bool(options.pop("heavy", 0))
    now = time.perf_counter_ns()
    core.infer(name, version, codec, answer.set_result, received_ns=now, heavy=heavy, **options)
    return await asyncio.wait_for(answer, 20)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("limits", [LIMITS, Limits(inline_ms=0)])
def test_answers_and_refusals_on_every_way_through(heavy: bool, limits: Limits) -> None:
    async def test(core: Core) -> None:
        assert await ask(core, Plain([[1, 2, 3, 4]])) == (503, "no model is loaded")
        core.swap(model(core))
        row, double = [1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0]
        assert await ask(core, Plain([row] * 3), heavy=heavy) == [double] * 3
        assert await ask(core, Plain("no rows"), heavy=heavy) == (400, "rows, please")
        assert (await ask(core, Plain([row] * 257), heavy=heavy))[0] == 400  # type: ignore[index]
        assert (await ask(core, Plain([row]), "kws", "2"))[0] == 404  # type: ignore[index]
        assert (await ask(core, Plain([row]), "other"))[0] == 404  # type: ignore[index]
        assert core.in_flight == 0 and core.model is not None and core.model.users == 0
        counters = core.model.counters
        assert (counters.requests, counters.rejected, counters.errors, counters.inferences) == (5, 4, 0, 3)

    with_core(test, limits)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_deadline_that_has_passed_is_answered_without_running(heavy: bool) -> None:
    async def test(core: Core) -> None:
        core.swap(model(core))
        now = time.perf_counter_ns()
        passed, ahead = now - 1, now + 20_000_000_000
        rows = [[1.0, 0.0, 0.0, 0.0]]
        for codec, deadline in ((Plain(rows), passed), (Plain(rows, late_ns=passed), ahead)):
            answer = await ask(core, codec, deadline_ns=deadline, heavy=heavy)
            assert answer == (504, "the request's timeout passed while it waited")
        assert await ask(core, Plain(rows, late_ns=ahead), deadline_ns=ahead, heavy=heavy) == [[2, 0, 0, 0]]
        assert core.model is not None and core.model.counters.compute_infer.count == 1

    with_core(test)


def test_find_says_what_is_missing() -> None:
    async def test(core: Core) -> None:
        with pytest.raises(NotServed, match="no model is loaded") as caught:
            core.find("kws")
        assert caught.value.http_status == 503
        core.swap(model(core))
        assert core.find("kws", "1") is core.find("kws") is core.model
        for name, version in (("kws", "2"), ("other", "")):
            with pytest.raises(NotServed, match="not found") as caught:
                core.find(name, version)
            assert caught.value.http_status == 404

    with_core(test)


def test_only_the_chosen_protocols_are_spoken() -> None:
    async def get(router: Router, target: bytes) -> Response:
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        router.handle(Request(b"GET", target, {}, b"", True, 0), answer.set_result)
        return await asyncio.wait_for(answer, 30)

    async def test(core: Core) -> None:
        assert (await get(Router(core), b"/v2")).status == 200
        silent = Router(core, ())
        assert (await get(silent, b"/v2")).status == 404
        assert (await get(silent, b"/metrics")).status == 200
        with pytest.raises(ConfigError, match="soap"):
            Router(core, ("oip", "soap"))

    with_core(test)


def test_names_keep_their_order_and_all_means_all() -> None:
    assert protocols.chosen(("all",)) == tuple(protocols.HTTP) == protocols.chosen([*protocols.HTTP][::-1])
