"""Between protocols and models: which release answers, on which thread, and how a release is swapped.

One release is the device's. Others may stand beside it, each under its own name.

Lives on the event loop and knows no protocol: `infer` takes a `Codec` and a function that gets the answer,
now or later, exactly once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from edgekit_agent import exposition, metrics, process
from edgekit_agent.board import Board
from edgekit_agent.serve import infer as steps
from edgekit_agent.serve.infer import A, Codec, NotServed, Outcome, Prepared, prepare
from edgekit_agent.serve.lane import Job, Lane
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Gate, Model
from edgekit_agent.serve.shared_memory import Regions
from edgekit_agent.serve.shares import Turns

__all__ = ["Codec", "Core", "NotServed", "Prepared", "prepare"]

_LOG_EVERY_S = 10.0
_NOTHING = "no model is loaded"
_log = logging.getLogger(__name__)


class Core:
    """What is served. Everything but the engine's runs happens on the event loop."""

    def __init__(self, limits: Limits, *, version: str = "", restarts: int = 0) -> None:
        """`version`: of the agent; empty: as it is installed."""
        self.limits = limits
        self._version = version
        self.restarts = restarts
        """How often serving came back; shown as a metric."""
        self.leaving = False
        """The release will end before another is there: not ready, though it answers still."""
        self.memory_budget_mib = 0.0
        """Of the release that is served; 0: none."""
        self.connections: Callable[[], int] = lambda: 0
        """How many are open; shown as a metric."""
        self.lone: Callable[[], bool] = lambda: False
        """Whether there is one connection only, and that asks one thing at a time."""
        self.ledger = metrics.Ledger()
        self.regions = Regions()
        """Shared memory that clients have registered."""
        self.model: Model | None = None
        """The device's release."""
        self.models: dict[str, Model] = {}
        """All that is served, by name; the device's release first."""
        self._slots: dict[int, Model] = {}
        self._lanes: list[Lane] = []
        self.in_flight = 0
        self._loop = asyncio.get_running_loop()
        self.turns = Turns()
        """Who asks, and whose turn it is."""
        self._in_use: set[Model] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._decoding: Gate | None = None
        self._logged = 0.0

    @property
    def version(self) -> str:
        """Of the agent."""
        if not self._version:
            from importlib.metadata import version  # takes a while, and hardly anybody asks

            self._version = version("edgekit-agent")
        return self._version

    # --- releases

    def swap(self, model: Model | None, slot: int = 0) -> None:
        """Serve `model` in this slot from the next request on; the old one answers what it has begun, then
        closes. Of two with one name the one in the lower slot answers."""
        old = self._slots.pop(slot, None)
        if model is not None:
            self._slots[slot] = model
        self.model = self._slots.get(0)
        self.models = {}
        for _, one in sorted(self._slots.items()):
            self.models.setdefault(one.name, one)
        if old is not None:
            old.retire(lambda: self._retired(old))
        if model is not None:
            model.lane = Lane(model, self.limits, self._finish, self.turns, self._alone)
            self._in_use.add(model)
        self._lanes = [one.lane for one in self.models.values()]

    def beside(self, slot: int) -> int:
        """How many models are served in other slots."""
        return len(self._slots.keys() - {slot})

    async def retired(self) -> None:
        """Wait until every model that is not served any more is closed."""
        while self._closing or len(self._in_use) > len(self._slots):
            await asyncio.sleep(0.005)

    @property
    def waiting(self) -> int:
        """Requests that wait for an engine."""
        lanes = self._lanes
        return lanes[0].waiting if len(lanes) == 1 else sum([lane.waiting for lane in lanes])

    @property
    def measuring(self) -> bool:
        """Whether a model is being measured."""
        return any(lane.measuring for lane in self._lanes)

    def least_ahead(self) -> int:
        """Requests that should be at hand, for the engine to have enough to do."""
        lanes = self._lanes
        return 2 * (lanes[0].batch if len(lanes) == 1 else max([lane.batch for lane in lanes], default=1))

    def oldest_run_s(self) -> float:
        """Age of the longest running inference, of any release; 0 when none runs."""
        return max((model.oldest_run_s() for model in self._in_use), default=0.0)

    @property
    def ready(self) -> bool:
        """Whether requests are answered, and will be for a while."""
        return self.model is not None and not self.leaving

    @property
    def not_ready(self) -> str:
        """Why, in a few words."""
        return "the release is being replaced" if self.leaving else _NOTHING

    def abandon(self) -> None:
        """Answer every request that has begun without waiting for the engine, which is stuck."""
        for model in list(self._in_use):
            model.lane.abandon()

    def served(self) -> list[Model]:
        """All of them. Raises NotServed (503) where there is none."""
        if not self.models:
            raise NotServed(503, _NOTHING)
        return [*self.models.values()]

    def find(self, name: str, version: str = "") -> Model:
        """The model `name`; an empty `version` stands for whichever is served. Raises NotServed."""
        model = self.models.get(name)
        if model is None:
            if not self.models:
                raise NotServed(503, _NOTHING)
            raise NotServed(404, f"Request for unknown model: '{name}' is not found")
        if version not in ("", model.version):
            raise NotServed(404, f"Request for unknown model: '{name}' version {version} is not found")
        return model

    def exposition(self, board: Board) -> bytes:
        """Metrics as Prometheus text."""
        serving = [
            exposition.Serving(
                model.name,
                model.version,
                model.config.variant,
                model.config.engine.name,
                waiting=model.users,
                loaded=model.resident is None or model.resident.loaded,
                loads=model.resident.loads if model.resident is not None else 0,
            )
            for model in self.models.values()
        ]
        now = exposition.Process(
            restarts=self.restarts,
            rss_mib=process.rss_mib(),
            connections=self.connections(),
            memory_budget_mib=self.memory_budget_mib,
        )
        return exposition.text(self.ledger, serving, now, board)

    def complain(self, what: str, exc: BaseException) -> None:
        """Log a bug with its traceback, but not ten thousand times a second."""
        now = time.monotonic()
        if now - self._logged >= _LOG_EVERY_S:
            self._logged = now
            _log.error("%s failed: %s", what, exc, exc_info=exc)

    def _retired(self, model: Model) -> None:
        task = self._loop.create_task(self._close(model))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, model: Model) -> None:
        try:
            await asyncio.to_thread(model.close)
        except Exception as exc:  # an engine's last words must not stop the next release
            self.complain(f"closing {model.release}", exc)
        self._in_use.discard(model)
        del model
        await asyncio.to_thread(process.give_back_memory)

    def _alone(self) -> bool:
        return self.in_flight == 1 and self.lone()

    # --- inference

    def infer(
        self,
        name: str,
        version: str,
        codec: Codec[A],
        respond: Callable[[A], None],
        *,
        received_ns: int,
        heavy: bool = False,
        deadline_ns: int = 0,
        priority: int = 0,
    ) -> None:
        """Answer one request through `respond`. Never raises.

        `received_ns`: time.perf_counter_ns() when its last byte was read. `heavy`: decoding it is worth a
        thread. `deadline_ns`: perf_counter_ns after which the answer is 504 without running; 0: none.
        `priority`: 0 is normal, higher comes first.
        """
        try:
            model = self.find(name, version)
        except NotServed as exc:
            counters = self.model.counters if self.model else self.ledger.nobody
            counters.answered(exc.http_status, time.perf_counter_ns() - received_ns, steps.protocol(codec))
            respond(codec.refuse(exc.http_status, exc.message))
            return
        if model.lane.waiting >= self.limits.max_queue:
            refused = Outcome(codec.refuse(503, "too many requests are waiting"), 503)
            self._account(model, codec, received_ns, refused)
            respond(refused.answer)
            return
        model.users += 1
        self.in_flight += 1
        job = Job(model, codec, respond, received_ns, deadline_ns, priority, self.turns.asking)
        if heavy:
            self._decoder().submit(lambda: self._decode_apart(job))
        else:
            self._admit(job, self._decode(job))

    def _decoder(self) -> Gate:
        """One thread for large bodies: while it parses the engine may run, and small requests pass by."""
        if self._decoding is None:
            self._decoding = Gate(1, "decode")
        return self._decoding

    def _decode_apart(self, job: Job[Any]) -> None:
        problem = self._decode(job)
        self._loop.call_soon_threadsafe(self._admit, job, problem)

    def _decode(self, job: Job[Any]) -> Exception | None:
        """Prepare the job; what is wrong with it otherwise."""
        begin = time.perf_counter_ns()
        try:
            prepared = job.codec.decode(job.model, self.limits)
        except Exception as exc:
            return exc
        if job.deadline_ns and not 0 < prepared.deadline_ns < job.deadline_ns:
            prepared.deadline_ns = job.deadline_ns
        if job.priority:
            prepared.priority = max(job.priority, prepared.priority)
        prepared.input_ns = time.perf_counter_ns() - begin
        job.prepared = prepared
        return None

    def _admit(self, job: Job[Any], problem: Exception | None) -> None:
        if problem is None:
            job.model.lane.submit(job)
        else:
            self._finish(job, steps.refusal(job.codec, problem))

    def _finish(self, job: Job[Any], outcome: Outcome[Any]) -> None:
        self.in_flight -= 1
        self._account(job.model, job.codec, job.received_ns, outcome)
        try:
            job.respond(outcome.answer)
        except Exception as exc:  # a bug of ours must not cost the others of a batch their answers
            self.complain("answering a request", exc)
        job.model.release_user()

    def _account(self, model: Model, codec: Codec[A], received_ns: int, outcome: Outcome[A]) -> None:
        model.counters.answered(outcome.status, time.perf_counter_ns() - received_ns, steps.protocol(codec))
        if outcome.bug is not None:
            self.complain("an inference", outcome.bug)
