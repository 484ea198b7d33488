"""Transactions, the outbox, and the chain of the audit log."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select, text, update

from edgekit.errors import EdgekitError, SystemFault
from edgekit.wire import JobAck
from edgekit_fleet import audit
from edgekit_fleet.db import Database, events, insert_new, note, outbox, retained, send, settings
from edgekit_fleet.db import audit as audit_table


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = Database.file(tmp_path / "fleet.db")
    made.create()
    yield made
    made.close()


def test_a_failed_transaction_leaves_nothing_and_tells_nobody(db: Database) -> None:
    told: list[int] = []
    db.on_change(lambda: told.append(1))
    with pytest.raises(ZeroDivisionError), db.write() as connection:
        note(connection, "device", "never happened")
        raise ZeroDivisionError
    with db.read() as connection:
        assert connection.execute(select(events)).all() == []
    assert told == []
    with db.write() as connection:
        note(connection, "device", "happened")
    assert told == [1]


def test_sqlite_is_durable_and_shared(db: Database) -> None:
    with db.read() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA synchronous")) == 2
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_reading_changes_nothing(db: Database) -> None:
    with db.read() as connection:
        note(connection, "device", "a mistake")
    with db.read() as connection:
        assert connection.execute(select(events)).all() == []


def test_insert_new_counts_only_new_rows(db: Database) -> None:
    with db.write() as connection:
        assert insert_new(connection, settings, [{"key": "a", "value": 1}, {"key": "a", "value": 2}]) == 1
        assert insert_new(connection, settings, [{"key": "a", "value": 3}, {"key": "b", "value": 4}]) == 1
        assert insert_new(connection, settings, []) == 0
        assert connection.scalar(select(settings.c.value).where(settings.c.key == "a")) == 1


def test_writers_from_many_threads_wait_for_each_other(db: Database) -> None:
    def work() -> None:
        for _ in range(20):
            with db.write() as connection:
                audit.record(connection, "test", "count")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as connection:
        verdict = audit.verify(connection)
    assert (verdict.entries, verdict.broken_at) == (120, None)


def test_the_newest_retained_message_is_remembered(db: Database) -> None:
    with db.write() as connection:
        send(connection, "t", JobAck(1), retain=True)
        send(connection, "t", JobAck(2), retain=True)
        send(connection, "u", JobAck(3))
    with db.read() as connection:
        assert [row.payload for row in connection.execute(select(retained))] == [b'{"seq":2}']
        assert len(connection.execute(select(outbox)).all()) == 3
    with db.write() as connection:
        send(connection, "t", None, retain=True)
    with db.read() as connection:
        assert connection.execute(select(retained)).all() == []


def test_another_schema_version_is_refused(db: Database) -> None:
    with db.write() as connection:
        connection.execute(update(settings).where(settings.c.key == "schema_version").values(value=99))
    with pytest.raises(SystemFault, match="schema version 99"):
        db.create()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fleet.db").write_bytes(b"this is not SQLite" * 100)
    db = Database.file(tmp_path / "fleet.db")
    with pytest.raises(SystemFault, match="cannot use the database"):
        db.create()
    db.close()


@pytest.mark.parametrize("url", ["nonsense", "nosuch://x", "postgresql+nosuch://user:secret@host/db"])
def test_a_bad_url_is_one_line_without_its_password(url: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        Database(url)
    assert "secret" not in str(caught.value)


@pytest.fixture
def chain(db: Database) -> Database:
    with db.write() as connection:
        for number in range(5):
            audit.record(connection, "admin", "device.tags", f"d{number}", {"to": {"n": number}})
    return db


def verdict(db: Database) -> audit.Verdict:
    with db.read() as connection:
        return audit.verify(connection)


def test_the_chain_holds_and_names_its_head(chain: Database) -> None:
    found = verdict(chain)
    with chain.read() as connection:
        newest = connection.scalar(select(audit_table.c.hash).where(audit_table.c.id == 5))
    assert (found.entries, found.head, found.broken_at) == (5, newest, None)


@pytest.mark.parametrize("column", ["at", "actor", "action", "subject", "detail", "previous", "hash"])
def test_an_edited_entry_is_found(chain: Database, column: str) -> None:
    value: object = 1.0 if column == "at" else "x"
    with chain.write() as connection:
        connection.execute(update(audit_table).where(audit_table.c.id == 3).values({column: value}))
    assert verdict(chain).broken_at == 3


def test_a_removed_entry_is_found(chain: Database) -> None:
    with chain.write() as connection:
        connection.execute(delete(audit_table).where(audit_table.c.id == 2))
    assert verdict(chain).broken_at == 3


def test_a_cut_off_end_shows_in_the_head(chain: Database) -> None:
    noted = verdict(chain).head
    with chain.write() as connection:
        connection.execute(delete(audit_table).where(audit_table.c.id == 5))
    assert verdict(chain).broken_at is None
    assert verdict(chain).head != noted
