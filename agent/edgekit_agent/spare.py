"""One serving process in reserve, its engine imported: after a crash only the model has to be loaded.

Starting Python and importing an engine takes most of the second in which clients are to get answers
again. The spare holds no model, listens to nobody, and is given up when the board needs its memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from edgekit.errors import EdgekitError
from edgekit_agent import board
from edgekit_agent.launch import Serving

log = logging.getLogger("edgekit.agent.spare")

Mode = Literal["auto", "always", "never"]

START_MIB = 512.0
KEEP_MIB = 192.0
"""`auto`: a spare (some 60 MiB, half of it shared with the process that serves) is started while so much
memory is available, and kept while so much is."""
WARM_S = 60.0
RETRY_S = 30.0
ANSWER_S = 0.5
"""A spare that is needed has nothing to do but answer."""


class Spare:
    """At most one. `tend` often; `take` when it is needed. Any thread may call."""

    def __init__(
        self,
        start: Callable[[], Serving],
        mode: Mode = "auto",
        available_mib: Callable[[], float] = board.available_mib,
    ) -> None:
        self._start, self._mode, self._available_mib = start, mode, available_mib
        self._lock = threading.Lock()
        self._engine = ""
        """Of the spare that is there or being made; empty: neither."""
        self._ready: Serving | None = None
        self._not_before = 0.0
        self._closed = False

    @property
    def ready(self) -> bool:
        with self._lock:
            return self._ready is not None and self._ready.alive

    def tend(self, engine: str) -> None:
        """Have a spare for `engine` (empty: none is needed), or give it up; returns at once."""
        with self._lock:
            if self._ready is not None and not self._ready.alive:
                self._discard("it ended by itself", RETRY_S)
            if self._engine and not self._affordable(KEEP_MIB):
                self._discard("memory is short", RETRY_S)
            if self._engine != engine:
                self._discard("another engine is served")
            if self._closed or self._engine or not engine or time.monotonic() < self._not_before:
                return
            if self._affordable(START_MIB):
                self._engine = engine
                threading.Thread(target=self._make, args=(engine,), name="spare", daemon=True).start()

    def take(self, engine: str) -> Serving | None:
        """The spare, when it is ready for `engine`: the caller's from now on."""
        with self._lock:
            if self._ready is None or self._engine != engine or not self._ready.alive:
                return None
            taken, self._ready, self._engine = self._ready, None, ""
        # It may have been killed with the one that it is to replace, and not be gone yet.
        with suppress(EdgekitError):
            if taken.warm(engine, timeout_s=ANSWER_S):
                return taken
        taken.kill()
        return None

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._discard("serving is stopped")

    def _affordable(self, mib: float) -> bool:
        return self._mode == "always" or (self._mode == "auto" and self._available_mib() >= mib)

    def _discard(self, why: str, pause_s: float = 0.0) -> None:
        """With the lock held. A spare that is being made finds that it is no longer wanted."""
        if self._ready is not None:
            log.info("the spare serving process is given up: %s", why)
            self._ready.kill()
            self._not_before = time.monotonic() + pause_s
        self._ready, self._engine = None, ""

    def _make(self, engine: str) -> None:
        made: Serving | None = None
        try:
            made = self._start()
            if not made.warm(engine, timeout_s=WARM_S):
                log.warning("the spare serving process cannot import %s", engine)
        except (EdgekitError, OSError, ValueError) as exc:  # the listeners may be closed meanwhile
            log.warning("no spare serving process: %s", exc)
            if made is not None:
                made.kill()
                made = None
        with self._lock:
            wanted = self._engine == engine and self._ready is None and not self._closed
            if made is not None and wanted:
                self._ready = made
                return
            if wanted:
                self._engine, self._not_before = "", time.monotonic() + RETRY_S
        if made is not None:
            made.kill()
