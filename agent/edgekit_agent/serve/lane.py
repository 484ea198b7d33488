"""Requests of one model that wait, and the engine runs they end up in.

Nothing is delayed to make batches: a run starts as soon as the engine is free and the sockets that are
ready have been read. What has come by then shares it, up to the size that was measured to pay.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Generic

from edgekit.runtimes._pace import Pace, Trials
from edgekit_agent.serve import infer as steps
from edgekit_agent.serve.infer import A, Codec, Outcome, Prepared, Run
from edgekit_agent.serve.inline import Inline
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model
from edgekit_agent.serve.shares import Share, Turns
from edgekit_agent.serve.tryout import Tryout

_HEAVY_BYTES = 64 * 1024
"""Larger answers are encoded on the model's thread: as JSON they would hold up other connections."""
TOO_LATE = "the request's timeout passed while it waited"
RUN_STUCK = "the inference did not end"
ENGINE_STUCK = "the engine is stuck with another request; it is being started again"


@dataclass(slots=True, eq=False)
class Job(Generic[A]):
    """A request from its arrival to its answer."""

    model: Model
    codec: Codec[A]
    respond: Callable[[A], None]
    received_ns: int
    deadline_ns: int
    priority: int
    share: Share | None = None
    """Whose request it is."""
    prepared: Prepared = field(init=False)
    """Before it is submitted."""
    waited_ns: int = 0
    """When it began to wait, and from when it runs how long it had."""
    taken: bool = False
    """It runs, or its time was over before."""
    timer: asyncio.TimerHandle | None = None


Finish = Callable[[Job[Any], Outcome[Any]], None]


class Lane:
    """Lives on the event loop, except for `_work`."""

    def __init__(
        self, model: Model, limits: Limits, finish: Finish, turns: Turns, alone: Callable[[], bool]
    ) -> None:
        """`finish` gets each job with its outcome, once, on the loop; `alone`: whether one request is all
        there is, and nobody else is connected."""
        self._alone = alone
        self._turns = turns
        self._model = model
        self._resident = model.resident
        self._limits = limits
        self._finish = finish
        self._batch = min(model.pace.batch, limits.max_joined)
        self._inline = Inline(limits.inline_ms)
        self._tryout: Tryout | None = None
        self._ragged = any(-1 in spec.shape[1:] for spec in model.config.inputs)
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[int, int, int, Job[Any]]] = []
        self._numbers = itertools.count()
        self._samples = 0  # that wait
        self._runs = 0  # in threads
        self._taken = 0  # jobs in runs
        self._in_threads: list[list[Job[Any]]] = []
        self._abandoned = False
        self._scheduled = False
        self._answering = False

    @property
    def batch(self) -> int:
        """Samples that share a run at most."""
        return self._batch

    @property
    def measuring(self) -> bool:
        """Whether runs of a tryout are still to be made."""
        return self._tryout is not None

    @property
    def waiting(self) -> int:
        """Requests that are neither running nor answered, those being decoded included."""
        return self._model.users - self._taken

    def submit(self, job: Job[Any]) -> None:
        """Run a job, which has `prepared`, as soon as may be."""
        if self._abandoned:
            self._finish(job, Outcome(job.codec.refuse(503, ENGINE_STUCK), 503))
            return
        prepared = job.prepared
        job.waited_ns = time.perf_counter_ns()
        turn = self._turns.stamp(job.share, prepared.samples)
        heapq.heappush(self._heap, (-prepared.priority, turn, next(self._numbers), job))
        self._samples += prepared.samples
        if self._runs < self._model.gate.width:
            full = self._samples >= self._batch or len(self._heap) >= self._limits.max_queue
            if full and not self._answering:
                self._go()
            else:
                self._schedule()
        if prepared.deadline_ns and not job.taken:
            left_s = (prepared.deadline_ns - job.waited_ns) / 1e9
            job.timer = self._loop.call_later(max(0.0, left_s), self._expire, job)

    def measure(self, made: Trials, settled: Callable[[Pace], None]) -> None:
        """Make these runs beside those of requests; what they say holds from then on."""
        self._tryout = Tryout(self._model, made, self._go)
        self._settled = settled

    def abandon(self) -> None:
        """The engine is stuck: answer everything that runs or waits, now and from now on."""
        self._abandoned = True
        self._end_tryout()
        waiting = [entry[-1] for entry in sorted(self._heap, key=lambda entry: entry[:-1])]
        self._heap.clear()
        for job in [job for jobs in self._in_threads for job in jobs]:
            self._finish(job, Outcome(job.codec.refuse(500, RUN_STUCK), 500))
        for job in waiting:
            job.taken = True
            self._finish(job, Outcome(job.codec.refuse(503, ENGINE_STUCK), 503))

    def _schedule(self) -> None:
        """Go on after the sockets that are ready now have been read."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._scheduled = False
        self._go()

    def _go(self) -> None:
        """Start what can be started."""
        if self._tryout is not None and self._tryout.due and self._try():
            return
        while self._heap and self._runs < self._model.gate.width:
            jobs, samples = self._take()
            if not jobs:
                return
            # Short runs are cheaper without a thread, but never two at once.
            if (
                self._runs == 0
                and self._inline.allows(self._model.pace.estimate_ms(samples), len(jobs), alone=self._alone())
                and (self._resident is None or self._resident.pin())
            ):
                begun = self._inline.begin()
                run = self._run(jobs)
                self._inline.blocked(run.ms, begun)
                if self._resident is not None:
                    self._resident.unpin()
                self._answer(jobs, run, None)
                if self._heap:
                    self._schedule()
                return
            self._runs += 1
            self._in_threads.append(jobs)
            self._model.gate.submit(partial(self._work, jobs))

    def _take(self) -> tuple[list[Job[Any]], int]:
        """Jobs for one run and their samples: the first, and what comes after as long as it fits."""
        jobs: list[Job[Any]] = []
        samples = 0
        now = time.perf_counter_ns()
        while self._heap:
            _, turn, _, job = self._heap[0]
            prepared = job.prepared
            if jobs and (samples + prepared.samples > self._batch or not self._fits(jobs[0], job)):
                break
            heapq.heappop(self._heap)
            self._turns.served(turn)
            self._samples -= prepared.samples
            job.taken = True
            if job.timer is not None:
                job.timer.cancel()
            job.waited_ns = now - job.waited_ns
            if 0 < prepared.deadline_ns < now:
                self._loop.call_soon(self._refuse, job)  # not here: it may bring the next request along
                continue
            jobs.append(job)
            samples += prepared.samples
            if samples >= self._batch:
                break
        self._taken += len(jobs)
        return jobs, samples

    def _fits(self, first: Job[Any], other: Job[Any]) -> bool:
        """Whether their inputs can be joined: same sizes in all dimensions but the first."""
        if not self._ragged:
            return True
        ours, theirs = first.prepared.inputs, other.prepared.inputs
        return all(ours[name].shape[1:] == theirs[name].shape[1:] for name in ours)

    def _expire(self, job: Job[Any]) -> None:
        if not job.taken:
            job.taken = True
            job.waited_ns = time.perf_counter_ns() - job.waited_ns
            self._samples -= job.prepared.samples
            self._heap = [entry for entry in self._heap if entry[-1] is not job]
            heapq.heapify(self._heap)
            self._refuse(job)

    def _refuse(self, job: Job[Any]) -> None:
        self._finish(job, Outcome(job.codec.refuse(504, TOO_LATE), 504))

    def _run(self, jobs: list[Job[Any]]) -> Run:
        return steps.run(self._model, [job.prepared for job in jobs])

    def _work(self, jobs: list[Job[Any]]) -> None:
        """On a thread of the model."""
        run = self._run(jobs)
        outcomes = self._outcomes(jobs, run) if run.answer_bytes() > _HEAVY_BYTES else None
        self._loop.call_soon_threadsafe(self._done, jobs, run, outcomes)

    def _done(self, jobs: list[Job[Any]], run: Run, outcomes: list[Outcome[Any]] | None) -> None:
        if self._abandoned:
            return  # too late: they have been answered
        self._runs -= 1
        self._in_threads.remove(jobs)
        self._inline.passed(run.ms)
        self._go()  # before answering: the engine should not wait for us
        self._answer(jobs, run, outcomes)

    # --- measuring

    def _try(self) -> bool:
        """Make the next run of the tryout, alone: with another one beside it the figure would say nothing.
        Whether requests have to wait for it."""
        if self._tryout is None or self._model.retired or self._abandoned:
            self._end_tryout()
            return False
        if not self._runs:  # else what runs comes by here when it is done
            self._runs += 1
            self._model.gate.submit(partial(self._try_apart, self._tryout))
        return True

    def _try_apart(self, tryout: Tryout) -> None:
        """On a thread of the model."""
        try:
            pace, wait_s = tryout.run()
        except Exception:  # requests will say what is wrong with it
            pace, wait_s = self._model.pace, 0.0
        self._loop.call_soon_threadsafe(self._tried, pace, wait_s)

    def _tried(self, pace: Pace | None, wait_s: float) -> None:
        self._runs -= 1
        if self._tryout is not None and pace is None:
            self._tryout.again(wait_s)
        elif self._tryout is not None and pace is not None:
            self._end_tryout()
            self._model.pace = pace
            self._batch = min(pace.batch, self._limits.max_joined)
            self._settled(pace)
        self._go()

    def _end_tryout(self) -> None:
        if self._tryout is not None:
            self._tryout.stop()
            self._tryout = None

    # --- answers

    def _answer(self, jobs: list[Job[Any]], run: Run, outcomes: list[Outcome[Any]] | None) -> None:
        self._taken -= len(jobs)
        found = outcomes or self._outcomes(jobs, run)
        # An answered connection may have its next request at hand; that one waits for its turn.
        self._answering = True
        try:
            for job, outcome in zip(jobs, found, strict=True):
                self._finish(job, outcome)
        finally:
            self._answering = False
        self._count(jobs, run, found)
        sketch = self._model.counters.sketch
        if sketch is not None and monotonic() >= sketch.due:
            sketch.look([job.prepared.inputs for job in jobs], run.results)

    def _count(self, jobs: list[Job[Any]], run: Run, outcomes: list[Outcome[Any]]) -> None:
        # Plain loops: after a run that went through megabytes nothing of this is in a cache any more, and
        # what costs are the functions called.
        counters, labels = self._model.counters, self._model.config.labels
        waits_ns: list[int] = []
        inferences = input_ns = infer_ns = output_ns = 0
        failed_input_ns = failed_output_ns = 0
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome.status != 200:
                failed_input_ns += job.prepared.input_ns
                failed_output_ns += outcome.output_ns
                continue
            waits_ns.append(job.waited_ns)
            inferences += outcome.samples
            input_ns += job.prepared.input_ns
            infer_ns += outcome.infer_ns
            output_ns += outcome.output_ns
            for index in outcome.classes:
                counters.classes[labels[index]] = counters.classes.get(labels[index], 0) + 1
        counters.inferred(inferences, waits_ns, input_ns, infer_ns, output_ns)
        if len(run.took) == 1:
            samples, ns = run.took[0]
            counters.executed(samples, ns, input_ns + failed_input_ns, output_ns + failed_output_ns)
        else:
            for (samples, ns), job, outcome in zip(run.took, jobs, outcomes, strict=True):
                counters.executed(samples, ns, job.prepared.input_ns, outcome.output_ns)

    def _outcomes(self, jobs: list[Job[Any]], run: Run) -> list[Outcome[Any]]:
        found, took = [], run.took if len(run.took) == len(jobs) else run.took * len(jobs)
        for job, result, (_, ns) in zip(jobs, run.results, took, strict=True):
            found.append(steps.outcome(self._model, job.codec, job.prepared, result, ns))
        return found
