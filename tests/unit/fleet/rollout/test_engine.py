"""The engine against a real SQLite database, with devices that answer through `apply_update`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, select, update

from edgekit import codec, wire
from edgekit.crypto import dsse
from edgekit.errors import BundleError, EdgekitError, InputError
from edgekit.wire import JobState
from edgekit_fleet import audit
from edgekit_fleet import db as tables
from edgekit_fleet.config import State, init
from edgekit_fleet.db import Database
from edgekit_fleet.releases import Terms, make_assignment
from edgekit_fleet.rollout.create import RolloutRequest, create
from edgekit_fleet.rollout.engine import RolloutEngine
from edgekit_fleet.rollout.jobs import apply_update
from edgekit_fleet.rollout.states import TransitionError
from edgekit_fleet.rollout.strategies import OnError, Phase, Strategy

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "1" * 64
TWO = Strategy((Phase("canary", "1", soak_s=10, deadline_s=60), Phase("rest", deadline_s=60)))


class Fleet:
    """A database with devices on release kws:1, an engine, and a clock that the test moves."""

    def __init__(self, path: Path, count: int = 4) -> None:
        self.db = Database.file(path / "fleet.db")
        self.db.create()
        self.engine = RolloutEngine(self.db, self.assign)
        self.now = 1000.0
        self.keys = init(State(path / "state"))
        sealing = self.keys.recipient.to_pem().decode()
        self.seq = itertools.count(1)
        self.refuse = self.crash = ""
        with self.db.write() as connection:
            for digest, version in ((OLD, "1"), (NEW, "2")):
                row = {"digest": digest, "name": "kws", "version": version, "file_sha256": "", "path": ""}
                more = {"size_bytes": 1, "signer": "", "variants": [], "created_at": 1}
                connection.execute(insert(tables.releases), {**row, **more})
            for i in range(count):
                row = {"id": f"d{i}", "profile": "jetson", "serial": str(i), "fingerprint": ""}
                more = {"sealing_key_pem": sealing, "release": "kws:1", "bundle_digest": OLD, "created_at": 0}
                connection.execute(insert(tables.devices), {**row, **more, "online": True})

    def assign(
        self, connection: Connection, device: str, digest: str, job: str, terms: Terms
    ) -> tuple[int, str]:
        """The real one, except where a test plants a fault."""
        if device == self.refuse:
            raise BundleError("no variant fits")
        if device == self.crash:
            raise RuntimeError("power cut")
        return make_assignment(connection, self.keys, device, digest, job, terms)

    def order(self, notify: wire.JobNotify) -> wire.Assignment:
        """What the device reads after checking the signature."""
        trusted = [self.keys.assignment.public()]
        payload = dsse.verify(notify.assignment.encode(), wire.ASSIGNMENT_TYPE, trusted)
        return codec.from_json(wire.Assignment, payload, what="assignment")

    def create(self, strategy: Strategy = TWO, **more: object) -> int:
        request = RolloutRequest("kws:2", strategy=strategy, **more)  # type: ignore[arg-type]
        return int(create(self.db, self.engine, request, self.now)["id"])

    def tick(self, seconds: float = 0.0) -> int:
        self.now += seconds
        return self.engine.tick(self.now)

    def state(self, rollout: int) -> str:
        with self.db.read() as connection:
            found = connection.scalar(select(tables.rollouts.c.state).where(tables.rollouts.c.id == rollout))
            return str(found)

    def jobs(self, rollout: int, kind: str = "deploy") -> dict[str, str]:
        table = tables.jobs.c
        with self.db.read() as connection:
            query = select(table.device, table.state).where(table.rollout == rollout, table.kind == kind)
            return {row.device: row.state for row in connection.execute(query)}

    def waiting(self, rollout: int) -> list[str]:
        """Devices that have not been told."""
        table = tables.jobs.c
        with self.db.read() as connection:
            where = (table.rollout == rollout) & table.notified_at.is_(None)
            return list(connection.scalars(select(table.device).where(where)))

    def outbox(self) -> list[tuple[str, wire.JobNotify]]:
        """(device, message) of every job/notify, oldest first; then forgotten, as the worker does."""
        with self.db.write() as connection:
            rows = connection.execute(select(tables.outbox).order_by(tables.outbox.c.id)).all()
            connection.execute(tables.outbox.delete())
        notes = [
            (str(wire.split_topic(row.topic)[1]), codec.from_json(wire.JobNotify, row.payload, what="notify"))  # type: ignore[index]
            for row in rows
            if row.topic.endswith(wire.JOB_NOTIFY)
        ]
        retained = [row for row in rows if row.topic.endswith(wire.DESIRED)]
        assert len(retained) == len(notes)
        assert all(row.retain for row in retained)
        return notes

    def report(self, device: str, job: str, state: JobState, seq: int = 0, **more: str) -> bool:
        message = wire.JobUpdate(job, seq or next(self.seq), state, **more)
        with self.db.write() as connection:
            return apply_update(connection, device, message, self.now)

    def obey(self, end: JobState = JobState.SUCCEEDED) -> list[str]:
        """Every device does what it was told, in the order it was told; who was told to."""
        done = []
        for device, notify in self.outbox():
            if notify.cancel:
                self.report(device, notify.job, JobState.CANCELED)
                continue
            self.report(device, notify.job, JobState.IN_PROGRESS, stage="DOWNLOAD")
            if end is JobState.SUCCEEDED:
                order = self.order(notify)
                assert (order.device, order.job) == (device, notify.job)
                self.runs(device, order.bundle_digest, order.counter)
            self.report(device, notify.job, end)
            done.append(device)
        return done

    def runs(self, device: str, digest: str, counter: int) -> None:
        with self.db.write() as connection:
            values = {"bundle_digest": digest, "reported_counter": counter}
            connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(values))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    yield made
    made.db.close()


def test_canary_soak_rest_finished(fleet: Fleet) -> None:
    rollout = fleet.create()
    assert fleet.state(rollout) == "RUNNING"
    assert len(fleet.obey()) == 1
    fleet.tick()
    assert fleet.outbox() == []
    fleet.tick(11)
    assert len(fleet.obey()) == 3
    fleet.tick()
    assert fleet.state(rollout) == "FINISHED"
    assert fleet.tick(1e6) == 0


def test_bad_second_phase_sends_the_canary_back(fleet: Fleet) -> None:
    rollout = fleet.create()
    [canary] = fleet.obey()
    fleet.tick()
    fleet.tick(11)
    fleet.obey(JobState.FAILED)
    fleet.tick()
    assert fleet.state(rollout) == "ROLLING_BACK"
    [(device, notify)] = [item for item in fleet.outbox() if not item[1].cancel]
    assert device == canary
    assert fleet.order(notify).bundle_digest == OLD
    fleet.report(device, notify.job, JobState.SUCCEEDED)
    fleet.tick()
    assert fleet.state(rollout) == "ROLLED_BACK"
    assert fleet.jobs(rollout, "back") == {canary: "SUCCEEDED"}


def test_lost_confirmation_is_made_good_by_the_reported_state(fleet: Fleet) -> None:
    rollout = fleet.create()
    [canary] = fleet.obey()
    fleet.engine.command(rollout, "rollback", fleet.now)
    [(_, notify)] = fleet.outbox()
    fleet.runs(canary, OLD, fleet.order(notify).counter)
    fleet.tick()
    assert fleet.state(rollout) == "ROLLED_BACK"


def test_same_report_twice_counts_once(fleet: Fleet) -> None:
    fleet.create()
    [(device, notify)] = fleet.outbox()
    assert fleet.report(device, notify.job, JobState.IN_PROGRESS, seq=7)
    assert not fleet.report(device, notify.job, JobState.IN_PROGRESS, seq=7)


def test_reports_for_others_jobs_and_unknown_jobs_change_nothing(fleet: Fleet) -> None:
    rollout = fleet.create()
    [(device, notify)] = fleet.outbox()
    other = next(d for d in fleet.jobs(rollout) if d != device)
    assert not fleet.report(other, notify.job, JobState.SUCCEEDED)
    assert not fleet.report(device, "nonsense", JobState.SUCCEEDED)
    untold = fleet.jobs(rollout)
    assert set(untold.values()) == {"QUEUED"}


def test_superseded_job_is_ignored_and_terminal_states_stay(fleet: Fleet) -> None:
    first = fleet.create()
    [(device, notify)] = fleet.outbox()
    fleet.report(device, notify.job, JobState.IN_PROGRESS)
    with pytest.raises(TransitionError, match=f"rollout {first} still holds"):
        fleet.create()
    second = fleet.create(supersede=True)
    assert fleet.state(first) == "SUPERSEDED"
    assert not fleet.report(device, notify.job, JobState.SUCCEEDED)
    assert fleet.jobs(first)[device] == "CANCELED"
    assert fleet.jobs(second)[device] == "QUEUED"
    order = [(d, n.cancel) for d, n in fleet.outbox()]
    assert order == [(device, True), (device, False)]


def test_device_that_took_it_late_is_sent_back_after_all(fleet: Fleet) -> None:
    rollout = fleet.create()
    [(device, notify)] = fleet.outbox()
    with fleet.db.write() as connection:
        connection.execute(update(tables.devices).values(online=False))
    fleet.engine.command(rollout, "rollback", fleet.now)
    assert fleet.state(rollout) == "ROLLED_BACK"
    assert fleet.outbox()[0][1].cancel
    fleet.runs(device, NEW, fleet.order(notify).counter)
    fleet.tick()
    assert fleet.obey() == [device]
    assert fleet.jobs(rollout, "back") == {device: "SUCCEEDED"}
    assert fleet.state(rollout) == "ROLLED_BACK"
    assert fleet.tick() == 0


def test_release_rolled_out_again_is_not_taken_back_by_the_old_rollout(fleet: Fleet) -> None:
    first = fleet.create()
    fleet.obey()
    fleet.engine.command(first, "rollback", fleet.now)
    fleet.obey()
    fleet.tick()
    second = fleet.create(Strategy((Phase("all"),)))
    assert len(fleet.obey()) == 4
    fleet.tick()
    assert fleet.state(second) == "FINISHED"
    assert fleet.tick() == 0
    assert len(fleet.jobs(first, "back")) == 1


def test_device_that_cannot_be_assigned_is_rejected_not_fatal(fleet: Fleet) -> None:
    fleet.refuse = "d2"
    rollout = fleet.create(Strategy((Phase("all", success=50, errors=1),)))
    fleet.obey()
    fleet.tick()
    assert fleet.jobs(rollout)["d2"] == "REJECTED"
    assert fleet.state(rollout) == "FINISHED"


def test_gates_read_telemetry(fleet: Fleet) -> None:
    fleet.tick()
    rollout = fleet.create()
    [canary] = fleet.obey()
    fleet.tick()
    with fleet.db.write() as connection:
        for seq, device in enumerate(fleet.jobs(rollout)):
            new = device == canary
            row = {"device": device, "boot": "b", "seq": seq, "received_at": fleet.now + 1, "window_s": 1.0}
            counts = {"edgekit_requests_total": 200.0, "edgekit_request_errors_total": 30.0 if new else 0.0}
            more = {"windows": 1, "release": "kws:2" if new else "kws:1", "values": counts}
            lists = {"latency_buckets": [0] * 14, "classes": {}}
            connection.execute(insert(tables.telemetry), {**row, **more, **lists})
    fleet.tick(1)
    assert fleet.state(rollout) == "RUNNING"  # before the first look
    fleet.tick(2)
    assert fleet.state(rollout) == "ROLLING_BACK"
    with fleet.db.read() as connection:
        reason = str(connection.scalar(select(tables.rollouts.c.reason)))
    assert "gate error-rate (jetson): error rate 0.1500 against 0.0000 on the old release" in reason


def test_crash_in_the_middle_of_a_tick_leaves_nothing_and_the_next_tick_does_it(fleet: Fleet) -> None:
    rollout = fleet.create()
    fleet.obey()
    fleet.tick()
    fleet.crash = "d0" if "d0" in fleet.waiting(rollout) else "d1"
    with pytest.raises(RuntimeError, match="power cut"):
        fleet.tick(11)
    assert fleet.outbox() == []
    assert len(fleet.waiting(rollout)) == 3
    fleet.crash = ""
    fleet.tick()
    assert len(fleet.obey()) == 3
    fleet.tick()
    assert fleet.state(rollout) == "FINISHED"


def test_every_move_is_in_the_audit_log(fleet: Fleet) -> None:
    rollout = fleet.create()
    fleet.engine.command(rollout, "pause", fleet.now, actor="ada")
    with fleet.db.read() as connection:
        assert audit.verify(connection).broken_at is None
        rows = connection.execute(select(tables.audit.c.actor, tables.audit.c.action)).all()
    assert tuple(rows[0]) == ("admin", "rollout.create")
    assert ("ada", "rollout.pause") in [tuple(row) for row in rows]


def test_requests_that_make_no_sense(fleet: Fleet) -> None:
    for request, what in (
        (RolloutRequest("kws:9"), "no release 'kws:9'"),
        (RolloutRequest("kws", query="profile == pi"), "no device matches"),
        (RolloutRequest("kws", query="profile = pi"), "column 9"),
        (RolloutRequest("kws", strategy=Strategy((Phase("a", "0"),))), "no phase takes any device"),
    ):
        with pytest.raises(EdgekitError, match=what):
            create(fleet.db, fleet.engine, request, fleet.now)
    with pytest.raises(InputError, match="no rollout 77"):
        fleet.engine.command(77, "pause", fleet.now)


def test_dry_run_writes_nothing(fleet: Fleet) -> None:
    answer = create(fleet.db, fleet.engine, RolloutRequest("kws", strategy=TWO, dry_run=True), fleet.now)
    assert answer["id"] is None
    assert [len(group["devices"]) for group in answer["groups"]] == [1, 3]
    assert fleet.engine.pending() == []


def test_pause_and_error_pause(fleet: Fleet) -> None:
    strategy = Strategy((Phase("a", "1", on_error=OnError.PAUSE), Phase("b")))
    rollout = fleet.create(strategy)
    fleet.obey(JobState.REJECTED)
    fleet.tick()
    assert fleet.state(rollout) == "PAUSED"
    fleet.engine.command(rollout, "resume", fleet.now)
    fleet.obey()
    fleet.tick()
    assert fleet.state(rollout) == "FINISHED"


def test_a_kill_between_the_parts_of_a_large_step(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one action each: what was committed before the crash stays, the next tick does the rest."""
    monkeypatch.setattr("edgekit_fleet.rollout.engine.PART", 1)
    rollout = fleet.create(Strategy((Phase("all", deadline_s=60),)))
    fleet.crash = "d2"
    with pytest.raises(RuntimeError, match="power cut"):
        fleet.tick()
    told = 4 - len(fleet.waiting(rollout))
    assert 0 < told < 4
    fleet.crash = ""
    fleet.tick()
    assert fleet.waiting(rollout) == []
    assert sorted(fleet.obey()) == ["d0", "d1", "d2", "d3"]
    fleet.engine.command(rollout, "rollback", fleet.now)
    fleet.crash = "d1"
    with pytest.raises(RuntimeError, match="power cut"):
        fleet.tick()
    fleet.crash = ""
    fleet.tick()
    assert len(fleet.obey()) == 4
    fleet.tick()
    assert fleet.state(rollout) == "ROLLED_BACK"
    assert set(fleet.jobs(rollout, "back").values()) == {"SUCCEEDED"}


def test_a_rollout_that_cannot_be_settled_does_not_hold_up_the_others(fleet: Fleet) -> None:
    broken = fleet.create(Strategy((Phase("all"),)), query='id == "d0"')
    sound = fleet.create(Strategy((Phase("all"),)), query='id == "d1"')
    with fleet.db.write() as connection:
        table = tables.rollouts
        connection.execute(update(table).where(table.c.id == broken).values(strategy={"from": "the future"}))
    fleet.obey()
    with pytest.raises(EdgekitError) as caught:
        fleet.tick()
    assert caught.value.__notes__ == [f"in rollout {broken}"]
    assert fleet.state(sound) == "FINISHED"
