"""The fleet's clock: ticks the rollout engine, marks absent devices, throws away what is too old."""

from __future__ import annotations

import logging
import threading
import time

from sqlalchemy import delete

from edgekit_fleet import enroll, ingest
from edgekit_fleet.db import events, telemetry
from edgekit_fleet.fleet import Fleet

log = logging.getLogger(__name__)

TICK_S = 0.5
SETTLE_S = 0.05
"""Changes that come together are looked at together."""
ABSENT_AFTER_S = 60.0
"""Devices have this long to come back after the broker was started."""
CLEAN_EVERY_S = 600.0
KEEP_DAYS = 30.0


class Ticker:
    """One thread; woken by every change of the database."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._checked_start = 0.0
        self._cleaned = 0.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._fleet.db.on_change(self._wake.set)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = TICK_S
            try:
                self._step(time.time())
            except Exception:  # a bug in one rule must not stop the clock for every rollout
                log.exception("rollout engine: unexpected error")
                pause = 5.0
                self._stopping.wait(pause)
            self._wake.wait(pause)
            self._stopping.wait(SETTLE_S)
            self._wake.clear()

    def _step(self, now: float) -> None:
        started = self._fleet.broker.started_at
        if started != self._checked_start and now > started + ABSENT_AFTER_S:
            self._checked_start = started
            ingest.forget_absent(self._fleet.db, started)
        if now > self._cleaned + CLEAN_EVERY_S:
            self._cleaned = now
            self._clean(now)
        self._fleet.engine.tick(now)  # last: when it fails, the rest is done

    def _clean(self, now: float) -> None:
        old = now - KEEP_DAYS * 24 * 3600
        with self._fleet.db.write() as connection:
            enroll.forget_old_tokens(connection, now)
            connection.execute(delete(telemetry).where(telemetry.c.received_at < old))
            connection.execute(delete(events).where(events.c.at < old))
