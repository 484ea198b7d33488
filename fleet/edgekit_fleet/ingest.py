"""Messages from devices, into the database: a batch is one transaction, everything is idempotent.

The device's id is taken from the topic, which the broker's access list ties to its certificate. What
does not parse, or comes from nobody we know, is counted, traced in the audit log and dropped.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from edgekit import wire
from edgekit.codec import from_json, to_plain
from edgekit.errors import ConfigError, EdgekitError
from edgekit.wire import JobAck, JobUpdate, Presence, Reported, Telemetry, TelemetryAck
from edgekit_fleet import audit
from edgekit_fleet.db import Database, devices, insert_new, note, telemetry
from edgekit_fleet.rollout.jobs import apply_update

MAX_MESSAGE_BYTES = 256 * 1024
MAX_ID = 64
MAX_INTEGER = 2**53
_AUDIT_EVERY_S = 60.0


@dataclass(frozen=True)
class Message:
    topic: str
    payload: bytes
    retained: bool = False
    """The broker's memory of an earlier message, not the device speaking now."""


@dataclass(frozen=True)
class Reply:
    topic: str
    message: JobAck | TelemetryAck


@dataclass
class Counts:
    """What came in since the start; read by /metrics."""

    messages: Counter[str] = field(default_factory=Counter)
    """By channel."""
    dropped: Counter[str] = field(default_factory=Counter)
    """By reason: malformed, unknown, revoked."""
    windows: int = 0
    """Telemetry windows stored."""
    duplicates: int = 0


@dataclass
class Known:
    """What the database says of a device; kept up to date while a batch is applied."""

    revoked: bool
    online: bool
    boot: str
    version: int
    version_boot: str
    """Start of the agent that `version` belongs to."""
    release: str
    spoke: bool = False
    """Now, itself: not the broker's memory."""


@dataclass(frozen=True)
class Sender:
    """Of one message."""

    device: str
    known: Known
    retained: bool
    now: float


class Dropped(EdgekitError):
    """A message that is not taken; `reason` is its metric label."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Ingest:
    """Applies batches of messages. One thread at a time."""

    def __init__(self, db: Database) -> None:
        self.counts = Counts()
        self._db = db
        self._audited: dict[str, float] = {}
        self._windows: list[dict[str, Any]] = []
        """Telemetry rows of the batch at hand: written at its end, all at once."""

    def apply(self, batch: Sequence[Message]) -> list[Reply]:
        """Store a batch and return what may be acknowledged to the devices: all of it is durable."""
        replies: list[Reply] = []
        now = time.time()
        with self._db.write() as connection:
            known = _load(connection, batch)
            self._windows = []
            for message in batch:
                try:
                    reply = self._one(connection, message, known, now)
                except Dropped as problem:  # raised before anything of this message was written
                    self._drop(connection, message, problem, now)
                else:
                    replies += [reply] if reply else []
            new = insert_new(connection, telemetry, self._windows)
            seen = [{"key": device, "now": now} for device, row in known.items() if row.spoke]
            if seen:
                touch = update(devices).where(devices.c.id == bindparam("key"))
                connection.execute(touch.values(last_seen=bindparam("now")), seen)
        self.counts.windows += new
        self.counts.duplicates += len(self._windows) - new
        return replies

    def _one(
        self, connection: Connection, message: Message, rows: Mapping[str, Known], now: float
    ) -> Reply | None:
        parts = wire.split_topic(message.topic)
        if parts is None or parts[0] != wire.TENANT:
            raise Dropped("malformed", f"foreign topic {message.topic[:120]!r}")
        _, device, channel = parts
        self.counts.messages[channel if channel in _HANDLERS else "other"] += 1
        if not message.payload:
            return None  # a retained message was cleared
        known = rows.get(device)
        if known is None:
            raise Dropped("unknown", f"no device {device[:80]!r}")
        if known.revoked:
            raise Dropped("revoked", f"{device} is revoked")
        handler = _HANDLERS.get(channel)
        if handler is None:
            raise Dropped("malformed", f"unknown channel {channel[:80]!r}")
        kind, take = handler
        try:
            parsed = from_json(kind, message.payload, what=channel, max_bytes=MAX_MESSAGE_BYTES)
        except ConfigError as exc:
            raise Dropped("malformed", exc.message) from None
        reply: Reply | None = take(self, connection, Sender(device, known, message.retained, now), parsed)
        known.spoke = known.spoke or not message.retained
        return reply

    def _presence(self, connection: Connection, sender: Sender, said: Presence) -> None:
        _check_ids(said.boot)
        same_boot = said.boot == sender.known.boot
        # A last will of an earlier start comes late and means nothing; so does the broker's memory of a
        # start that we know: only the device itself, now, can say that it is (still) there.
        if not (same_boot if not said.online else not (sender.retained and same_boot)):
            return
        connection.execute(
            update(devices).where(devices.c.id == sender.device).values(online=said.online, boot=said.boot)
        )
        changed = said.online != sender.known.online
        sender.known.online, sender.known.boot = said.online, said.boot
        if changed:
            state = "online" if said.online else "offline"
            note(
                connection,
                "device",
                f"{sender.device} is {state}",
                device=sender.device,
                data={"online": said.online},
            )

    def _reported(self, connection: Connection, sender: Sender, said: Reported) -> None:
        _check_ids(said.boot)
        _check_integers(said.version, said.counter)
        if said.boot == sender.known.version_boot and said.version <= sender.known.version:
            self.counts.duplicates += 1
            return
        values = {
            "reported": to_plain(said),
            "reported_version": said.version,
            "release": said.release[:200],
            "bundle_digest": said.bundle_digest[:80],
            "variant": said.variant[:200],
            "architecture": said.architecture[:40],
            "emulated": said.emulated,
            "reported_counter": said.counter,
        }
        connection.execute(update(devices).where(devices.c.id == sender.device).values(values))
        changed = said.release != sender.known.release
        sender.known.version, sender.known.version_boot = said.version, said.boot
        sender.known.release = said.release[:200]
        if changed:
            reason = f": {said.notice[:300]}" if said.notice else ""
            text = f"{sender.device} runs {said.release or 'nothing'}{reason}"
            note(connection, "device", text, device=sender.device, data={"release": said.release})

    def _job_update(self, connection: Connection, sender: Sender, said: JobUpdate) -> Reply:
        _check_integers(said.seq)
        if not apply_update(connection, sender.device, said, sender.now):
            self.counts.duplicates += 1
        return Reply(wire.topic(sender.device, wire.JOB_ACK), JobAck(said.seq))

    def _telemetry(self, _: Connection, sender: Sender, said: Telemetry) -> Reply:
        _check_ids(said.boot)
        _check_integers(said.seq, said.windows, *said.latency_buckets, *said.classes.values())
        if not all(math.isfinite(value) for value in (said.window_s, *said.values.values())):
            raise Dropped("malformed", "telemetry: a value is not finite")
        row = to_plain(said)
        row |= {
            "device": sender.device,
            "received_at": sender.now,
            "release": said.release[:200],
            "start": said.start[:40],
        }
        self._windows.append(row)
        return Reply(wire.topic(sender.device, wire.TELEMETRY_ACK), TelemetryAck(said.boot, said.seq))

    def _drop(self, connection: Connection, message: Message, problem: Dropped, now: float) -> None:
        """Count it; trace it, at most once a minute per topic, so that noise cannot fill the log."""
        self.counts.dropped[problem.reason] += 1
        if now - self._audited.get(message.topic, 0.0) < _AUDIT_EVERY_S:
            return
        if len(self._audited) > 10_000:
            self._audited.clear()
        self._audited[message.topic] = now
        parts = wire.split_topic(message.topic)
        actor = f"device:{parts[1]}" if parts else "broker"
        detail = {"reason": problem.reason, "message": problem.message[:300]}
        audit.record(connection, actor, "message.dropped", message.topic[:200], detail)


_HANDLERS: dict[str, tuple[type[Any], Any]] = {
    wire.PRESENCE: (Presence, Ingest._presence),
    wire.REPORTED: (Reported, Ingest._reported),
    wire.JOB_UPDATE: (JobUpdate, Ingest._job_update),
    wire.TELEMETRY: (Telemetry, Ingest._telemetry),
}


def _load(connection: Connection, batch: Sequence[Message]) -> dict[str, Known]:
    """The devices that a batch speaks of."""
    names = {parts[1] for message in batch if (parts := wire.split_topic(message.topic))}
    rows = connection.execute(
        select(
            devices.c.id,
            devices.c.revoked_at,
            devices.c.online,
            devices.c.boot,
            devices.c.reported_version,
            devices.c.reported,
            devices.c.release,
        ).where(devices.c.id.in_(names))
    )
    return {
        row.id: Known(
            revoked=row.revoked_at is not None,
            online=row.online,
            boot=row.boot,
            version=row.reported_version,
            version_boot=(row.reported or {}).get("boot", ""),
            release=row.release,
        )
        for row in rows
    }


def forget_absent(db: Database, since: float) -> int:
    """Devices that have not spoken since `since` (the broker's last start) are offline; how many.

    A broker that was killed sent no last wills.
    """
    with db.write() as connection:
        silent = or_(devices.c.last_seen.is_(None), devices.c.last_seen < since)
        gone = connection.scalars(select(devices.c.id).where(devices.c.online, silent)).all()
        for device in gone:
            connection.execute(update(devices).where(devices.c.id == device).values(online=False))
            note(connection, "device", f"{device} is offline", device=device, data={"online": False})
    return len(gone)


def _check_ids(*values: str) -> None:
    if any(len(value) > MAX_ID for value in values):
        raise Dropped("malformed", f"an id is longer than {MAX_ID} characters")


def _check_integers(*values: int) -> None:
    """Python's integers have no end, the database's have."""
    if any(abs(value) > MAX_INTEGER for value in values):
        raise Dropped("malformed", "a number is out of range")
