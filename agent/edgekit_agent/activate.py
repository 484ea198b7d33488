"""Carries out activations: one worker thread, one job at a time, every edge journaled before the act.

`submit` (any thread) checks a job and queues it durably; `run` does the work. The rule that keeps a
device serving: the release named `current` in the store is what a restart serves, and only COMMIT, one
transaction, changes it.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from edgekit.bundle import Bundle, VariantEntry
from edgekit.errors import (
    BundleError,
    DigestError,
    EdgekitError,
    EngineError,
    FormatError,
    SignatureError,
    SystemFault,
)
from edgekit.wire import Assignment, JobState, Stage
from edgekit_agent import fallback, fetch, stages
from edgekit_agent.certificates import Certificates
from edgekit_agent.device import Device
from edgekit_agent.prepare import (
    Keys,
    Prepared,
    assigned_key,
    fitting,
    into_memory,
    open_assigned,
    variant_named,
)
from edgekit_agent.prove import probe
from edgekit_agent.shelf import Shelf
from edgekit_agent.stages import Event
from edgekit_agent.store import Activation, Release, Store
from edgekit_agent.supervisor import Supervisor
from edgekit_agent.watch import watch

log = logging.getLogger("edgekit.agent.activate")

Download = Callable[[Assignment, Path, Callable[[], None]], None]
"""Brings an assignment's bundle to a path; calls its last argument between chunks."""

LONGEST_RETRY_S = 15.0
BOOT_LOAD_S = 600.0
"""An engine that is compiled on the device, and kept in memory only, is compiled at every boot."""


class Interrupted(Exception):
    """The job must not go on; carries the event that says why."""

    def __init__(self, event: Event, message: str) -> None:
        super().__init__(message)
        self.event = event


class Stopping(Exception):
    """The agent is being stopped; the journal stays as it is."""


@dataclass
class _Work:
    """What the stages of the job in hand left in memory; lost with the process."""

    began: float
    """time.monotonic() of the job's start, had it run without interruption."""
    stage_began: float
    opened: Bundle | None = None
    variants: tuple[VariantEntry, ...] = ()
    key: bytes | None = None
    prepared: Prepared | None = None


class Activator:
    """The store's jobs, applied to the supervisor. `changed` is called whenever there is news to tell."""

    def __init__(
        self,
        store: Store,
        supervisor: Supervisor,
        device: Device,
        keys: Keys,
        download: Download,
        bundles: Path,
        certificates: Certificates,
        *,
        restart_limit: int = 3,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._supervisor, self._device = store, supervisor, device
        self._keys, self._download = keys, download
        self._shelf = Shelf(bundles, store, certificates.folder)
        self._certificates = certificates
        self._restart_limit, self._changed = restart_limit, changed
        self._previous: Prepared | None = None
        """Served before the swap of the job in hand."""
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.run, name="activate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(10)

    def wake(self) -> None:
        """A job was queued or cancelled."""
        self._wake.set()

    # -- at start ------------------------------------------------------------------------------

    def recover(self) -> None:
        """Settle what a crash left in the journal and serve the current release. Call before `start`."""
        self._shelf.make()
        entry = self._store.active()
        if entry is not None:
            entry = self._edge(entry, stages.step(entry, Event.RESTART))
            if entry.stage is Stage.COMMIT:
                entry = self._edge(entry, stages.step(entry, Event.DONE))
            elif entry.stage is Stage.ROLLBACK:
                # Nothing of the new release is in memory any more; what follows serves the old one.
                entry = self._edge(entry, stages.step(entry, Event.DONE))
        for role in ("current", "previous"):
            release = self._store.release(role)
            if release is None:
                continue
            try:
                self._supervisor.restore(self._reload(release), BOOT_LOAD_S)
                log.info("serving %s (%s)", release.assignment.release, release.variant)
                break
            except EdgekitError as exc:
                log.error("cannot serve the %s release %s: %s", role, release.assignment.release, exc)
        self._shelf.clean()

    def _reload(self, release: Release) -> Prepared:
        """A release that was in service, from its ciphertext on disk."""
        opened = open_assigned(self._shelf.path(release.assignment), release.assignment, self._keys.builders)
        key = assigned_key(release.assignment, self._keys.sealing)
        return into_memory(opened, variant_named(opened, release.variant), key)

    def fall_back(self, failed: Prepared) -> Prepared | None:
        """For the supervisor: the last good release when the current one crashes too often."""
        return fallback.fall_back(self._store, self._reload, failed)

    # -- the worker thread ---------------------------------------------------------------------

    def run(self) -> None:
        self._certify_again()
        lost = False
        while not self._stopping.is_set():
            try:
                self._wake.clear()
                entry = self._store.active() or self._begin()
                if entry is None:
                    self._wake.wait()
                    continue
                if lost:
                    entry = self._edge(entry, stages.step(entry, Event.RESTART))
                    lost = False
                self._do(entry)
            except Stopping:
                return
            except SystemFault as exc:
                # The journal itself cannot be written (a full disk): the job is where it was, as after
                # a restart.
                log.error("%s", exc)
                lost = True
                self._stopping.wait(5)

    def _begin(self) -> Activation | None:
        queued = self._store.queued()
        if queued is None:
            return None
        state = JobState.CANCELED if queued.canceled else JobState.IN_PROGRESS
        return self._edge(queued, replace(queued, state=state))

    def _do(self, entry: Activation) -> None:
        now = time.monotonic()
        work = _Work(began=now - entry.elapsed_s, stage_began=now)
        self._wake.set()  # look at once whether it was cancelled or superseded meanwhile
        try:
            while not entry.state.terminal:
                work.stage_began = time.monotonic()
                event, code, message = self._attempt(entry, work)
                elapsed = replace(entry, elapsed_s=time.monotonic() - work.began)
                after = stages.step(elapsed, event, code=code, message=message)
                if after.stage is Stage.SWAP and work.prepared is not None:
                    candidate = Release(entry.assignment, work.prepared.variant)
                    self._store.set_release("candidate", candidate)
                entry = self._edge(entry, after)
        finally:
            if work.prepared is not None and work.prepared is not self._supervisor.release:
                work.prepared.close()
        self._shelf.clean()

    def _attempt(self, entry: Activation, work: _Work) -> tuple[Event, str, str]:
        """One stage's act, and what came of it: event, error class name, message."""
        try:
            self._keep_going(entry, work)
            self._act(entry, work)
        except Interrupted as exc:
            return exc.event, exc.event.capitalize(), str(exc)
        except Stopping:
            raise
        except EdgekitError as exc:
            log.warning("%s of %s: %s", entry.stage, entry.assignment.release, exc)
            return _event_of(entry.stage, exc), type(exc).__name__, exc.message
        except Exception as exc:
            log.exception("%s of %s failed; this is a bug", entry.stage, entry.assignment.release)
            return Event.FAILED, type(exc).__name__, str(exc)
        return Event.DONE, "", ""

    def _act(self, entry: Activation, work: _Work) -> None:
        match entry.stage:
            case Stage.DOWNLOAD:
                self._fetch(entry, work)
            case Stage.VERIFY:
                self._verify(entry.assignment, work)
            case Stage.DECRYPT:
                assert work.opened is not None  # noqa: S101 - VERIFY ran in this process
                work.key = assigned_key(entry.assignment, self._keys.sealing)
                work.prepared = into_memory(work.opened, work.variants[0], work.key)
            case Stage.PROBE:
                self._probe(entry, work)
            case Stage.SWAP:
                assert work.prepared is not None  # noqa: S101 - DECRYPT ran in this process
                self._previous = self._supervisor.release
                self._supervisor.swap(work.prepared, stages.STAGE_LIMIT_S[Stage.SWAP])
                self._changed()
            case Stage.WATCH:
                problem = watch(
                    self._supervisor, entry.assignment, self._restart_limit,
                    lambda: self._keep_going(entry, work),
                )  # fmt: skip
                if problem:
                    raise Interrupted(Event.UNHEALTHY, problem)
            case Stage.COMMIT:
                pass  # the edge is the act
            case Stage.ROLLBACK:
                self._roll_back()

    def _fetch(self, entry: Activation, work: _Work) -> None:
        path = self._shelf.path(entry.assignment)
        wait_s = 0.5
        while not path.exists():
            try:
                self._download(entry.assignment, path, lambda: self._keep_going(entry, work))
                return
            except fetch.NetworkFault as exc:
                log.info("download of %s: %s", entry.assignment.release, exc)
                deadline = time.monotonic() + random.uniform(wait_s / 2, wait_s)  # noqa: S311 - no secret
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
                while time.monotonic() < deadline:
                    self._keep_going(entry, work)
                    self._stopping.wait(0.1)

    def _verify(self, assignment: Assignment, work: _Work) -> None:
        path = self._shelf.path(assignment)
        try:
            work.opened = open_assigned(path, assignment, self._keys.builders)
        except (FormatError, DigestError):
            path.unlink(missing_ok=True)
            raise
        work.variants = tuple(fitting(work.opened, self._device))

    def _probe(self, entry: Activation, work: _Work) -> None:
        """The first variant that answers as certified on this device. Raises the first one's error."""
        assert work.opened is not None and work.prepared is not None  # noqa: S101 - DECRYPT ran
        first: EngineError | None = None
        for variant in work.variants:
            if work.prepared is None:
                work.prepared = into_memory(work.opened, variant, work.key)
            prepared, work.prepared = work.prepared, None
            try:
                # A probe that is interrupted closes `prepared` itself, when its child has ended.
                found = probe(prepared, self._left(entry.stage, work), lambda: self._keep_going(entry, work))
            except EdgekitError as exc:
                prepared.close()
                if not isinstance(exc, EngineError):
                    raise
                first = first or exc
                log.warning("%s does not fit this device: %s", variant.config.variant, exc)
                continue
            log.info("%s: %d golden samples, %.3g ms", variant.config.variant, found.samples, found.run_ms)
            self._certificates.keep(prepared, entry.assignment.bundle_digest, found)
            work.prepared, work.key = prepared, None
            return
        raise first or EngineError("no variant could be probed")

    def _certify_again(self) -> None:
        """What has been served since before its engine was updated, or before this agent, is measured now."""
        serving, current = self._supervisor.release, self._store.release("current")
        if serving is None or current is None or serving.variant != current.variant:
            return
        if self._certificates.wanted(serving, current.assignment.bundle_digest):
            try:
                found = probe(serving, stages.STAGE_LIMIT_S[Stage.PROBE], lambda: None)
            except EdgekitError as exc:
                log.warning("%s: no device certificate: %s", serving.variant, exc)
                return
            self._certificates.keep(serving, current.assignment.bundle_digest, found)
            self._changed()

    def _roll_back(self) -> None:
        """Put the previous release back: from memory, or from its ciphertext."""
        failed = self._supervisor.release
        release = self._store.release("current")
        back, self._previous = self._previous, None
        if release is None:
            back = None
        elif back is None or (back.release, back.variant) != (release.assignment.release, release.variant):
            back = self._reload(release)
        try:
            self._supervisor.restore(back, stages.STAGE_LIMIT_S[Stage.ROLLBACK])
        finally:
            if failed is not None and failed is not back:
                failed.close()
            self._changed()

    # -- edges ---------------------------------------------------------------------------------

    def _edge(self, before: Activation, after: Activation) -> Activation:
        """Make the step durable together with everything that follows from it."""
        with self._store.transaction():
            self._store.journal(after)
            if after.state is JobState.SUCCEEDED:
                previous, new = self._store.release("current"), self._store.release("candidate")
                if previous is not None and new is not None and _same(previous, new):
                    previous = self._store.release("previous")
                self._store.set_release("previous", previous)
                self._store.set_release("current", new)
            if after.state.terminal:
                self._store.set_release("candidate", None)
            if (before.state, before.stage) != (
                after.state,
                after.stage,
            ) or before.restarts != after.restarts:
                self._store.post(
                    after.job, after.state, stage=after.stage, code=after.code, message=after.message[:500],
                    at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                )  # fmt: skip
        if after.state is JobState.SUCCEEDED and self._previous is not None:
            self._previous.close()
            self._previous = None
        log.info("job %s: %s %s %s", after.job, after.state, after.stage, after.message)
        self._changed()
        return after

    def _keep_going(self, entry: Activation, work: _Work) -> None:
        """Raises when the job must stop here: agent stopping, cancelled, superseded, out of time."""
        if self._stopping.is_set():
            raise Stopping
        if entry.stage in (Stage.COMMIT, Stage.ROLLBACK):
            return
        if self._wake.is_set():
            self._wake.clear()
            now = self._store.activation(entry.job)
            if self._store.queued() is not None:
                raise Interrupted(Event.CANCEL, "superseded by a newer assignment")
            if now is not None and now.canceled:
                raise Interrupted(Event.CANCEL, "canceled")
        if time.monotonic() - work.began > entry.assignment.deadline_s:
            limit = entry.assignment.deadline_s
            raise Interrupted(Event.TIMEOUT, f"{entry.stage}: the job's {limit:g} s are over")
        if self._left(entry.stage, work) <= 0:
            raise Interrupted(
                Event.TIMEOUT, f"{entry.stage} took more than {stages.STAGE_LIMIT_S[entry.stage]:g} s"
            )

    def _left(self, stage: Stage, work: _Work) -> float:
        limit = stages.STAGE_LIMIT_S.get(stage)
        return limit - (time.monotonic() - work.stage_began) if limit is not None else float("inf")


def _same(a: Release, b: Release) -> bool:
    return a.assignment.bundle_digest == b.assignment.bundle_digest


def _event_of(stage: Stage, exc: EdgekitError) -> Event:
    if stage is Stage.VERIFY and isinstance(exc, FormatError | DigestError):
        return Event.DAMAGED
    refused = isinstance(exc, SignatureError | fetch.NoSpace) or type(exc) is BundleError
    return Event.REFUSED if refused else Event.FAILED
