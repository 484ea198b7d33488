"""Which requests share an engine run, in which order they run, and what happens to those that cannot wait."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
import pytest

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._pace import Pace, Trials
from edgekit_agent.serve import tryout
from edgekit_agent.serve.core import Core, Prepared, prepare
from edgekit_agent.serve.inline import Inline
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Gate, Model
from tests.support.serving import linear

THREADED = Limits(inline_ms=0)
LONG_AGO = -(10**9)  # on a thread's clock


class Doubling:
    """y = 2 x; notes what it runs, waits while `open` is not set, and fails for 13."""

    thread_safe = True

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.runs: list[list[float]] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            self.runs.append(inputs["x"].reshape(len(inputs["x"]), -1)[:, 0].tolist())
            self._now += 1
            self.most = max(self.most, self._now)
        self.open.wait(20)
        with self._lock:
            self._now -= 1
        if (inputs["x"] == 13).any():
            raise EngineError("thirteen")
        return {"y": inputs["x"] * 2}

    def coverage(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


class Rows:
    """A protocol without bytes: an array in, the answer's first column or (status, text) out."""

    def __init__(self, value: float, *, rows: int = 1, width: int = 4, priority: int = 0) -> None:
        self.array = np.full((rows, width), value, np.float32)
        self.priority = priority

    def decode(self, model: Model, limits: Limits) -> Prepared:
        prepared = prepare(model, {"x": self.array}, limits)
        prepared.priority = self.priority
        return prepared

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> object:
        assert outputs["y"].shape == self.array.shape
        return outputs["y"][:, 0].tolist()

    def refuse(self, status: int, text: str) -> object:
        return status


class Bench:
    """A core that serves a Doubling."""

    def __init__(self, limits: Limits, pace: Pace, *, width: int = 1, ragged: bool = False) -> None:
        self.core, self.session = Core(limits), Doubling()
        config = linear().load.config
        if ragged:
            spec = TensorSpec("x", "FP32", (-1, -1))
            config = dataclasses.replace(config, inputs=(spec,), labels=())
        counters = self.core.ledger.open("kws", "1")
        self.core.swap(Model("kws", "1", config, self.session, pace, Gate(width), counters))

    def ask(self, codec: Rows, *, deadline_ns: int = 0, priority: int = 0) -> asyncio.Future[object]:
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.core.infer(
            "kws", "", codec, answer.set_result,
            received_ns=time.perf_counter_ns(), deadline_ns=deadline_ns, priority=priority,
        )  # fmt: skip
        return answer

    async def busy(self) -> asyncio.Future[object]:
        """Occupy the engine until `session.open` is set."""
        self.session.open.clear()
        before = len(self.session.runs)
        first = self.ask(Rows(99))
        while len(self.session.runs) == before:
            await asyncio.sleep(0.001)
        return first


def run(test: Callable[[Bench], Awaitable[None]], limits: Limits, pace: Pace, **options: int) -> None:
    async def main() -> None:
        bench = Bench(limits, pace, **options)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(test(bench), 60)
        finally:
            bench.session.open.set()
            bench.core.swap(None)
            await bench.core.retired()

    asyncio.run(main())


@pytest.mark.parametrize("limits", [Limits(), THREADED])
def test_what_came_together_runs_together_and_everybody_gets_his_own(limits: Limits) -> None:
    async def test(bench: Bench) -> None:
        answers = [bench.ask(Rows(value, rows=rows)) for value, rows in ((1, 1), (2, 2), (3, 1), (4, 3))]
        assert [await answer for answer in answers] == [[2.0], [4.0, 4.0], [6.0], [8.0, 8.0, 8.0]]
        assert bench.session.runs == [[1, 2, 2, 3], [4, 4, 4]]
        counters = bench.core.find("kws").counters
        assert {size: runs.infer.count for size, runs in counters.runs.items()} == {4: 1, 3: 1}
        assert (counters.requests, counters.inferences, bench.core.in_flight) == (4, 7, 0)

    run(test, limits, Pace(0.001, 4, 0.002))


def test_a_lone_request_does_not_wait_for_company() -> None:
    async def test(bench: Bench) -> None:
        assert await bench.ask(Rows(1)) == [2.0]
        assert await bench.ask(Rows(2, rows=9)) == [4.0] * 9  # more than a batch: alone
        assert bench.session.runs == [[1], [2] * 9]

    run(test, Limits(), Pace(0.001, 4, 0.002))


def test_without_a_gain_nothing_is_joined() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.busy()
        answers = [bench.ask(Rows(value)) for value in (1, 2, 3)]
        bench.session.open.set()
        assert [await answer for answer in (first, *answers)] == [[198.0], [2.0], [4.0], [6.0]]
        assert bench.session.runs == [[99], [1], [2], [3]] and bench.session.most == 1

    run(test, THREADED, Pace(0.001))


def test_urgent_requests_run_first() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.busy()
        waiting = [bench.ask(Rows(1)), bench.ask(Rows(2, priority=-1)), bench.ask(Rows(3, priority=2))]
        waiting.append(bench.ask(Rows(4), priority=3))
        waiting.append(bench.ask(Rows(5)))
        bench.session.open.set()
        await asyncio.gather(first, *waiting)
        assert bench.session.runs == [[99], [4], [3], [1], [5], [2]]

    run(test, THREADED, Pace(0.001))


def test_a_timeout_is_answered_while_the_engine_is_busy_and_the_request_never_runs() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.busy()
        begin = time.monotonic()
        soon = time.perf_counter_ns() + 50_000_000
        late = [bench.ask(Rows(1), deadline_ns=soon), bench.ask(Rows(2), deadline_ns=soon * 2)]
        assert await late[0] == 504 and time.monotonic() - begin < 10
        bench.session.open.set()
        assert await first == [198.0] and await late[1] == [4.0]
        assert bench.session.runs == [[99], [2]]
        counters = bench.core.find("kws").counters
        assert (counters.errors, counters.requests, bench.core.in_flight) == (1, 3, 0)

    run(test, THREADED, Pace(0.001))


@pytest.mark.parametrize("limits", [Limits(), THREADED])
def test_one_that_fails_does_not_take_the_others_along(limits: Limits) -> None:
    async def test(bench: Bench) -> None:
        answers = [bench.ask(Rows(value)) for value in (1, 13, 3)]
        assert [await answer for answer in answers] == [[2.0], 500, [6.0]]
        assert bench.session.runs == [[1, 13, 3], [1], [13], [3]]

    run(test, limits, Pace(0.001, 8, 0.002))


def test_only_equal_shapes_are_joined() -> None:
    async def test(bench: Bench) -> None:
        answers = [bench.ask(Rows(value, width=width)) for value, width in ((1, 2), (2, 2), (3, 5), (4, 5))]
        assert [await answer for answer in answers] == [[2.0], [4.0], [6.0], [8.0]]
        assert bench.session.runs == [[1, 2], [3, 4]]

    run(test, Limits(), Pace(0.001, 8, 0.002), ragged=True)


def test_no_more_runs_at_once_than_allowed() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.busy()
        answers = [bench.ask(Rows(value)) for value in range(6)]
        while bench.session.most < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        bench.session.open.set()
        await asyncio.gather(first, *answers)
        assert bench.session.most == 2

    run(test, THREADED, Pace(0.001), width=2)


def test_a_full_queue_is_refused_and_a_full_batch_is_not() -> None:
    async def test(bench: Bench) -> None:
        # 40 requests in one turn of the loop: ten full batches on the loop itself, no queue to speak of.
        assert await asyncio.gather(*(bench.ask(Rows(1)) for _ in range(40))) == [[2.0]] * 40
        lane = bench.core.find("kws").lane
        bench.core.limits = lane._limits = dataclasses.replace(THREADED, max_queue=3)
        lane._inline = Inline(0)
        first = await bench.busy()
        waiting = [bench.ask(Rows(value)) for value in range(3)]
        assert await bench.ask(Rows(4)) == 503
        bench.session.open.set()
        assert await asyncio.gather(first, *waiting) == [[198.0], [0.0], [2.0], [4.0]]

    run(test, Limits(max_queue=3), Pace(0.001, 4, 0.002))


def test_a_protocol_that_fails_to_answer_costs_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def test(bench: Bench) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("our bug")

        now = time.perf_counter_ns()
        bench.core.infer("kws", "", Rows(1), broken, received_ns=now)
        assert await bench.ask(Rows(2)) == [4.0]
        assert bench.core.in_flight == 0 and bench.core.find("kws").users == 0

    run(test, Limits(), Pace(0.001, 8, 0.002))
    assert "our bug" in caplog.text


def test_a_stuck_engine_is_abandoned_and_everybody_is_told() -> None:
    async def test(bench: Bench) -> None:
        stuck = await bench.busy()
        waiting = [bench.ask(Rows(value)) for value in (1, 2)]
        timed = bench.ask(Rows(3), deadline_ns=time.perf_counter_ns() + 500_000_000)
        await asyncio.sleep(0)
        bench.core.abandon()
        assert await stuck == 500 and [await one for one in (*waiting, timed)] == [503, 503, 503]
        assert await bench.ask(Rows(4)) == 503, "nothing is begun any more"
        bench.session.open.set()  # it answers after all: too late, and nobody is answered twice
        await asyncio.sleep(0.6)
        assert bench.session.runs == [[99]] and bench.core.in_flight == 0
        counters = bench.core.find("kws").counters
        assert (counters.requests, counters.errors, counters.inferences) == (5, 5, 0)

    run(test, THREADED, Pace(1.0))


def joined_or_not(factor: float) -> Trials:
    """Asks for two runs, then says that joining pays, or whatever `factor` says."""
    first = yield {"x": np.full((1, 4), 7, np.float32)}
    second = yield {"x": np.full((2, 4), 8, np.float32)}
    assert len(first.outputs["y"]) == 1 and len(second.outputs["y"]) == 2 and second.ms >= 0
    return Pace(0.001, 4, factor)


async def settled(bench: Bench, made: Trials) -> Pace:
    found: asyncio.Future[Pace] = asyncio.get_running_loop().create_future()
    bench.core.find("kws").lane.measure(made, found.set_result)
    return await asyncio.wait_for(found, 30)


@pytest.mark.parametrize("limits", [Limits(), THREADED])
def test_what_is_measured_meanwhile_holds_from_then_on(limits: Limits) -> None:
    async def test(bench: Bench) -> None:
        assert await bench.ask(Rows(1)) == [2.0]  # at once: figures come later
        assert bench.session.runs == [[1]]
        assert await settled(bench, joined_or_not(0.002)) == Pace(0.001, 4, 0.002)
        assert bench.session.runs == [[1], [7], [8, 8]]
        answers = [bench.ask(Rows(value)) for value in (1, 2, 3, 4)]
        assert [await answer for answer in answers] == [[2.0], [4.0], [6.0], [8.0]]
        assert bench.session.runs[3:] == [[1, 2, 3, 4]]

    run(test, limits, Pace(0.001))


def test_a_busy_model_is_measured_too_and_a_request_waits_for_one_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tryout, "AFTER_S", 0.0)

    async def test(bench: Bench) -> None:
        first = await bench.busy()
        done = asyncio.create_task(settled(bench, joined_or_not(0.002)))
        waiting = [bench.ask(Rows(value)) for value in (1, 2, 3)]
        await asyncio.sleep(0.05)  # it is due, but the engine is not free
        bench.session.open.set()
        assert [await answer for answer in (first, *waiting)] == [[198.0], [2.0], [4.0], [6.0]]
        assert bench.session.runs[:3] == [[99], [7], [1]] and bench.session.most == 1
        await done

    run(test, THREADED, Pace(1.0))


def test_a_model_that_is_swapped_is_not_measured_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tryout, "AFTER_S", 0.05)

    async def test(bench: Bench) -> None:
        model = bench.core.find("kws")
        model.lane.measure(joined_or_not(0.002), lambda _: None)
        waiting = await bench.busy()
        bench.core.swap(None)
        await asyncio.sleep(0.1)  # due, retired, and a request still runs
        bench.session.open.set()
        assert await waiting == [198.0]
        await bench.core.retired()
        assert bench.session.runs == [[99]] and model.pace == Pace(1.0)

    run(test, THREADED, Pace(1.0))


def test_a_model_that_is_slow_on_some_data_takes_its_thread_until_it_settles() -> None:
    async def test(bench: Bench) -> None:
        threads: list[int] = []
        plain = bench.session.run

        def noted(inputs: Mapping[str, Array]) -> dict[str, Array]:
            threads.append(threading.get_ident())
            if (inputs["x"] == 5).any():
                time.sleep(0.06)
            return plain(inputs)

        bench.session.run = noted  # type: ignore[method-assign]
        here = threading.get_ident()
        assert await bench.ask(Rows(1)) == [2.0]
        assert await bench.ask(Rows(5)) == [10.0]
        assert threads == [here, here]
        for _ in range(32):
            assert await bench.ask(Rows(5)) == [10.0]  # slow still: it does not come back
        assert here not in threads[2:]
        for _ in range(1000):
            assert await bench.ask(Rows(1)) == [2.0]
            if threads[-1] == here:
                break
        assert threads[-1] == here

    run(test, Limits(inline_ms=10), Pace(0.001))


def test_a_run_of_many_requests_may_block_the_loop_for_longer() -> None:
    inline = Inline(0.5)
    assert inline.allows(0.4, 1) and not inline.allows(0.6, 7)
    assert inline.allows(0.6, 8) and not inline.allows(1.0, 32)


def test_a_run_that_keeps_nobody_waiting_may_block_the_loop_for_longer() -> None:
    inline, never = Inline(0.5), Inline(0)
    for _ in range(256):  # from the thread a run that hangs can be told
        assert not inline.allows(24.0, 1, alone=True) and not never.allows(1.0, 1, alone=True)
        inline.passed(24.0)
        never.passed(1.0)
    assert inline.allows(24.0, 1, alone=True) and not inline.allows(24.0, 1)
    assert not inline.allows(26.0, 1, alone=True) and not never.allows(1.0, 1, alone=True)
    assert inline.allows(12.0, 1, alone=True)
    for ms in (13.0, 47.0):  # usual for it
        inline.blocked(ms, inline.begin())
        assert inline.allows(12.0, 1, alone=True)
    inline.blocked(60.0, inline.begin())
    assert not inline.allows(12.0, 1, alone=True)
    for _ in range(32):
        inline.passed(13.0)
    assert inline.allows(12.0, 1, alone=True)


def test_on_the_loop_only_while_nobody_else_is_there() -> None:
    async def test(bench: Bench) -> None:
        here, threads = threading.get_ident(), list[int]()
        plain = bench.session.run

        def noted(inputs: Mapping[str, Array]) -> dict[str, Array]:
            threads.append(threading.get_ident())
            return plain(inputs)

        bench.session.run = noted  # type: ignore[method-assign]
        await bench.ask(Rows(1))
        bench.core.lone = lambda: True
        for _ in range(300):
            await bench.ask(Rows(1))
        assert here not in threads[:256] and set(threads[257:]) == {here}
        bench.core.in_flight += 1  # one that is being decoded, or another model's
        await bench.ask(Rows(1))
        assert here != threads[-1]

    run(test, Limits(), Pace(5.0))


def test_the_more_often_a_model_blocks_the_loop_the_longer_it_keeps_off() -> None:
    inline = Inline(1.0)

    def short_runs_away() -> int:
        count = 0
        while not inline.allows(0.1, 1):
            inline.passed(0.1)
            count += 1
        return count

    inline.blocked(3.9, inline.begin())
    assert inline.allows(0.1, 1) and not inline.allows(1.0, 1)
    assert inline.begin() == 0  # all is well: nobody looks at the clock
    inline.blocked(4.1, 0)
    inline.blocked(4.1, inline.begin())
    assert inline.allows(0.1, 1)  # the processor was somebody else's
    inline.blocked(51.0, inline.begin())
    assert not inline.allows(0.1, 1)
    short_runs_away()
    lengths = []
    for _ in range(2):
        inline.blocked(4.1, LONG_AGO)
        lengths.append(short_runs_away())
    assert lengths == [64, 128]
    for _ in range(2000):
        inline.blocked(0.1, inline.begin())
    assert inline.begin() == 0
    inline.blocked(4.1, LONG_AGO)
    assert short_runs_away() == 32
