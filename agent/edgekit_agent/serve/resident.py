"""Models that share one budget of memory: who has not been asked for longest lends its own to the others.

Only where several releases are served. A model that rests keeps its name, its counters and its plaintext (in
sealed memory, which the supervisor holds anyway); the next run loads it again. Runs of one model happen on
its own thread, so that the others answer meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from edgekit.runtimes import Array, Session
from edgekit_agent import process

LOAD_S = 120.0
"""Loading a model may take so long before it counts as stuck."""


class Resident:
    """A session that can rest. `run` may be called by several threads at once."""

    thread_safe = True

    def __init__(
        self,
        memory: Memory,
        load: Callable[[], Session],
        needs_mib: float,
        session: Session | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        """`memory`: shared with the others. `load` makes the session again, until `forget` is called.
        `needs_mib`: about what that takes. `session`: where it is loaded already."""
        self.needs_mib = needs_mib
        self.used_at = time.monotonic()
        self.runs = 0
        """Of the session, going on; while there are any it is not closed."""
        self.session = session
        self.loads = 0
        """How often a request had to wait for it to be loaded."""
        self.load, self._forget = load, forget
        self._asleep_since = 0.0
        self._alone = threading.Lock()
        self._memory = memory
        memory.add(self)

    @property
    def loaded(self) -> bool:
        return self.session is not None

    @property
    def loading(self) -> bool:
        """Whether a run waits for it to be loaded, and not for too long."""
        return 0 < self._asleep_since > time.monotonic() - LOAD_S

    def pin(self) -> bool:
        """Keep it in memory until `unpin`; False where it rests."""
        return self._memory.take(self) is not None

    def unpin(self) -> None:
        self._memory.unpin(self)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See Session.run. Loads the model where it rests; raises what that raises."""
        session = self._memory.take(self) or self._wake()
        try:
            if session.thread_safe:
                return session.run(inputs)
            with self._alone:
                return session.run(inputs)
        finally:
            self._memory.unpin(self)

    def coverage(self) -> dict[str, int]:
        session = self.session
        return session.coverage() if session is not None else {}

    def _wake(self) -> Session:
        self._asleep_since = time.monotonic()
        try:
            return self._memory.wake(self)
        finally:
            self._asleep_since = 0.0

    def close(self) -> None:
        """Leave the others. `run` must not be called afterwards."""
        self._memory.remove(self)
        self._forget()


class Memory:
    """What the models of this process may take together. Any thread may call."""

    def __init__(self, rss_mib: Callable[[], float] = process.rss_mib) -> None:
        self.budget_mib = 0.0
        """Resident memory of the whole process; 0: no bound."""
        self._rss_mib = rss_mib
        self._state = threading.Condition()
        self._loading = threading.Lock()
        """Held by whoever loads a model or makes room for one: it may take seconds."""
        self._residents: list[Resident] = []

    def add(self, one: Resident) -> None:
        with self._state:
            self._residents.append(one)

    def remove(self, one: Resident) -> None:
        with self._state:
            self._residents.remove(one)
            session, one.session = one.session, None
        if session is not None:
            session.close()

    def take(self, one: Resident) -> Session | None:
        """Its session, which stays until `unpin`; None where it rests."""
        with self._state:
            if one.session is not None:
                one.runs += 1
                one.used_at = time.monotonic()
            return one.session

    def unpin(self, one: Resident) -> None:
        with self._state:
            one.runs -= 1
            if not one.runs:
                self._state.notify_all()

    def wake(self, one: Resident) -> Session:
        """`take` one that rests: it is loaded first. Raises what loading raises."""
        with self._loading:
            if one.session is None:
                self._load(one)
            session = self.take(one)
        assert session is not None  # noqa: S101 - nobody rests while another one loads
        return session

    def make_room(self, mib: float = 0.0) -> None:
        """Let models that nobody is asking rest, least recently used first, until so much more fits in."""
        with self._loading:
            self._make_room(mib, idle=True)

    def _load(self, one: Resident) -> None:
        self._make_room(one.needs_mib, idle=False)
        before = self._rss_mib()
        session = one.load()
        one.needs_mib = max(1.0, self._rss_mib() - before)
        with self._state:
            one.session = session
            one.loads += 1

    def _make_room(self, mib: float, *, idle: bool) -> None:
        """With `_loading` held. Not `idle`: a model that is asked all the time ends its run, and waits."""
        while self.budget_mib and self._rss_mib() + mib > self.budget_mib:
            with self._state:
                found = [one for one in self._residents if one.session is not None]
                free = [one for one in found if not one.runs]
                if not (free if idle else found):
                    return
                longest = min(free or found, key=lambda one: one.used_at)
                session, longest.session = longest.session, None
                while longest.runs:
                    self._state.wait()
            assert session is not None  # noqa: S101 - `found` has looked
            session.close()
            del session
            process.give_back_memory()
