"""What the serving process is running right now, in memory that the supervisor reads without asking.

A process whose event loop is blocked, or whose engine holds the interpreter's lock, answers no message;
this page still tells how long its longest inference has been running and how long it may. One writer per
slot (the thread that runs), one reader. Times are CLOCK_MONOTONIC, which all processes share.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgekit.errors import FormatError, SystemFault

if TYPE_CHECKING:  # the supervisor reads the page and has no use for NumPy
    from edgekit.runtimes import Array, Session

SLOTS = 64
"""Threads that may run a model at once; a run beyond that is not watched here."""
_SIZE = SLOTS * 2 * 8  # per slot: when its run began (0: none runs), when it is overdue; int64 nanoseconds
PATIENCE = 100.0
"""A run may take this many times what its samples took on this device when the model was loaded."""


class Page:
    """The memory itself. The supervisor makes it (`create`), serving opens what it inherits (`attach`)."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, _SIZE)
        self.words = memoryview(self._map).cast("q")

    @staticmethod
    def create() -> Page:
        """Raises SystemFault."""
        try:
            descriptor = os.memfd_create("edgekit-progress", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, _SIZE)
            return Page(descriptor)
        except OSError as exc:
            raise SystemFault(f"cannot create shared memory: {exc.strerror}", "free memory") from None

    @staticmethod
    def attach(descriptor: int) -> Page:
        """Raises FormatError for a file of another size."""
        if os.fstat(descriptor).st_size != _SIZE:
            raise FormatError("the progress page has another size", "restart the agent: it was updated")
        return Page(descriptor)

    def close(self) -> None:
        self.words.release()
        self._map.close()
        os.close(self.descriptor)

    def overdue_s(self, now_ns: int) -> float:
        """Seconds since the longest overdue run should have ended; 0 when none is overdue.

        Read twice: on 32-bit boards the two halves of a word are not written at once.
        """
        try:
            first = self._overdue(now_ns)
            return min(first, self._overdue(now_ns)) if first else 0.0
        except ValueError:
            return 0.0  # closed: the process was ended meanwhile

    def _overdue(self, now_ns: int) -> float:
        words = self.words
        late = [now_ns - words[at + 1] for at in range(0, 2 * SLOTS, 2) if words[at]]
        return max(0.0, max(late, default=0) / 1e9)


class Watched:
    """A session whose runs show on the page. A run beyond the page's slots is simply not shown."""

    def __init__(
        self, session: Session, page: Page, run_ms: float, shortest_s: float, longest_s: float
    ) -> None:
        """`run_ms`: of one sample. A run is overdue after `PATIENCE` times that for each of its samples, but
        neither before `shortest_s` nor later than `longest_s`."""
        self.thread_safe = session.thread_safe
        self._session, self._words = session, page.words
        self._sample_ns = int(run_ms * 1e6 * PATIENCE)
        self._shortest_ns, self._longest_ns = int(shortest_s * 1e9), int(longest_s * 1e9)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        slot = getattr(_local, "slot", None)
        if slot is None:
            slot = _local.slot = _take()
        if slot == SLOTS:
            return self._session.run(inputs)
        samples = 1
        for array in inputs.values():
            if array.ndim:
                samples = array.shape[0]
                break
        allowed = min(self._longest_ns, max(self._shortest_ns, self._sample_ns * samples))
        words, at, began = self._words, 2 * slot, time.monotonic_ns()
        words[at + 1] = began + allowed
        words[at] = began
        try:
            return self._session.run(inputs)
        finally:
            words[at] = 0

    def coverage(self) -> dict[str, int]:
        return self._session.coverage()

    def close(self) -> None:
        self._session.close()


_local = threading.local()
"""`slot` of the thread that asks."""
_owners: dict[int, threading.Thread] = {}
_taking = threading.Lock()


def _take() -> int:
    """A slot for this thread alone, as long as it lives; SLOTS when all are taken."""
    with _taking:
        for slot in range(SLOTS):
            owner = _owners.get(slot)
            if owner is None or not owner.is_alive():
                _owners[slot] = threading.current_thread()
                return slot
    return SLOTS
