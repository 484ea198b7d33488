"""What must survive a power cut: one SQLite file in the state folder.

WAL with synchronous=FULL: when a method returns, its effect is on the disk. One connection, one lock:
every method is safe to call from any thread. Bundles lie beside it as ciphertext, keys as they were
sealed; nothing here is worth stealing.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import codec
from edgekit.errors import SystemFault
from edgekit.files import storage_fault
from edgekit.wire import Assignment, JobState, JobUpdate, Stage, Telemetry

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE kv (key TEXT PRIMARY KEY, value TEXT NOT NULL);
-- role: current | previous | candidate
CREATE TABLE release (role TEXT PRIMARY KEY, assignment TEXT NOT NULL, variant TEXT NOT NULL);
CREATE TABLE job (
  job TEXT PRIMARY KEY, counter INTEGER NOT NULL, assignment TEXT NOT NULL,
  state TEXT NOT NULL, stage TEXT NOT NULL, outcome TEXT NOT NULL DEFAULT '',
  code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '',
  elapsed_s REAL NOT NULL DEFAULT 0, restarts INTEGER NOT NULL DEFAULT 0,
  refetched INTEGER NOT NULL DEFAULT 0, canceled INTEGER NOT NULL DEFAULT 0);
CREATE TABLE outbox (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, terminal INTEGER NOT NULL, payload TEXT NOT NULL);
CREATE TABLE telemetry (
  id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, seq INTEGER NOT NULL,
  sent INTEGER NOT NULL DEFAULT 0, payload TEXT NOT NULL);
"""
KEEP_JOBS = 64
KEEP_UPDATES = 1000


@dataclass(frozen=True)
class Activation:
    """One job's journal entry."""

    job: str
    assignment: Assignment
    state: JobState
    stage: Stage
    outcome: JobState | None = None
    """How the job ends once its rollback is done."""
    code: str = ""
    message: str = ""
    elapsed_s: float = 0.0
    """Of the deadline; time without power is not counted, because clocks may be wrong."""
    restarts: int = 0
    refetched: int = 0
    canceled: bool = False


@dataclass(frozen=True)
class Release:
    """A release that this device has or had in service."""

    assignment: Assignment
    variant: str


class Store:
    """Opens or creates `folder`/agent.db. Raises SystemFault: cannot write, made by a newer agent."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.db"
        self._lock = threading.RLock()
        self._nested = False
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
            self.path.chmod(0o600)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (sqlite3.Error, OSError) as exc:
            raise SystemFault(f"cannot use {self.path}: {exc}", "check the disk and who owns it") from None

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes durable together, or not at all. Nests."""
        with self._lock:
            if self._nested:
                yield
                return
            self._nested = True
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as exc:
                raise SystemFault(f"cannot write {self.path}: {exc}", "free some space") from None
            finally:
                self._nested = False
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    # -- kv ------------------------------------------------------------------------------------

    def get(self, key: str, default: str = "") -> str:
        row = self._one("SELECT value FROM kv WHERE key = ?", key)
        return str(row[0]) if row else default

    def set(self, key: str, value: str) -> None:
        self._run("INSERT INTO kv VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                  key, value)  # fmt: skip

    @property
    def floor(self) -> int:
        """The highest assignment counter that was accepted; only higher ones are."""
        return int(self.get("floor", "0"))

    # -- releases ------------------------------------------------------------------------------

    def release(self, role: str) -> Release | None:
        row = self._one("SELECT assignment, variant FROM release WHERE role = ?", role)
        return Release(_assignment(row[0]), row[1]) if row else None

    def set_release(self, role: str, release: Release | None) -> None:
        if release is None:
            self._run("DELETE FROM release WHERE role = ?", role)
            return
        text = codec.to_json(release.assignment).decode()
        self._run("INSERT OR REPLACE INTO release VALUES (?, ?, ?)", role, text, release.variant)

    # -- the activation journal ----------------------------------------------------------------

    def activation(self, job: str) -> Activation | None:
        return self._activation("WHERE job = ?", job)

    def active(self) -> Activation | None:
        """The job that is being done, if any; there is at most one."""
        return self._activation("WHERE state = ?", JobState.IN_PROGRESS)

    def queued(self) -> Activation | None:
        """The job that waits for the active one to end, if any; there is at most one."""
        return self._activation("WHERE state = ?", JobState.QUEUED)

    def accept(self, assignment: Assignment) -> None:
        """Queue a job; from now on only assignments with a higher counter are accepted."""
        text = codec.to_json(assignment).decode()
        with self.transaction():
            self._run(
                "INSERT INTO job (job, counter, assignment, state, stage) VALUES (?, ?, ?, ?, ?)",
                assignment.job, assignment.counter, text, JobState.QUEUED, Stage.DOWNLOAD,
            )  # fmt: skip
            self.set("floor", str(assignment.counter))
            self._run(
                "DELETE FROM job WHERE state NOT IN (?, ?) AND job NOT IN"
                " (SELECT job FROM job ORDER BY counter DESC LIMIT ?)",
                JobState.IN_PROGRESS, JobState.QUEUED, KEEP_JOBS,
            )  # fmt: skip

    def journal(self, entry: Activation) -> None:
        """Replace a job's entry."""
        self._run(
            "UPDATE job SET state = ?, stage = ?, outcome = ?, code = ?, message = ?, elapsed_s = ?,"
            " restarts = ?, refetched = ? WHERE job = ?",
            entry.state, entry.stage, entry.outcome or "", entry.code, entry.message, entry.elapsed_s,
            entry.restarts, entry.refetched, entry.job,
        )  # fmt: skip

    def cancel(self, job: str) -> None:
        """Remember that a job is to be cancelled."""
        self._run("UPDATE job SET canceled = 1 WHERE job = ?", job)

    def end_queued(self, job: str) -> None:
        """A queued job will not be begun."""
        self._run("UPDATE job SET state = ? WHERE job = ?", JobState.CANCELED, job)

    def _activation(self, where: str, *values: str) -> Activation | None:
        columns = "assignment, state, stage, outcome, code, message, elapsed_s, restarts, refetched, canceled"
        row = self._one(f"SELECT {columns} FROM job {where} ORDER BY counter DESC LIMIT 1", *values)  # noqa: S608
        if row is None:
            return None
        assignment, state, stage, outcome, code, message, elapsed_s, restarts, refetched, canceled = row
        parsed = _assignment(assignment)
        return Activation(
            job=parsed.job,
            assignment=parsed,
            state=JobState(state),
            stage=Stage(stage),
            outcome=JobState(outcome) if outcome else None,
            code=code,
            message=message,
            elapsed_s=elapsed_s,
            restarts=restarts,
            refetched=refetched,
            canceled=bool(canceled),
        )

    # -- outbox --------------------------------------------------------------------------------

    def post(
        self, job: str, state: JobState, *, stage: str = "", code: str = "", message: str = "", at: str = ""
    ) -> JobUpdate:
        """Queue a job update until the fleet acknowledges it; its `seq` grows for ever."""
        with self.transaction():
            if state.terminal:
                # What happened on the way no longer matters to a fleet that has not heard of it yet.
                self._run("DELETE FROM outbox WHERE job = ? AND terminal = 0", job)
            cursor = self._run(
                "INSERT INTO outbox (job, terminal, payload) VALUES (?, ?, '')", job, int(state.terminal)
            )
            update = JobUpdate(job, int(cursor.lastrowid or 0), state, stage, code, message, at)
            text = codec.to_json(update).decode()
            self._run("UPDATE outbox SET payload = ? WHERE seq = ?", text, update.seq)
            self._run("DELETE FROM outbox WHERE seq <= ?", update.seq - KEEP_UPDATES)
        return update

    def outbox(self) -> list[JobUpdate]:
        rows = self._all("SELECT payload FROM outbox ORDER BY seq")
        return [codec.from_json(JobUpdate, row[0].encode(), what="outbox") for row in rows]

    def acknowledge(self, seq: int) -> None:
        self._run("DELETE FROM outbox WHERE seq = ?", seq)

    # -- telemetry -----------------------------------------------------------------------------

    def add_window(self, window: Telemetry) -> None:
        text = codec.to_json(window).decode()
        self._run("INSERT INTO telemetry (boot, seq, payload) VALUES (?, ?, ?)",
                  window.boot, window.seq, text)  # fmt: skip

    def windows(self, limit: int, *, unsent: bool = False) -> list[tuple[int, Telemetry]]:
        """The oldest (row id, window); with `unsent` only those that `mark_sent` was not called for."""
        where = "WHERE sent = 0" if unsent else ""
        rows = self._all(f"SELECT id, payload FROM telemetry {where} ORDER BY id LIMIT ?", limit)  # noqa: S608
        return [(row[0], codec.from_json(Telemetry, row[1].encode(), what="telemetry")) for row in rows]

    def mark_sent(self, ids: Sequence[int]) -> None:
        """These may have reached the fleet: they are not merged any more."""
        with self.transaction():
            for row in ids:
                self._run("UPDATE telemetry SET sent = 1 WHERE id = ?", row)

    def replace_windows(self, ids: Sequence[int], merged: Telemetry) -> None:
        """Put `merged` in the place of the last of `ids`, drop the others."""
        with self.transaction():
            for row in ids[:-1]:
                self._run("DELETE FROM telemetry WHERE id = ?", row)
            text = codec.to_json(merged).decode()
            self._run("UPDATE telemetry SET boot = ?, seq = ?, payload = ? WHERE id = ?",
                      merged.boot, merged.seq, text, ids[-1])  # fmt: skip

    def count_windows(self) -> int:
        row = self._one("SELECT count(*) FROM telemetry")
        return int(row[0]) if row else 0

    def acknowledge_window(self, boot: str, seq: int) -> None:
        self._run("DELETE FROM telemetry WHERE boot = ? AND seq = ?", boot, seq)

    # -- plumbing ------------------------------------------------------------------------------

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise SystemFault(
                f"{self.path} was made by a newer agent (schema {version})", "update edgekit-agent"
            )
        if version == 0:
            self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")

    def _run(self, sql: str, *values: object) -> sqlite3.Cursor:
        with self.transaction():
            return self._db.execute(sql, values)

    def _one(self, sql: str, *values: object) -> Any:
        with self._lock:
            return self._db.execute(sql, values).fetchone()

    def _all(self, sql: str, *values: object) -> list[Any]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()


class FolderLock:
    """Holds the state folder for one agent; two would fight over the journal. Raises SystemFault."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise storage_fault(folder, exc) from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise SystemFault(
                f"{folder} is in use by another agent", "stop it, or use another state folder"
            ) from None

    def release(self) -> None:
        os.close(self._descriptor)


def _assignment(text: str) -> Assignment:
    return codec.from_json(Assignment, text.encode(), what="journal")
