"""Runs the decision core against the database.

A step loads a rollout, decides, and writes states, jobs, assignments and outgoing messages in one
transaction; a tick takes steps until nothing is left to do. The messages leave from the outbox
afterwards, at least once, so a kill at any moment loses nothing and repeats nothing but a message that
the device recognises by its job. Ticks may run in any number of threads: each step sees the database as
the one before left it.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, insert, or_, select, update

from edgekit import wire
from edgekit.errors import EdgekitError
from edgekit.wire import JobState
from edgekit_fleet import audit
from edgekit_fleet.db import Database, devices, jobs, note, rollout_groups, rollouts, send
from edgekit_fleet.releases import Assign, Terms
from edgekit_fleet.rollout import snapshot as acts
from edgekit_fleet.rollout.commands import command as command_actions
from edgekit_fleet.rollout.commands import supersede as supersede_actions
from edgekit_fleet.rollout.decide import decide, next_due, part
from edgekit_fleet.rollout.gates import Evidence
from edgekit_fleet.rollout.load import Loaded, evidence, fingerprint, load, look_of
from edgekit_fleet.rollout.states import RolloutState

PART = 200
"""Actions per transaction: the writer's lock is free again after a second at most."""
LIVE = tuple(state.value for state in RolloutState if not state.terminal)


class RolloutEngine:
    """Ticks rollouts and carries out what people ask of them."""

    def __init__(self, db: Database, assign: Assign, tenant: str = wire.TENANT) -> None:
        self._db = db
        self._assign = assign
        self._tenant = tenant
        self._rested: dict[int, tuple[tuple[Any, ...], float, float]] = {}
        """Per rollout: what it looked like when nothing was to do, then, and when time changes that."""
        self._evidence: dict[int, tuple[float, Evidence]] = {}

    def tick(self, now: float) -> int:
        """Settle every rollout that is not over. How many actions that took.

        A rollout that cannot be settled does not keep the others waiting: the first error is raised when
        all have had their turn.
        """
        total, failed = 0, list[Exception]()
        for rollout in self.pending():
            try:
                total += self.tick_one(rollout, now)
            except Exception as exc:  # raised below
                exc.add_note(f"in rollout {rollout}")
                failed.append(exc)
        if failed:
            raise failed[0]
        return total

    def pending(self) -> list[int]:
        """Rollouts that are not over, and rolled back ones whose device took the release after all."""
        stray = and_(
            rollouts.c.state == RolloutState.ROLLED_BACK.value,
            rollouts.c.id.in_(
                select(jobs.c.rollout)
                .join(devices, devices.c.id == jobs.c.device)
                .where(
                    jobs.c.kind == "deploy",
                    jobs.c.counter > 0,
                    jobs.c.counter == devices.c.counter,
                    jobs.c.digest == devices.c.bundle_digest,
                )
            ),
        )
        with self._db.read() as connection:
            where = or_(rollouts.c.state.in_(LIVE), stray)
            return list(connection.scalars(select(rollouts.c.id).where(where).order_by(rollouts.c.id)))

    def tick_one(self, rollout: int, now: float) -> int:
        """Settle one rollout: steps of at most PART actions, each one transaction.

        Whether there is anything to do is looked at without the writer's lock, and not at all while
        nothing has changed and no moment of the rollout has come.
        """
        total = 0
        while True:
            with self._db.read() as connection:
                mark = fingerprint(connection, rollout)
                known = self._rested.get(rollout)
                if known is not None and known[0] == mark and known[1] <= now < known[2]:
                    return total
                snapshot = self._load(connection, rollout, now).snapshot
                if not decide(snapshot, now):
                    self._rested[rollout] = (mark, now, next_due(snapshot, now))
                    return total
            with self._db.write() as connection:
                loaded = self._load(connection, rollout, now)
                actions = part(decide(loaded.snapshot, now), PART)
                self._write(connection, loaded, actions, now)
            total += len(actions)

    def settle_in(self, connection: Connection, rollout: int, now: float) -> None:
        """Begin what is due inside the caller's transaction; the next tick does the rest."""
        loaded = self._load(connection, rollout, now)
        snapshot, actions = loaded.snapshot, list[acts.Action]()
        while (step := decide(snapshot, now)) and len(actions) + len(step) <= PART:
            actions += step
            snapshot = acts.reduce(snapshot, step, now)
        self._write(connection, loaded, actions, now)

    def command(self, rollout: int, verb: str, now: float, actor: str = "admin") -> None:
        """start, approve, pause, resume, abort, rollback. Raises TransitionError, InputError."""
        with self._db.write() as connection:
            loaded = self._load(connection, rollout, now)
            actions = command_actions(loaded.snapshot, verb)
            audit.record(connection, actor, f"rollout.{verb}", f"rollout {rollout}")
            note(connection, "rollout", f"{verb} by {actor}", rollout=rollout, data={"verb": verb})
            self._write(connection, loaded, actions, now)
            self.settle_in(connection, rollout, now)

    def supersede(self, connection: Connection, rollout: int, by: str, now: float) -> None:
        """End a rollout whose devices a newer one takes over, in the caller's transaction."""
        loaded = self._load(connection, rollout, now)
        self._write(connection, loaded, supersede_actions(loaded.snapshot, by), now)

    def _load(self, connection: Connection, rollout: int, now: float) -> Loaded:
        loaded = load(connection, rollout)
        look = look_of(loaded, now)
        if look is None:
            return loaded
        # What was received up to a look does not change any more: read it once.
        known = self._evidence.get(rollout)
        if known is None or known[0] != look:
            known = self._evidence[rollout] = (look, evidence(connection, loaded, look))
        return loaded.with_evidence(known[1])

    def _write(
        self, connection: Connection, loaded: Loaded, actions: Sequence[acts.Action], now: float
    ) -> None:
        writer = _Writer(connection, loaded, now, self._assign, self._tenant)
        for action in actions:
            writer.write(action)


class _Writer:
    """Carries out actions of one rollout in one transaction."""

    def __init__(
        self, connection: Connection, loaded: Loaded, now: float, assign: Assign, tenant: str
    ) -> None:
        self._connection = connection
        self._loaded = loaded
        self._id: int = loaded.row.id
        self._now = now
        self._assign = assign
        self._tenant = tenant
        self._groups = {m.device: g for g in loaded.snapshot.groups for m in g.members}
        self._members = {m.device: m for m in loaded.snapshot.members}

    def write(self, action: acts.Action) -> None:
        match action:
            case acts.MoveRollout():
                self._rollout(action)
            case acts.MoveGroup():
                self._group(action)
            case acts.Notify():
                self._notify(action.device)
            case acts.EndJob():
                self._end(action)
            case acts.TellCancel():
                self._tell_cancel(action.device)
            case acts.SendBack():
                self._send_back(action.device)
            case acts.EndBack():
                self._end_back(action)

    def _rollout(self, action: acts.MoveRollout) -> None:
        values = {"state": action.to.value, "updated_at": self._now}
        if action.reason:
            values["reason"] = action.reason
        self._connection.execute(update(rollouts).where(rollouts.c.id == self._id).values(values))
        detail = {"state": action.to.value, "reason": action.reason}
        audit.record(self._connection, "engine", "rollout.state", f"rollout {self._id}", detail)
        self._note("rollout", _line(action.to, action.reason), data={"state": action.to.value})

    def _group(self, action: acts.MoveGroup) -> None:
        values: dict[str, Any] = {
            "state": action.to.value,
            "reason": action.reason,
            "updated_at": self._now,
        }
        if action.to.value == "SOAKING":
            values["soak_started_at"] = self._now
        table = rollout_groups.c
        where = and_(table.rollout == self._id, table.position == action.group)
        self._connection.execute(update(rollout_groups).where(where).values(values))
        name = self._loaded.snapshot.groups[action.group].phase.name
        data = {"group": action.group, "state": action.to.value}
        self._note("group", f"group {name}: {_line(action.to, action.reason)}", data=data)

    def _notify(self, device: str) -> None:
        job = self._loaded.deploy[device]
        previous = self._members[device].previous
        self._order(job.id, device, self._loaded.row.digest, {"previous": previous}, "job QUEUED")

    def _send_back(self, device: str) -> None:
        group = self._groups[device]
        digest = self._members[device].previous
        job = f"r{self._id}-back-{uuid.uuid4().hex[:12]}"
        row = {
            "id": job,
            "rollout": self._id,
            "position": self._loaded.snapshot.groups.index(group),
            "device": device,
            "kind": "back",
            "digest": digest,
            "state": JobState.QUEUED.value,
            "created_at": self._now,
            "updated_at": self._now,
        }
        self._connection.execute(insert(jobs), row)
        self._order(job, device, digest, {}, "rollback QUEUED")

    def _order(self, job: str, device: str, digest: str, values: dict[str, Any], text: str) -> None:
        """Sign, store and queue an order; one that cannot be made ends REJECTED instead of stopping all."""
        deadline_s = self._groups[device].phase.deadline_s
        told = {"notified_at": self._now, "deadline_at": self._now + deadline_s, "updated_at": self._now}
        strategy = self._loaded.snapshot.strategy
        terms = Terms(deadline_s, strategy.watch_s, strategy.max_error_rate, strategy.max_latency_p95_ms)
        try:
            counter, envelope = self._assign(self._connection, device, digest, job, terms)
        except EdgekitError as exc:
            refused = {"state": JobState.REJECTED.value, "code": type(exc).__name__, "message": str(exc)}
            self._job(job, {**values, **told, **refused, "ended_at": self._now})
            self._note("job", f"job REJECTED: {exc}", device)
            return
        self._job(job, {**values, **told, "counter": counter, "assignment": envelope})
        self._send(device, wire.JobNotify(job=job, assignment=envelope))
        self._note("job", text, device, {"job": job, "state": JobState.QUEUED.value})

    def _end(self, action: acts.EndJob) -> None:
        job = self._loaded.deploy[action.device]
        self._end_row(job.id, action.to, action.reason)
        if action.tell:
            self._tell_cancel(action.device)
        self._note("job", f"job {_line(action.to, action.reason)}", action.device, {"job": job.id})

    def _end_back(self, action: acts.EndBack) -> None:
        where = and_(jobs.c.rollout == self._id, jobs.c.device == action.device, jobs.c.kind == "back")
        job = self._connection.scalar(select(jobs.c.id).where(where))
        self._end_row(str(job), action.to, action.reason)
        self._note("job", f"rollback {_line(action.to, action.reason)}", action.device, {"job": job})

    def _end_row(self, job: str, to: JobState, reason: str) -> None:
        ended = {"state": to.value, "ended_at": self._now, "updated_at": self._now}
        self._job(job, {**ended, "message": reason})

    def _tell_cancel(self, device: str) -> None:
        self._send(device, wire.JobNotify(job=self._loaded.deploy[device].id, cancel=True))

    def _send(self, device: str, message: wire.JobNotify) -> None:
        """To a device that is there, and as its retained state for one that is not."""
        desired, notify = (
            wire.topic(device, channel, self._tenant) for channel in (wire.DESIRED, wire.JOB_NOTIFY)
        )
        send(self._connection, desired, wire.Desired(message), retain=True)
        send(self._connection, notify, message)

    def _job(self, job: str, values: dict[str, Any]) -> None:
        self._connection.execute(update(jobs).where(jobs.c.id == job).values(values))

    def _note(self, kind: str, text: str, device: str = "", data: dict[str, Any] | None = None) -> None:
        note(self._connection, kind, text, device=device, rollout=self._id, data=data)


def _line(state: str, reason: str) -> str:
    return f"{state}: {reason}" if reason else state
