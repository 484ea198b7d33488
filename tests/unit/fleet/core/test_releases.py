"""Publishing and assigning, with crashes in between."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest
from sqlalchemy import select

from edgekit import bundle
from edgekit.codec import from_json
from edgekit.crypto import dsse
from edgekit.crypto.keys import SigningKey
from edgekit.errors import DecryptError, InputError, SignatureError, SystemFault
from edgekit.wire import ASSIGNMENT_TYPE, Assignment
from edgekit_fleet import config, releases
from edgekit_fleet import devices as fleet_devices
from edgekit_fleet.db import devices
from edgekit_fleet.db import releases as table
from edgekit_fleet.releases import Terms, Upload
from tests.support.bundles import INFO, Keys, tiny_bundle
from tests.unit.fleet.core.conftest import Home

TERMS = Terms(60.0, 5.0, 0.05)


@pytest.fixture
def builder(home: Home) -> Keys:
    keys = Keys(SigningKey.generate(), home.keys.sealing)
    config.trust(home.state, keys.signer.public())
    return keys


def publish(home: Home, path: Path) -> tuple[dict[str, object], bool]:
    upload = Upload(home.state)
    try:
        upload.write(path.read_bytes())
        return releases.publish(home.db, home.keys, home.state, upload, "test")
    finally:
        upload.discard()


def files(home: Home) -> list[str]:
    return sorted(path.name for path in home.state.releases.iterdir())


def test_publishing_after_a_crash_between_file_and_row(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path, keys=builder)
    first, _ = publish(home, path)
    with home.db.write() as connection:
        connection.execute(table.delete())
    again, new = publish(home, path)
    assert new and again["digest"] == first["digest"]
    assert files(home) == [f"{str(first['digest'])[7:]}.edgekit"]


def test_a_lost_file_is_restored_by_publishing_again(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path, keys=builder)
    release, _ = publish(home, path)
    with home.db.read() as connection:
        stored = releases.bundle_path(connection, home.state, str(release["digest"]))
    stored.unlink()
    with home.db.read() as connection, pytest.raises(fleet_devices.Unknown):
        releases.bundle_path(connection, home.state, str(release["digest"]))
    assert not publish(home, path)[1]
    assert stored.read_bytes() == path.read_bytes()


def test_a_version_cannot_get_other_content(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path, keys=builder)
    publish(home, path)
    info = dataclasses.replace(INFO, annotations={"note": "other"})
    other, _ = tiny_bundle(tmp_path, keys=builder, info=info, name="other.edgekit")
    with pytest.raises(releases.Conflict, match="other content"):
        publish(home, other)
    assert len(files(home)) == 1


def test_the_content_key_lies_sealed(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path, keys=builder)
    publish(home, path)
    with home.db.read() as connection:
        row = connection.execute(select(table)).one()
    content_key = bundle.open(path, [builder.signer.public()]).content_key(home.keys.sealing)
    database = home.state.database.read_bytes() + home.state.database.with_name("fleet.db-wal").read_bytes()
    assert row.sealed_key is not None and content_key not in database


def test_strangers_are_refused_and_leave_nothing(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path)
    with pytest.raises(SignatureError):
        publish(home, path)
    sealed_elsewhere, _ = tiny_bundle(tmp_path, keys=Keys(builder.signer))
    with pytest.raises(DecryptError):
        publish(home, sealed_elsewhere)
    assert files(home) == []


def test_a_fleet_that_trusts_nobody_says_so(home: Home, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="trusts no builder yet"):
        publish(home, tiny_bundle(tmp_path)[0])


def test_uploads_are_bounded_and_leftovers_removed(home: Home) -> None:
    upload = Upload(home.state, limit=10)
    upload.write(b"0123456789")
    with pytest.raises(releases.TooLarge):
        upload.write(b"x")
    assert len(files(home)) == 1
    releases.remove_leftovers(home.state)
    assert files(home) == []
    upload.discard()


def test_a_full_disk_is_one_line(home: Home) -> None:
    upload = Upload(home.state)
    upload._file.close()
    with Path("/dev/full").open("wb", buffering=0) as full:
        upload._file = full  # type: ignore[assignment]
        with pytest.raises(SystemFault, match="No space left") as caught:
            upload.write(b"x" * 100)
    assert caught.value.hint and errno.ENOSPC
    upload.discard()
    assert files(home) == []


def assign(home: Home, device: str, digest: str) -> Assignment:
    with home.db.write() as connection:
        counter, envelope = releases.make_assignment(connection, home.keys, device, digest, "job", TERMS)
    payload = dsse.verify(envelope.encode(), ASSIGNMENT_TYPE, [home.keys.assignment.public()])
    assignment = from_json(Assignment, payload, what="assignment")
    assert assignment.counter == counter
    return assignment


def test_counters_grow_per_device_and_only_with_a_commit(home: Home, builder: Keys, tmp_path: Path) -> None:
    digest = str(publish(home, tiny_bundle(tmp_path, keys=builder)[0])[0]["digest"])
    home.device("a")
    home.device("b")
    assert [assign(home, "a", digest).counter for _ in range(3)] == [1, 2, 3]
    assert assign(home, "b", digest).counter == 1
    with pytest.raises(ZeroDivisionError), home.db.write() as connection:
        releases.make_assignment(connection, home.keys, "a", digest, "job", TERMS)
        raise ZeroDivisionError
    assert assign(home, "a", digest).counter == 4


def test_a_plain_bundle_has_no_key(home: Home, builder: Keys, tmp_path: Path) -> None:
    path, _ = tiny_bundle(tmp_path, keys=builder, encrypt=False)
    release, _ = publish(home, path)
    assert release["encrypted"] is False
    home.device("a")
    assert assign(home, "a", str(release["digest"])).sealed_key == ""


def test_a_revoked_device_gets_no_key(home: Home, builder: Keys, tmp_path: Path) -> None:
    digest = str(publish(home, tiny_bundle(tmp_path, keys=builder)[0])[0]["digest"])
    home.device("a")
    fleet_devices.revoke(home.db, "a", "test")
    with pytest.raises(InputError, match="no keys"):
        assign(home, "a", digest)
    with home.db.read() as connection:
        assert connection.scalar(select(devices.c.counter)) == 0
    with pytest.raises(fleet_devices.Unknown):
        assign(home, "a", "sha256:" + "0" * 64)
