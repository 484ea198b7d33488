"""The database: SQLite (WAL) beside the fleet, or another one by SQLAlchemy URL; tables are in `schema`.

    with db.read() as connection: ...       a consistent view
    with db.write() as connection: ...      one transaction, one writer at a time, durable when it ends

Shared helpers that go into the caller's transaction: `insert_new` (idempotent insert), `send` (a message
to a device, through the outbox) and `note` (an event for people).
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Table, create_engine, delete, event, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.pool import PoolProxiedConnection

from edgekit.codec import to_json
from edgekit.errors import InputError, SystemFault
from edgekit_fleet import schema
from edgekit_fleet.schema import (
    audit,
    devices,
    events,
    job_updates,
    jobs,
    metadata,
    outbox,
    releases,
    retained,
    revoked,
    rollout_groups,
    rollouts,
    settings,
    telemetry,
    tokens,
)

__all__ = [
    "Database",
    "audit",
    "devices",
    "events",
    "insert_new",
    "job_updates",
    "jobs",
    "metadata",
    "note",
    "outbox",
    "releases",
    "retained",
    "revoked",
    "rollout_groups",
    "rollouts",
    "send",
    "settings",
    "telemetry",
    "tokens",
]

_BUSY_TIMEOUT_S = 30


class Database:
    """One engine; writers of this process queue on a lock instead of on SQLite's busy handler."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.engine: Engine = create_engine(url, connect_args=_connect_args(url))
        except (ArgumentError, NoSuchModuleError, ImportError):
            hint = "e.g. sqlite:////var/lib/edgekit/fleet.db or postgresql+psycopg://user@host/edgekit"
            raise InputError(f"not a database URL that works here: {_without_password(url)}", hint) from None
        self._writer = threading.Lock()
        self._listeners: list[Callable[[], None]] = []
        if self.engine.dialect.name == "sqlite":
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "begin", _sqlite_begin)

    @classmethod
    def file(cls, path: Path) -> Database:
        return cls(f"sqlite:///{path}")

    def create(self) -> None:
        """Make the tables that are missing. Raises SystemFault for a database of another version."""
        try:
            metadata.create_all(self.engine)
            with self.write() as connection:
                row = {"key": "schema_version", "value": schema.SCHEMA_VERSION}
                insert_new(connection, settings, [row])
                found = connection.scalar(select(settings.c.value).where(settings.c.key == "schema_version"))
        except DatabaseError as exc:
            raise SystemFault(
                f"cannot use the database {_without_password(self.url)}: {exc.orig}", "check --url or --state"
            ) from None
        if found != schema.SCHEMA_VERSION:
            raise SystemFault(
                f"the database has schema version {found}, this program {schema.SCHEMA_VERSION}",
                "use the edgekit-fleet that wrote it, or a fresh --state folder",
            )

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing: all its queries see the same moment."""
        with self.engine.connect() as connection, connection.begin() as transaction:
            yield connection
            transaction.rollback()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction; on leaving it is durable and listeners are told, on an exception it never was."""
        with self._writer, self.engine.connect() as connection:
            connection = connection.execution_options(edgekit_write=True)
            with connection.begin():
                yield connection
        for listener in self._listeners:
            listener()

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` (quick, any thread) after each write, e.g. to look into the outbox."""
        self._listeners.append(listener)

    def close(self) -> None:
        self.engine.dispose()


def insert_new(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows whose key is not there yet; how many those were."""
    if not rows:
        return 0
    statement = _INSERT.get(connection.dialect.name)
    if statement is None:
        raise SystemFault(
            f"the database kind {connection.dialect.name!r} is not supported", "use sqlite or postgresql"
        )
    result = connection.execute(statement(table).on_conflict_do_nothing(), [dict(row) for row in rows])
    return max(0, result.rowcount)


_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def send(connection: Connection, topic: str, message: Any, *, retain: bool = False) -> None:
    """Queue a wire message (dataclass) at QoS 1; it leaves after commit, at least once, in order.

    `message` None with `retain` clears a retained message.
    """
    payload = b"" if message is None else to_json(message)
    row = {"topic": topic, "payload": payload, "retain": retain, "created_at": time.time()}
    connection.execute(insert(outbox), row)
    if retain:
        connection.execute(delete(retained).where(retained.c.topic == topic))
        if payload:
            connection.execute(insert(retained), {"topic": topic, "payload": payload})


def note(
    connection: Connection,
    kind: str,
    text: str,
    *,
    device: str = "",
    rollout: int | None = None,
    data: Mapping[str, Any] | None = None,
) -> None:
    """An event for people; followers of /v1/events see it after commit."""
    row = {"at": time.time(), "kind": kind, "device": device, "rollout": rollout, "text": text}
    connection.execute(insert(events), {**row, "data": dict(data or {})})


def _connect_args(url: str) -> dict[str, Any]:
    return {"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False} if url.startswith("sqlite") else {}


def _sqlite_connect(raw: sqlite3.Connection, _: PoolProxiedConnection) -> None:
    raw.isolation_level = None  # we say BEGIN ourselves: the driver's own choice would be deferred
    raw.execute("PRAGMA journal_mode=WAL")
    raw.execute("PRAGMA synchronous=FULL")  # a commit that was acknowledged survives a power cut
    raw.execute("PRAGMA foreign_keys=ON")


def _sqlite_begin(connection: Connection) -> None:
    # IMMEDIATE: a reader that turned into a writer half-way could fail with "database is locked".
    write = connection.get_execution_options().get("edgekit_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
