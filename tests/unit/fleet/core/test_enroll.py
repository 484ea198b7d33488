"""Tokens and enrolment at the level of the database."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import select

from edgekit.crypto.x509 import common_name, serial_number
from edgekit.errors import AuthError, EdgekitError, InputError
from edgekit_fleet import devices as fleet_devices
from edgekit_fleet import enroll
from edgekit_fleet.auth import Forbidden
from edgekit_fleet.db import devices, insert_new, job_updates, revoked, tokens
from tests.unit.fleet.core.conftest import ADDRESS, Home


def test_only_the_hash_of_a_token_is_stored(home: Home) -> None:
    token = home.token(device="a")
    with home.db.read() as connection:
        row = connection.execute(select(tokens)).one()
    assert not any(str(value) in token for value in (row.hash,))
    assert row.hash == enroll._hash(enroll._secret(token))


def test_one_token_for_many_at_once_makes_one_device(home: Home) -> None:
    token = home.token()
    requests = [home.request(token, f"d{number}") for number in range(8)]
    outcomes: list[str] = []

    def work(number: int) -> None:
        try:
            outcomes.append(home.enroll(requests[number])[0].device)
        except AuthError as exc:
            outcomes.append(type(exc).__name__)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[:7] == ["AuthError"] * 7
    with home.db.read() as connection:
        assert connection.scalars(select(devices.c.id)).all() == [max(outcomes)]


def test_the_certificate_names_the_device_whatever_the_request_says(home: Home) -> None:
    answer = home.device("edge-1")
    pem = answer.certificate_pem.encode()
    assert common_name(pem) == "edge-1"
    with home.db.read() as connection:
        assert fleet_devices.may_connect(connection, "edge-1", f"{serial_number(pem):x}")
        assert not fleet_devices.may_connect(connection, "edge-1", "1")
        assert not fleet_devices.may_connect(connection, "edge-2", f"{serial_number(pem):x}")


def test_without_a_trusted_builder_nothing_is_used_up(home: Home) -> None:
    request = home.request(home.token(device="a"), "a")
    with pytest.raises(enroll.NotReady, match="trusts no builder"):
        enroll.enroll(home.db, home.keys, ADDRESS, [], request)
    assert len(home.enroll(request)[0].builder_keys_pem) == 1


def test_somebody_must_name_the_device(home: Home) -> None:
    token = home.token()
    with pytest.raises(InputError, match="names the device"):
        home.enroll(home.request(token, ""))
    assert home.enroll(home.request(token, "a"))[0].device == "a"


def test_what_the_token_prescribes_wins(home: Home) -> None:
    token = home.token(device="a", profile="jetson", tags={"site": "lab"})
    with pytest.raises(Forbidden, match="profile 'jetson'"):
        home.enroll(home.request(token, "a", "raspberry-pi-5"))
    home.enroll(home.request(token, "", ""))
    with home.db.read() as connection:
        row = connection.execute(select(devices)).one()
    assert (row.id, row.profile, row.tags) == ("a", "jetson", {"site": "lab"})


def test_a_replaced_device_loses_its_old_certificate_but_not_its_counter(home: Home) -> None:
    old = home.device("a")
    with home.db.write() as connection:
        connection.execute(devices.update().values(counter=7, reported_version=9, boot="x"))
        row = {"device": "a", "seq": 1, "job": "j", "state": "QUEUED", "received_at": 1.0}
        insert_new(connection, job_updates, [row])
    _, replaced = home.enroll(home.request(home.token(device="a"), "a"))
    assert replaced
    serial = f"{serial_number(old.certificate_pem.encode()):x}"
    with home.db.read() as connection:
        known = connection.execute(select(devices)).one()
        assert (known.counter, known.reported_version, known.boot) == (7, 0, "")
        assert connection.scalars(select(revoked.c.serial)).all() == [serial]
        assert connection.execute(select(job_updates)).all() == []
        assert not fleet_devices.may_connect(connection, "a", serial)


@pytest.mark.parametrize(
    "wanted",
    [
        {"device": "fleet"},
        {"device": "a b"},
        {"device": "#"},
        {"ttl_s": 0.0},
        {"ttl_s": -1.0},
        {"ttl_s": float("inf")},
        {"ttl_s": float("nan")},
        {"tags": {"": "x"}},
        {"tags": {"a": "x" * 300}},
        {"tags": {"a": "line\nbreak"}},
        {"tags": {f"t{n}": "" for n in range(65)}},
        {"profile": "p" * 65},
    ],
)
def test_bad_token_requests_are_refused(home: Home, wanted: dict[str, object]) -> None:
    with pytest.raises(InputError):
        home.token(**wanted)


@pytest.mark.parametrize(
    "token", ["", "ek1.", "ek1.!!!!", "ek1.e30", "ek1.W10", "ek1.eyJzZWNyZXQiOm51bGx9", "ü"]
)
def test_unreadable_tokens_are_refused(home: Home, token: str) -> None:
    with pytest.raises(AuthError):
        home.enroll(home.request(token, "a"))


@pytest.mark.parametrize("field", ["csr_pem", "sealing_key_pem"])
@pytest.mark.parametrize("value", ["", "nonsense", "-----BEGIN PUBLIC KEY-----\n", "x" * 20_000, "\x00"])
def test_bad_keys_leave_the_token_usable(home: Home, field: str, value: str) -> None:
    good = home.request(home.token(device="a"), "a")
    with pytest.raises(EdgekitError):
        home.enroll(replace(good, **{field: value}))
    assert home.enroll(good)[0].device == "a"


def test_the_revocation_list_grows_in_number_and_names_serials(home: Home) -> None:
    answer = home.device("a")
    first = fleet_devices.revocation_list(home.db, home.keys)
    fleet_devices.revoke(home.db, "a", "test")
    second = fleet_devices.revocation_list(home.db, home.keys)
    assert first != second
    with home.db.read() as connection:
        listed = connection.scalars(select(revoked.c.serial)).all()
    assert listed == [f"{serial_number(answer.certificate_pem.encode()):x}"]
