"""What devices send, applied to the database: order, repetition and nonsense."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select, update

from edgekit import wire
from edgekit.codec import to_json
from edgekit_fleet import devices as fleet_devices
from edgekit_fleet.db import audit, devices, job_updates, jobs, releases, rollouts, telemetry
from edgekit_fleet.ingest import Ingest, Message, forget_absent
from tests.unit.fleet.core.conftest import Home


@pytest.fixture
def ingest(home: Home) -> Ingest:
    home.device("a")
    return Ingest(home.db)


def said(channel: str, message: Any, *, device: str = "a", retained: bool = False) -> Message:
    payload = message if isinstance(message, bytes) else to_json(message)
    return Message(wire.topic(device, channel), payload, retained)


def presence(online: bool, boot: str, *, retained: bool = False) -> Message:
    return said(wire.PRESENCE, wire.Presence(online=online, boot=boot), retained=retained)


def window(seq: int, boot: str = "b") -> wire.Telemetry:
    return wire.Telemetry(boot, seq, "", 10.0, 1, {"edgekit_requests_total": 1.0})


def device(home: Home) -> Any:
    with home.db.read() as connection:
        return connection.execute(select(devices)).one()


@pytest.mark.parametrize(
    ("messages", "online"),
    [
        ([presence(True, "1")], True),
        ([presence(True, "1"), presence(False, "1")], False),
        # Its agent was restarted; the will of the start before comes late.
        ([presence(True, "1"), presence(True, "2"), presence(False, "1")], True),
        # The broker's memory tells of a start that we know to have ended.
        ([presence(True, "1"), presence(False, "1"), presence(True, "1", retained=True)], False),
        # ... and of one that began while we were away.
        ([presence(True, "2", retained=True)], True),
        ([presence(True, "1"), presence(False, "1", retained=True)], False),
        ([presence(False, "unknown")], False),
        # The same start again, after its connection broke.
        ([presence(True, "1"), presence(False, "1"), presence(True, "1")], True),
    ],
)
def test_presence_goes_by_boot(home: Home, ingest: Ingest, messages: list[Message], online: bool) -> None:
    for message in messages:
        ingest.apply([message])
    assert device(home).online is online


def test_a_batch_with_bad_neighbours_keeps_the_good_ones(home: Home, ingest: Ingest) -> None:
    replies = ingest.apply(
        [
            said(wire.TELEMETRY, window(1)),
            said(wire.TELEMETRY, b"nonsense"),
            said(wire.TELEMETRY, window(2)),
            said(wire.TELEMETRY, window(1)),
            said(wire.TELEMETRY, window(3), device="stranger"),
            said(wire.DESIRED, window(3)),
            Message("ek/v1/other/a/telemetry", to_json(window(4))),
            Message("somewhere/else", b""),
        ]
    )
    assert [reply.message.seq for reply in replies] == [1, 2, 1]
    assert {reply.topic for reply in replies} == {wire.topic("a", wire.TELEMETRY_ACK)}
    with home.db.read() as connection:
        assert connection.scalars(select(telemetry.c.seq).order_by(telemetry.c.seq)).all() == [1, 2]
    assert ingest.counts.dropped == {"malformed": 4, "unknown": 1}
    assert (ingest.counts.windows, ingest.counts.duplicates) == (2, 1)


def test_noise_does_not_fill_the_audit_log(home: Home, ingest: Ingest) -> None:
    for _ in range(20):
        ingest.apply([said(wire.TELEMETRY, b"noise")] * 5)
    with home.db.read() as connection:
        actions = connection.scalars(select(audit.c.action)).all()
    assert actions.count("message.dropped") == 1
    assert ingest.counts.dropped["malformed"] == 100


def test_a_revoked_device_is_not_heard(home: Home, ingest: Ingest) -> None:
    fleet_devices.revoke(home.db, "a", "test")
    assert ingest.apply([presence(True, "1"), said(wire.TELEMETRY, window(1))]) == []
    assert not device(home).online
    assert ingest.counts.dropped == {"revoked": 2}


def test_job_updates_count_once_and_only_for_the_devices_own_jobs(home: Home, ingest: Ingest) -> None:
    home.device("b")
    now = time.time()
    with home.db.write() as connection:
        release = {
            "digest": "d", "name": "n", "version": "1", "file_sha256": "", "size_bytes": 1, "path": "p",
            "signer": "s", "variants": [], "created_at": now,
        }  # fmt: skip
        connection.execute(insert(releases), release)
        rollout = {"digest": "d", "strategy": {}, "state": "RUNNING", "created_at": now, "updated_at": now}
        connection.execute(insert(rollouts), {"id": 1, **rollout})
        for name in ("a", "b"):
            row = {"id": f"job-{name}", "device": name, "kind": "deploy", "digest": "d", "state": "QUEUED"}
            times = {"notified_at": now, "created_at": now, "updated_at": now}
            connection.execute(insert(jobs), {"rollout": 1, "position": 0, **row, **times})
    done = wire.JobUpdate("job-a", 1, wire.JobState.SUCCEEDED)
    forged = wire.JobUpdate("job-b", 2, wire.JobState.SUCCEEDED)
    replies = ingest.apply([said(wire.JOB_UPDATE, m) for m in (done, done, forged)])
    assert [reply.message for reply in replies] == [wire.JobAck(1), wire.JobAck(1), wire.JobAck(2)]
    with home.db.read() as connection:
        states = {row.id: row.state for row in connection.execute(select(jobs.c.id, jobs.c.state))}
        assert len(connection.execute(select(job_updates)).all()) == 2
    assert states == {"job-a": "SUCCEEDED", "job-b": "QUEUED"}


def report(version: int, boot: str, release: str) -> Message:
    fixed: dict[str, Any] = {"isa": (), "engines": {}, "emulated": True, "architecture": "aarch64"}
    return said(
        wire.REPORTED, wire.Reported(version, boot, "1", "jetson", release=release, counter=version, **fixed)
    )


def test_reports_go_by_version_within_one_start(home: Home, ingest: Ingest) -> None:
    ingest.apply([report(5, "x", "kws:5"), report(4, "x", "kws:4"), report(5, "x", "kws:6")])
    assert (device(home).release, device(home).reported_version) == ("kws:5", 5)
    ingest.apply([report(1, "y", "kws:1")])
    row = device(home)
    assert (row.release, row.reported_counter, row.emulated) == ("kws:1", 1, True)
    assert row.architecture == "aarch64" and row.reported["boot"] == "y"


@pytest.mark.parametrize("text", ["\\ud800", "\\udfff x"])
def test_half_a_surrogate_pair_is_malformed(home: Home, ingest: Ingest, text: str) -> None:
    payload = to_json(window(1)).replace(b'"start":""', f'"start":"{text}"'.encode())
    assert ingest.apply([said(wire.TELEMETRY, payload), said(wire.TELEMETRY, window(2))])[0].message.seq == 2
    assert ingest.counts.dropped == {"malformed": 1}


def test_absent_devices_are_forgotten(home: Home, ingest: Ingest) -> None:
    home.device("b")
    ingest.apply([presence(True, "1"), said(wire.PRESENCE, wire.Presence(True, "1"), device="b")])
    with home.db.write() as connection:
        connection.execute(update(devices).where(devices.c.id == "b").values(last_seen=100.0))
    assert forget_absent(home.db, 200.0) == 1
    with home.db.read() as connection:
        assert connection.scalars(select(devices.c.id).where(devices.c.online)).all() == ["a"]


CHANNELS = (wire.PRESENCE, wire.REPORTED, wire.TELEMETRY, wire.JOB_UPDATE)
FIELDS = ("online", "boot", "seq", "version", "state", "job", "values", "start", "window_s", "windows", "isa",
          "classes", "latency_buckets", "engines", "release", "counter")  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=5),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    channel=st.sampled_from(CHANNELS),
    base=st.sampled_from([to_json(window(1)), b'{"online":true}', b'{"job":"j","seq":1,"state":"FAILED"}']),
    changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3),
    raw=st.none() | st.binary(max_size=60),
)
def test_no_message_breaks_the_ingester(
    home: Home, ingest: Ingest, channel: str, base: bytes, changes: dict[str, Any], raw: bytes | None
) -> None:
    payload = raw if raw is not None else json.dumps({**json.loads(base), **changes}).encode()
    ingest.apply([said(channel, payload), said(wire.TELEMETRY, window(1, "good"))])
    with home.db.read() as connection:
        assert connection.scalar(select(telemetry.c.seq).where(telemetry.c.boot == "good")) == 1
