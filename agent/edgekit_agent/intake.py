"""Which orders this device takes: checks a JobNotify and queues its assignment durably."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from edgekit import codec
from edgekit.crypto import dsse
from edgekit.crypto.keys import VerifyKey
from edgekit.errors import EdgekitError, InputError, SignatureError
from edgekit.wire import ASSIGNMENT_TYPE, Assignment, JobNotify, JobState
from edgekit_agent.activate import Activator
from edgekit_agent.store import Activation, Store

log = logging.getLogger("edgekit.agent.intake")

MAX_SECONDS = 30 * 24 * 3600.0
MAX_ID = 128


class Intake:
    """`submit` is idempotent: an order that came before is only answered again."""

    def __init__(self, store: Store, activator: Activator, key: VerifyKey, device: str, tenant: str) -> None:
        self._store, self._activator, self._key = store, activator, key
        self._device, self._tenant = device, tenant

    def submit(self, notify: JobNotify) -> None:
        """Queue, cancel, answer again, or reject. Raises ConfigError for a message without sense."""
        if not notify.job or len(notify.job) > MAX_ID:
            raise InputError("job/notify: no job, or too long a name")
        known = self._store.activation(notify.job)
        if known is not None and known.state.terminal:
            self._again(known)
        elif notify.cancel:
            self._cancel(notify.job, known)
        elif known is None:
            self._offer(notify)

    def _offer(self, notify: JobNotify) -> None:
        try:
            assignment = verified(notify, self._key, self._device, self._tenant, self._store.floor)
        except EdgekitError as exc:
            log.warning("job %s refused: %s", notify.job, exc)
            self._post(notify.job, JobState.REJECTED, type(exc).__name__, exc.message)
            return
        with self._store.transaction():
            waiting = self._store.queued()
            if waiting is not None:
                # Only the newest order counts; the one in between never begins.
                self._store.end_queued(waiting.job)
                self._post(waiting.job, JobState.CANCELED, "Canceled", "superseded by a newer assignment")
            self._store.accept(assignment)
        log.info("job %s accepted: %s", notify.job, assignment.release)
        self._activator.wake()

    def _cancel(self, job: str, known: Activation | None) -> None:
        if known is None:
            self._post(job, JobState.CANCELED, "Canceled", "canceled before it arrived")
            return
        self._store.cancel(job)
        self._activator.wake()

    def _again(self, known: Activation) -> None:
        """The fleet asks about a job that has ended: unless its report is on its way, send it anew."""
        if all(update.job != known.job for update in self._store.outbox()):
            self._post(known.job, known.state, known.code, known.message, known.stage)

    def _post(self, job: str, state: JobState, code: str, message: str, stage: str = "") -> None:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._store.post(job, state, stage=stage, code=code, message=message[:500], at=at)


def verified(notify: JobNotify, key: VerifyKey, device: str, tenant: str, floor: int) -> Assignment:
    """The assignment, once it is proven to be the fleet's, for this device, and newer than `floor`.

    Raises SignatureError (not the fleet's, another device's, a replay), ConfigError, InputError.
    """
    payload = dsse.verify(notify.assignment.encode(), ASSIGNMENT_TYPE, [key])
    assignment = codec.from_json(Assignment, payload, what="assignment")
    if (assignment.tenant, assignment.device) != (tenant, device):
        raise SignatureError(
            f"the assignment is for {assignment.tenant}/{assignment.device}, this is {device}"
        )
    if assignment.job != notify.job:
        raise SignatureError(f"the assignment belongs to job {assignment.job}, not {notify.job}")
    if assignment.counter <= floor:
        raise SignatureError(
            f"the assignment (counter {assignment.counter}) is older than one that was accepted ({floor})",
            "a rollback comes as a new assignment",
        )
    _check(assignment)
    return assignment


def _check(assignment: Assignment) -> None:
    digest = assignment.bundle_digest.removeprefix("sha256:")
    fine = (
        assignment.bundle_digest.startswith("sha256:")
        and len(digest) == 64
        and set(digest) <= set("0123456789abcdef")
        and assignment.bundle_size_bytes > 0
        and 0 < assignment.deadline_s <= MAX_SECONDS
        and 0 <= assignment.watch_s <= MAX_SECONDS
        and 0 <= assignment.max_error_rate <= 1
        and assignment.url_path.startswith("/")
    )
    if not fine:
        raise InputError("the assignment's figures are out of range", "is the fleet newer than this agent?")
