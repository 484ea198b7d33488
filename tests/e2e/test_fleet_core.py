"""The fleet's core against a real mosquitto, real TLS and devices made of bare paho."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import sqlite3
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from edgekit import wire
from edgekit.codec import from_json
from edgekit.crypto import dsse, sealing
from edgekit.crypto.keys import SealingKey, SigningKey, VerifyKey
from edgekit.crypto.x509 import CertificateAuthority, make_csr, new_device_key
from edgekit.errors import DecryptError
from tests.e2e.raw_device import RawDevice, make_token, post_enroll, secret_of
from tests.support.bundles import Keys, tiny_bundle
from tests.support.lab import Lab
from tests.support.lab import lab as make_lab

pytestmark = pytest.mark.xdist_group("fleet-core")


@pytest.fixture(scope="module")
def signer() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, signer: SigningKey) -> Iterator[Lab]:
    with make_lab(tmp_path_factory.mktemp("fleet-core")) as made:
        builder = made.folder / "builder.pub"
        builder.write_bytes(signer.public().to_pem())
        made.trust(builder)
        made.up()
        yield made


@pytest.fixture(scope="module")
def alice(lab: Lab) -> RawDevice:
    return RawDevice(lab, "alice")


@pytest.fixture(scope="module")
def bob(lab: Lab) -> RawDevice:
    return RawDevice(lab, "bob")


@pytest.fixture(scope="module")
def release(lab: Lab, signer: SigningKey) -> dict[str, Any]:
    """A published bundle, encrypted to this fleet."""
    keys = Keys(signer, SealingKey.load(lab.state / "keys" / "recipient.pem"))
    path, _ = tiny_bundle(lab.folder, keys=keys)
    status, answer = lab.api("POST", "/v1/releases", raw=path.read_bytes())
    assert status == 201, answer
    return {**answer, "bytes": path.read_bytes()}


def telemetry(seq: int, boot: str = "b1", **values: float) -> wire.Telemetry:
    return wire.Telemetry(
        boot, seq, "2026-01-01T00:00:00Z", 10.0, 1, values or {"edgekit_requests_total": 3.0}
    )


def metric(lab: Lab, name: str) -> float:
    lines = lab.get("/metrics").splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def broker_pid(lab: Lab) -> int:
    return int((lab.state / "broker" / "mosquitto.pid").read_text())


# -- enrolment --------------------------------------------------------------------------------


def body(lab: Lab, token: str, device: str) -> dict[str, Any]:
    return {
        "token": token,
        "csr_pem": make_csr(new_device_key(), "anything").decode(),
        "sealing_key_pem": SealingKey.generate().public().to_pem().decode(),
        "device": device,
        "profile": "generic-cpu",
    }


def test_token_carries_the_pin_and_is_good_once(lab: Lab) -> None:
    token = make_token(lab, device="once")
    carried = secret_of(token)
    ca = CertificateAuthority.load(lab.state / "ca")
    assert carried["ca_sha256"] == ca.pin
    assert lab.api("GET", "/v1/ca")[1] == ca.certificate_pem.decode()
    status, first = post_enroll(lab, body(lab, carried["secret"], "once"))
    assert status == 201
    assert first["device"] == "once" and first["tenant"] == wire.TENANT
    status, second = post_enroll(lab, body(lab, token, "once"))
    assert status == 401
    assert "used already" in second["error"] and second["hint"]


def test_expired_unknown_and_foreign_tokens_are_refused(lab: Lab) -> None:
    token = make_token(lab, device="late", ttl_s=0.05)
    time.sleep(0.1)
    status, answer = post_enroll(lab, body(lab, token, "late"))
    assert status == 401 and "expired" in answer["error"]
    status, answer = post_enroll(lab, body(lab, "nonsense", "late"))
    assert status == 401 and "unknown" in answer["error"]
    token = make_token(lab, device="late")
    status, answer = post_enroll(lab, body(lab, token, "early"))
    assert status == 403 and "'late'" in answer["error"]
    # A refusal for another reason leaves the token usable.
    status, answer = post_enroll(lab, {**body(lab, token, "late"), "csr_pem": "nonsense"})
    assert status == 400
    assert post_enroll(lab, body(lab, token, "late"))[0] == 201


@pytest.mark.parametrize("device", ["fleet", "Fleet", "a/b", "+", "", "x" * 80, "../up"])
def test_bad_device_ids_are_refused(lab: Lab, device: str) -> None:
    status, answer = post_enroll(lab, body(lab, make_token(lab), device))
    assert status == 400, answer


def test_an_open_token_cannot_replace_a_device(lab: Lab, alice: RawDevice) -> None:
    status, answer = post_enroll(lab, body(lab, make_token(lab), "alice"))
    assert status == 403 and "enrolled already" in answer["error"]


# -- access to the broker ---------------------------------------------------------------------


def test_presence_telemetry_and_acknowledgement(lab: Lab, alice: RawDevice) -> None:
    link = alice.connect()
    link.subscribe(wire.topic("alice", wire.TELEMETRY_ACK))
    link.online()
    lab.wait(lambda: lab.devices()["alice"]["online"], "alice online")
    link.say(wire.TELEMETRY, telemetry(1))
    link.say(wire.TELEMETRY, telemetry(1))  # the same again, as after a lost acknowledgement
    link.until(lambda: len(link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)) >= 2, "both acks")
    stored = lab.get("/v1/telemetry?device=alice")["telemetry"]
    assert [(row["boot"], row["seq"]) for row in stored] == [("b1", 1)]
    link.drop()
    lab.wait(lambda: not lab.devices()["alice"]["online"], "the last will")


def test_a_late_will_of_an_earlier_start_changes_nothing(lab: Lab, alice: RawDevice) -> None:
    link = alice.connect(boot="b2")
    link.online()
    lab.wait(lambda: lab.devices()["alice"]["online"], "alice online")
    before = metric(lab, 'edgekit_fleet_messages_total{channel="presence"}')
    link.say(wire.PRESENCE, wire.Presence(online=False, boot="b1"))
    lab.wait(
        lambda: metric(lab, 'edgekit_fleet_messages_total{channel="presence"}') > before, "the late will"
    )
    assert lab.devices()["alice"]["online"]
    link.close()


def test_a_device_cannot_speak_as_another(lab: Lab, alice: RawDevice, bob: RawDevice) -> None:
    link = alice.connect(boot="b3")
    for channel, message in (
        (wire.TELEMETRY, telemetry(77)),
        (wire.PRESENCE, wire.Presence(online=True, boot="evil")),
        (wire.JOB_UPDATE, wire.JobUpdate("j", 1, wire.JobState.SUCCEEDED)),
    ):
        link.say(channel, message, to="bob")
    link.subscribe(wire.topic("alice", wire.TELEMETRY_ACK))
    link.say(wire.TELEMETRY, telemetry(1, "b3"))
    link.until(lambda: bool(link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "a message of its own")
    assert lab.get("/v1/telemetry?device=bob")["telemetry"] == []
    assert not lab.devices()["bob"]["online"]
    link.close()


@pytest.mark.parametrize("channel", [wire.DESIRED, wire.JOB_NOTIFY, wire.JOB_ACK, wire.TELEMETRY_ACK])
@pytest.mark.parametrize("to", ["alice", "bob"])
def test_a_device_cannot_write_orders(
    lab: Lab, alice: RawDevice, bob: RawDevice, channel: str, to: str
) -> None:
    """Neither its own nor another's."""
    victim = {"alice": alice, "bob": bob}[to]
    attacker = alice.connect(boot="b4", will=False)
    listener = attacker if to == "alice" else victim.connect(boot="b4", will=False)
    listener.subscribe(wire.topic(to, channel))
    attacker.say(channel, wire.JobNotify("forged"), to=to, retain=True)
    # The broker handles a client's packets in order: once this is answered, the forgery was handled.
    attacker.subscribe(wire.topic("alice", wire.TELEMETRY_ACK), wire.topic("alice", channel))
    attacker.until(attacker.connected.is_set, "a connection")
    attacker.say(wire.TELEMETRY, telemetry(int(time.time() * 1000)))
    attacker.until(lambda: bool(attacker.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "the ack")
    assert not [payload for _, payload in listener.messages if b"forged" in payload]
    for link in {attacker, listener}:
        link.close()


def test_a_device_hears_nothing_of_another(lab: Lab, alice: RawDevice, bob: RawDevice) -> None:
    spy = alice.connect(boot="b5", will=False)
    spy.subscribe("#", "ek/v1/#", "ek/v1/default/bob/#", "ek/v1/+/+/telemetry", "$SYS/#", "$share/g/ek/v1/#")
    talker = bob.connect(boot="b5", will=False)
    talker.subscribe(wire.topic("bob", wire.TELEMETRY_ACK))
    talker.say(wire.TELEMETRY, telemetry(1, "spied"))
    talker.until(lambda: bool(talker.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "bob's ack")
    spy.subscribe(wire.topic("alice", wire.TELEMETRY_ACK))
    spy.say(wire.TELEMETRY, telemetry(1, "spy"))
    spy.until(lambda: bool(spy.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "alice's ack")
    assert {topic for topic, _ in spy.messages} <= {
        wire.topic("alice", channel)
        for channel in (wire.DESIRED, wire.JOB_NOTIFY, wire.JOB_ACK, wire.TELEMETRY_ACK)
    }
    spy.close()
    talker.close()


def test_a_session_cannot_be_taken_over(lab: Lab, alice: RawDevice, bob: RawDevice) -> None:
    """The client id is the certificate's name, whatever the client asks for."""
    victim = bob.connect(boot="b6", will=False)
    attacker = alice.connect(boot="b6", will=False, client_id="bob")
    attacker.subscribe(wire.topic("alice", wire.TELEMETRY_ACK))
    attacker.say(wire.TELEMETRY, telemetry(1, "takeover"))
    attacker.until(lambda: bool(attacker.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "alice's ack")
    assert not victim.ended.is_set()
    attacker.close()
    victim.close()


def handshake_fails(lab: Lab, port: int, context: ssl.SSLContext) -> bool:
    """Whether the server ends a TLS connection that sends one MQTT or HTTP byte sequence."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=10)
    try:
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
            tls.settimeout(10)
            # TLS 1.3 tells a client that its certificate is missing only after its first read.
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return tls.recv(1) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def test_certificates_are_required(lab: Lab, alice: RawDevice, tmp_path: Path) -> None:
    """Broker and device listener: none, self-signed, of another CA, and a server's are refused."""
    info = json.loads((lab.state / "fleet.json").read_text())
    ca = lab.state / "ca" / "ca.pem"
    contexts = {"none": ssl.create_default_context(cafile=str(ca))}
    other = CertificateAuthority.create("another CA")
    key = new_device_key()
    (tmp_path / "k.pem").write_bytes(key)
    (tmp_path / "c.pem").write_bytes(other.sign_csr(make_csr(key, "alice"), "alice"))
    server_key, server = CertificateAuthority.load(lab.state / "ca").issue_server(["alice"])
    (tmp_path / "sk.pem").write_bytes(server_key)
    (tmp_path / "s.pem").write_bytes(server)
    for name, pair in {"foreign": ("c.pem", "k.pem"), "server": ("s.pem", "sk.pem")}.items():
        contexts[name] = ssl.create_default_context(cafile=str(ca))
        contexts[name].load_cert_chain(tmp_path / pair[0], tmp_path / pair[1])
    ports = {"broker": info["mqtt_port"], "device": urlsplit(info["device_url"]).port}
    for where, port in ports.items():
        for name, context in contexts.items():
            assert handshake_fails(lab, int(port or 0), context), f"{where} accepts {name}"
    assert not handshake_fails(lab, int(ports["device"] or 0), alice.tls())


# -- messages ---------------------------------------------------------------------------------


def test_malformed_messages_are_counted_audited_and_dropped(lab: Lab, bob: RawDevice) -> None:
    link = bob.connect(boot="m", will=False)
    before = metric(lab, "edgekit_fleet_messages_dropped_total")
    bad: list[tuple[str, bytes]] = [
        (wire.TELEMETRY, b"\xff\xfe"),
        (wire.TELEMETRY, b"[" * 5000),
        (wire.TELEMETRY, b'{"boot":"m","seq":1,"start":"","window_s":1e999,"windows":1}'),
        (wire.TELEMETRY, json.dumps({**telemetry(1).__dict__, "seq": 10**30}).encode()),
        (wire.TELEMETRY, json.dumps({**telemetry(1).__dict__, "boot": "x" * 1000}).encode()),
        (wire.REPORTED, b'{"version":1}'),
        (wire.JOB_UPDATE, b'{"job":"x","seq":1,"state":"NONSENSE"}'),
        (wire.PRESENCE, b'"online"'),
    ]
    for channel, payload in bad:
        link.say(channel, payload)
    link.subscribe(wire.topic("bob", wire.TELEMETRY_ACK))
    link.say(wire.TELEMETRY, telemetry(2, "m"))
    link.until(lambda: bool(link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "a good one after them")
    assert metric(lab, "edgekit_fleet_messages_dropped_total") == before + len(bad)
    entries = lab.get("/v1/audit")["entries"]
    dropped = {
        e["subject"] for e in entries if e["action"] == "message.dropped" and e["actor"] == "device:bob"
    }
    assert dropped == {wire.topic("bob", channel) for channel, _ in bad}
    link.close()


def reported(version: int, **changes: Any) -> wire.Reported:
    values: dict[str, Any] = {
        "boot": "b", "agent_version": "0.1", "profile": "generic-cpu", "emulated": False,
        "architecture": "x86_64", "isa": ("avx2",), "engines": {"reference": "1.0"},
    }  # fmt: skip
    return wire.Reported(version, **{**values, **changes})


def test_reported_state_is_kept_by_version(lab: Lab, bob: RawDevice) -> None:
    link = bob.connect(boot="r", will=False)
    link.subscribe(wire.topic("bob", wire.TELEMETRY_ACK))
    link.say(wire.REPORTED, reported(2, release="kws:2", variant="v", counter=4), retain=True)
    link.say(wire.REPORTED, reported(1, release="kws:1"), retain=True)
    link.say(wire.TELEMETRY, telemetry(1, "r"))
    link.until(lambda: bool(link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)), "the ack")
    device = lab.devices()["bob"]
    assert (device["release"], device["variant"], device["reported_counter"]) == ("kws:2", "v", 4)
    assert device["engines"] == {"reference": "1.0"}
    link.close()


# -- releases and assignments -----------------------------------------------------------------


def test_publishing_is_idempotent_and_strict(lab: Lab, release: dict[str, Any]) -> None:
    status, again = lab.api("POST", "/v1/releases", raw=release["bytes"])
    assert status == 200 and again["digest"] == release["digest"]
    assert len(lab.get("/v1/releases")["releases"]) == 1
    data = release["bytes"]
    edited = data[:-3000] + bytes([data[-3000] ^ 1]) + data[-2999:]
    for broken in (b"", b"not a bundle", data[: len(data) // 2], edited, data + b"x"):
        status, answer = lab.api("POST", "/v1/releases", raw=broken)
        assert status == 400 and answer["error"], answer
    assert len(lab.get("/v1/releases")["releases"]) == 1
    assert [p.name for p in (lab.state / "releases").iterdir()] == [release["digest"][7:] + ".edgekit"]


def test_bundles_of_strangers_and_for_strangers_are_refused(lab: Lab, release: dict[str, Any]) -> None:
    (lab.folder / "other").mkdir()
    path, _ = tiny_bundle(lab.folder / "other")
    status, answer = lab.api("POST", "/v1/releases", raw=path.read_bytes())
    assert status == 400 and "trusted" in answer["error"]
    (lab.folder / "lost").mkdir()
    keys = Keys()  # a builder that we trust, who sealed to somebody else
    path, _ = tiny_bundle(lab.folder / "lost", keys=keys)
    status, _ = lab.api("POST", "/v1/trusted", {"pem": keys.signer.public().to_pem().decode()})
    assert status == 201
    status, answer = lab.api("POST", "/v1/releases", raw=path.read_bytes())
    assert status == 400 and "recipient" in answer["hint"], answer


def test_a_rollout_reaches_a_device_that_can_open_it(
    lab: Lab, alice: RawDevice, bob: RawDevice, release: dict[str, Any]
) -> None:
    """From POST /v1/rollouts to the content key in the device's hands, and its report back."""
    assert alice.get(f"/v1/bundles/{release['digest']}")[0] == 403, "nobody assigned it yet"
    link = alice.connect(boot="roll")
    link.subscribe(*(wire.topic("alice", c) for c in (wire.JOB_NOTIFY, wire.DESIRED, wire.JOB_ACK)))
    link.online()
    phase = {"name": "all", "size": "rest", "deadline_s": 60}
    asked = {"release": "tiny:1.0.0", "query": 'id == "alice"', "strategy": {"phases": [phase]}}
    status, made = lab.api("POST", "/v1/rollouts", asked)
    assert status == 201, made
    link.until(lambda: bool(link.received(wire.JOB_NOTIFY, wire.JobNotify)), "the job")
    notify = link.received(wire.JOB_NOTIFY, wire.JobNotify)[0]
    key = VerifyKey.from_pem(alice.answer["assignment_key_pem"].encode())
    payload = dsse.verify(notify.assignment.encode(), wire.ASSIGNMENT_TYPE, [key])
    assignment = from_json(wire.Assignment, payload, what="assignment")
    assert (assignment.device, assignment.counter, assignment.job) == ("alice", 1, notify.job)
    # The key opens for alice, for this bundle, and for nobody else.
    info = sealing.assignment_info(wire.TENANT, "alice", release["digest"])
    sealed = base64.b64decode(assignment.sealed_key)
    assert len(sealing.unseal(sealed, alice.sealing, info)) == 32
    with pytest.raises(DecryptError):
        sealing.unseal(sealed, bob.sealing, info)
    status, data = alice.get(assignment.url_path)
    assert status == 200 and data == release["bytes"] and len(data) == assignment.bundle_size_bytes
    status, part = alice.get(assignment.url_path, {"Range": "bytes=100-199"})
    assert status == 206 and part == release["bytes"][100:200]
    assert alice.get(assignment.url_path, {"Range": f"bytes={len(data)}-"})[0] == 416
    assert bob.get(assignment.url_path)[0] == 403
    assert alice.get("/v1/bundles/sha256:" + "0" * 64)[0] == 404
    assert alice.get("/v1/devices")[0] == 404, "the admin API is not on this listener"
    for _ in range(2):  # said twice, counted once
        link.say(wire.JOB_UPDATE, wire.JobUpdate(notify.job, 1, wire.JobState.IN_PROGRESS, "DOWNLOAD"))
    link.say(wire.JOB_UPDATE, wire.JobUpdate(notify.job, 2, wire.JobState.SUCCEEDED))
    link.until(lambda: {a.seq for a in link.received(wire.JOB_ACK, wire.JobAck)} == {1, 2}, "both acks")
    lab.wait(lambda: lab.get(f"/v1/rollouts/{made['id']}")["state"] == "FINISHED", "the rollout's end")
    link.close()


# -- kill -9 ----------------------------------------------------------------------------------


@pytest.mark.faults
def test_the_broker_is_killed_and_nothing_acknowledged_is_lost(lab: Lab, bob: RawDevice) -> None:
    link = bob.connect(boot="kill", will=False)
    link.subscribe(wire.topic("bob", wire.TELEMETRY_ACK))
    sent = 0
    for _ in range(3):
        for _ in range(40):
            sent += 1
            link.say(wire.TELEMETRY, telemetry(sent, "kill"))
        pid, connects = broker_pid(lab), link.connects
        os.kill(pid, signal.SIGKILL)
        lab.wait(lambda before=pid: broker_pid(lab) != before, "a new broker")  # type: ignore[misc]
        link.until(lambda before=connects: link.connects > before, "the reconnection")  # type: ignore[misc]
    lab.wait(lambda: lab.answers("/healthz"), "the worker's reconnection")
    acked = {ack.seq for ack in link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)}
    stored = lab.get("/v1/telemetry?device=bob&limit=1000")["telemetry"]
    assert acked <= {row["seq"] for row in stored if row["boot"] == "kill"}
    # What was not acknowledged the device says again; then all of it is there, once.
    link.subscribe(wire.topic("bob", wire.TELEMETRY_ACK))

    def all_acked() -> bool:
        done = {ack.seq for ack in link.received(wire.TELEMETRY_ACK, wire.TelemetryAck)}
        for seq in sorted(set(range(1, sent + 1)) - done):
            link.say(wire.TELEMETRY, telemetry(seq, "kill"))
        time.sleep(0.3)
        return done == set(range(1, sent + 1))

    link.until(all_acked, "every acknowledgement", 60)
    stored = lab.get("/v1/telemetry?device=bob&limit=1000")["telemetry"]
    seqs = sorted(row["seq"] for row in stored if row["boot"] == "kill")
    assert seqs == list(range(1, sent + 1))
    assert metric(lab, "edgekit_fleet_broker_restarts_total") >= 3
    link.close()


@pytest.mark.faults
def test_the_fleet_is_killed_and_comes_back(lab: Lab, bob: RawDevice, release: dict[str, Any]) -> None:
    """Same ports, same keys; an order given right before the kill arrives, reports sent meanwhile count."""
    link = bob.connect(boot="again")
    channels = [wire.topic("bob", c) for c in (wire.JOB_NOTIFY, wire.DESIRED, wire.JOB_ACK)]
    link.subscribe(*channels)
    link.online()
    phase = {"name": "all", "size": "rest", "deadline_s": 120}
    asked = {"release": "tiny", "query": 'id == "bob"', "strategy": {"phases": [phase]}}
    status, made = lab.api("POST", "/v1/rollouts", asked)
    assert status == 201, made
    pid = broker_pid(lab)
    lab.fleet.kill()
    lab.wait(lambda: not alive(pid), "the broker's end with its parent")
    lab.up()
    assert broker_pid(lab) != pid
    # As the agent does after every connect: a broker killed within a second of it forgets a subscription.
    link.until(lambda: link.connects > 1 and link.connected.is_set(), "the second connection")
    link.subscribe(*channels)

    def orders() -> set[str]:
        """By either way: what the broker forgot of the notification, the retained desired state tells."""
        desired = [message.notify for message in link.received(wire.DESIRED, wire.Desired)]
        return {one.job for one in (*link.received(wire.JOB_NOTIFY, wire.JobNotify), *desired)}

    link.until(lambda: bool(orders()), "the order")
    jobs = orders()
    assert len(jobs) == 1, "sent again perhaps, but the same job"
    link.say(wire.JOB_UPDATE, wire.JobUpdate(jobs.pop(), 1, wire.JobState.SUCCEEDED))
    lab.wait(lambda: lab.get(f"/v1/rollouts/{made['id']}")["state"] == "FINISHED", "the rollout's end")
    assert lab.run("edgekit-fleet", "audit", "verify", "--state", lab.state).returncode == 0
    link.close()


def test_a_broker_without_memory_is_told_again(lab: Lab, release: dict[str, Any]) -> None:
    """An order for a device that is away survives the loss of the broker's persistence file."""
    erin = RawDevice(lab, "erin")
    phase = {"name": "all", "size": "rest", "deadline_s": 600}
    asked = {"release": "tiny", "query": 'id == "erin"', "strategy": {"phases": [phase]}}
    status, made = lab.api("POST", "/v1/rollouts", asked)
    assert status == 201, made
    lab.wait(lambda: metric(lab, "edgekit_fleet_outbox") == 0, "the outbox")
    lab.fleet.stop()
    assert lab.fleet.child is not None and lab.fleet.child.returncode == 0
    assert not (lab.state / "fleet.json").exists()
    with sqlite3.connect(lab.state / "fleet.db") as database:  # as if it had been sent long ago
        database.execute("DELETE FROM outbox")
    database.close()
    (lab.state / "broker" / "retained.db").unlink()
    lab.up()
    link = erin.connect()
    link.subscribe(wire.topic("erin", wire.DESIRED))
    link.until(lambda: bool(link.received(wire.DESIRED, wire.Desired)), "the order")
    assert link.received(wire.DESIRED, wire.Desired)[-1].notify.assignment
    assert lab.api("POST", f"/v1/rollouts/{made['id']}/abort")[0] == 200
    link.close()


def test_events_are_streamed_and_continued(lab: Lab, alice: RawDevice) -> None:
    url = urlsplit(json.loads((lab.state / "fleet.json").read_text())["url"])
    context = ssl.create_default_context(cafile=str(lab.state / "ca" / "ca.pem"))
    headers = {"Authorization": f"Bearer {(lab.state / 'admin.token').read_text().strip()}"}
    newest = lab.get("/v1/events?follow=0&limit=1")["events"][-1]["id"]
    connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=20)
    connection.request("GET", "/v1/events", headers={**headers, "Last-Event-ID": str(newest)})
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    for value in ("one", "two"):
        assert lab.api("PUT", "/v1/devices/alice/tags", {"site": value})[0] == 200
    seen: list[dict[str, Any]] = []
    while len([item for item in seen if item["text"] == "tags of alice changed"]) < 2:
        line = response.readline()
        assert line, "the stream ended"
        if line.startswith(b"data: "):
            seen.append(json.loads(line[6:]))
    assert [item["id"] for item in seen] == sorted(item["id"] for item in seen)
    assert all(item["id"] > newest for item in seen)
    connection.close()


def alive(pid: int) -> bool:
    """Running; a zombie, which nobody reaps in some containers, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_second_fleet_and_a_busy_port_are_one_line(lab: Lab, tmp_path: Path) -> None:
    done = lab.run("edgekit-fleet", "up", "--state", lab.state, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "used by another" in done.stderr and "hint:" in done.stderr
    info = json.loads((lab.state / "fleet.json").read_text())
    port = str(urlsplit(info["url"]).port)
    done = lab.run("edgekit-fleet", "up", "--state", tmp_path / "new", "--port", port, check=False)
    assert done.returncode == 2
    assert port in done.stderr and "hint:" in done.stderr and "Traceback" not in done.stderr


# -- revocation (last: it ends a device) ------------------------------------------------------


def test_a_revoked_device_is_shut_out_everywhere(lab: Lab, release: dict[str, Any]) -> None:
    carol = RawDevice(lab, "carol")
    link = carol.connect()
    link.online()
    lab.wait(lambda: lab.devices()["carol"]["online"], "carol online")
    other = RawDevice(lab, "dave").connect()
    status, answer = lab.api("POST", "/v1/devices/carol/revoke")
    assert status == 200 and answer["revoked"] and not answer["online"]
    link.until(link.ended.is_set, "the end of its session")
    before = link.connects
    lab.wait(lambda: handshake_fails(lab, carol.answer["broker_port"], carol.tls()), "a refusal")
    time.sleep(1.5)  # it tries once a second
    assert not link.connected.is_set() and link.connects <= before + 1
    assert not other.ended.is_set(), "nobody else is disturbed"
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        assert carol.get("/v1/bundles/" + release["digest"])[0] != 401
        raise ConnectionError("answered 401: refused by its row")
    link.client.loop_stop()
    other.close()
    status, again = lab.api("POST", "/v1/devices/carol/revoke")
    assert status == 200 and again["revoked_at"] == answer["revoked_at"]
    # A token made for it brings it back with another certificate; the old one stays refused.
    old = carol.tls()
    (carol.folder).rename(lab.folder / "old-carol")
    fresh = RawDevice(lab, "carol").connect(boot="new")
    fresh.online()
    lab.wait(lambda: lab.devices()["carol"]["online"], "carol again")
    assert handshake_fails(lab, carol.answer["broker_port"], old)
    fresh.close()
