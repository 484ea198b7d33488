"""A release that is served: its session, the thread that runs it, and who still uses it."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgekit.bundle.model import VariantConfig
from edgekit.runtimes import Session
from edgekit.runtimes._pace import Pace
from edgekit_agent.metrics import Counters

if TYPE_CHECKING:
    from edgekit.runtimes._pipeline import Processor
    from edgekit_agent.serve.lane import Lane
    from edgekit_agent.serve.resident import Resident

Job = Callable[[], None]


class Gate:
    """Runs jobs in order on `width` threads: the engine's memory grows with each simultaneous run."""

    def __init__(self, width: int, name: str = "infer") -> None:
        self.width = width
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._since: dict[int, float] = {}
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(width)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Run `job` soon. A job never raises."""
        self._jobs.put(job)

    def oldest_run_s(self) -> float:
        """Age of the longest running job; 0 when none runs."""
        return max((time.monotonic() - begin for begin in list(self._since.values())), default=0.0)

    def close(self) -> None:
        """End the threads, after the jobs that are queued. Blocks."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        me = threading.get_ident()
        while (job := self._jobs.get()) is not None:
            self._since[me] = time.monotonic()
            job()
            del self._since[me]
            del job  # it holds the request's tensors


@dataclass(eq=False)
class Model:
    """Touched on the event loop only, except for `session` inside jobs."""

    name: str
    version: str
    config: VariantConfig
    session: Session
    pace: Pace
    gate: Gate
    counters: Counters
    lane: Lane = field(init=False, repr=False)
    """Where its requests wait; given by the core that serves it."""
    resident: Resident | None = None
    """`session`, where it may give up its memory for another model."""
    processor: Processor | None = None
    """The variant's pipeline, where it has one: for clients that send files."""
    users: int = 0
    """Requests that have begun with this release and are not answered."""
    number: int = field(default_factory=itertools.count(1).__next__)
    """Tells loaded models apart, also two of the same name and version."""
    signatures: dict[tuple[object, ...], int] = field(default_factory=dict, repr=False)
    """Samples by names, types and shapes of inputs that were found to fit as they are; see infer.prepare."""
    retired: bool = False
    on_idle: Callable[[], None] | None = field(default=None, repr=False)
    """Called once, when a retired model has no users left."""

    @property
    def release(self) -> str:
        return f"{self.name}:{self.version}"

    def oldest_run_s(self) -> float:
        """Age of its longest running inference; while it is loaded again, that is not an inference."""
        loading = self.resident is not None and self.resident.loading
        return 0.0 if loading else self.gate.oldest_run_s()

    def release_user(self) -> None:
        self.users -= 1
        self._maybe_idle()

    def retire(self, on_idle: Callable[[], None]) -> None:
        """No new users; call `on_idle` when the last one is done (at once when there is none)."""
        self.retired, self.on_idle = True, on_idle
        self._maybe_idle()

    def close(self) -> None:
        """End threads and session. Blocks; only after `on_idle`."""
        self.gate.close()
        self.session.close()

    def _maybe_idle(self) -> None:
        if self.retired and self.users == 0 and self.on_idle is not None:
            on_idle, self.on_idle = self.on_idle, None
            on_idle()
