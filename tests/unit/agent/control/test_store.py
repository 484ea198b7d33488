"""What survives."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest

from edgekit.errors import SystemFault
from edgekit.wire import JobState, Stage
from edgekit_agent.store import KEEP_JOBS, FolderLock, Release, Store
from tests.unit.agent.control.test_stages import ASSIGNMENT


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_a_job_is_there_for_the_next_process(tmp_path: Path, store: Store) -> None:
    store.accept(ASSIGNMENT)
    queued = store.queued()
    assert queued is not None and store.active() is None
    entry = dataclasses.replace(queued, state=JobState.IN_PROGRESS, stage=Stage.PROBE, elapsed_s=3.5)
    store.journal(entry)
    store.cancel("job")
    store.close()
    again = Store(tmp_path)
    assert again.active() == dataclasses.replace(entry, canceled=True)
    assert again.floor == ASSIGNMENT.counter
    assert (tmp_path / "agent.db").stat().st_mode & 0o777 == 0o600


def test_transaction_is_all_or_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.set("a", "1")
        with store.transaction():
            store.set_release("current", Release(ASSIGNMENT, "v"))
        raise RuntimeError
    assert store.get("a") == "" and store.release("current") is None
    store.set("a", "2")
    assert store.get("a") == "2"


def test_updates_wait_until_acknowledged(tmp_path: Path, store: Store) -> None:
    store.post("a", JobState.IN_PROGRESS, stage="PROBE")
    other = store.post("b", JobState.IN_PROGRESS)
    end = store.post("a", JobState.SUCCEEDED)
    # Of a job that has ended only the end is of interest.
    assert store.outbox() == [other, end]
    store.acknowledge(other.seq)
    store.acknowledge(end.seq)
    store.close()
    assert Store(tmp_path).post("c", JobState.FAILED).seq > end.seq  # never used twice


def test_history_is_bounded(store: Store) -> None:
    for n in range(1, KEEP_JOBS + 20):
        assignment = dataclasses.replace(ASSIGNMENT, job=f"job-{n}", counter=n)
        store.accept(assignment)
        store.end_queued(assignment.job)
    assert store.activation("job-1") is None
    assert store.activation(f"job-{KEEP_JOBS + 19}") is not None
    assert store.floor == KEEP_JOBS + 19


def test_database_of_a_newer_agent_is_refused(tmp_path: Path, store: Store) -> None:
    store.close()
    with sqlite3.connect(tmp_path / "agent.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SystemFault, match="newer agent"):
        Store(tmp_path)


def test_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "agent.db").write_bytes(b"not a database, by far" * 100)
    with pytest.raises(SystemFault, match=r"agent\.db"):
        Store(tmp_path)


def test_folder_is_for_one(tmp_path: Path) -> None:
    first = FolderLock(tmp_path)
    with pytest.raises(SystemFault, match="another agent"):
        FolderLock(tmp_path)
    first.release()
    FolderLock(tmp_path).release()
