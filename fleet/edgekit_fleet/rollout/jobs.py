"""What devices say about their jobs, into the database. Goes into the caller's transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, select, update

from edgekit.wire import JobState, JobUpdate
from edgekit_fleet.db import insert_new, job_updates, jobs, note
from edgekit_fleet.rollout.states import allowed

_MESSAGE = 500
_SHORT = 64


def apply_update(connection: Connection, device: str, message: JobUpdate, now: float) -> bool:
    """Store one update of a device. True when it changed a job; the next tick then sees it.

    Seen before, for no job of this device, or for a job that has ended (canceled, superseded, timed out):
    nothing changes. Whatever the answer, the update is stored: the caller may acknowledge it.
    """
    told: dict[str, Any] = {
        "device": device,
        "seq": message.seq,
        "job": message.job[:_SHORT],
        "state": message.state.value,
        "stage": message.stage[:16],
        "code": message.code[:_SHORT],
        "message": message.message[:_MESSAGE],
        "at": message.at[:40],
        "received_at": now,
    }
    if not insert_new(connection, job_updates, [told]):
        return False
    job = connection.execute(select(jobs).where(jobs.c.id == message.job, jobs.c.device == device)).first()
    if job is None or job.notified_at is None:
        return False
    old, new = JobState(job.state), message.state
    if not allowed(old, new):
        if old.terminal and new.terminal and new is not old:
            _note(connection, job, f"late: {new} for a job that is {old}", told)
        return False
    values = {key: told[key] for key in ("state", "stage", "code", "message")}
    ended = now if new.terminal else None
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job.id)
        .values(**values, acknowledged=True, ended_at=ended, updated_at=now)
    )
    what = "rollback" if job.kind == "back" else "job"
    detail = " ".join(part for part in (told["stage"], told["code"], told["message"]) if part)
    _note(connection, job, f"{what} {new}{': ' if detail else ''}{detail}", told)
    return True


def _note(connection: Connection, job: Row[Any], text: str, told: dict[str, Any]) -> None:
    data = {"job": job.id, "kind": job.kind, "state": told["state"], "stage": told["stage"]}
    note(connection, "job", text, device=job.device, rollout=job.rollout, data=data)
