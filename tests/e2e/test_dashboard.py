"""A person's and a script's view of a real fleet: command line, dashboard over HTTPS, real broker.

The devices here speak the wire protocol (enrolment, mutual TLS, MQTT 5) and do what the test says;
agents that serve models have tests of their own.
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgekit import codec, wire
from edgekit.crypto import dsse, x509
from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.wire import JobState
from tests.support.bundles import INFO, Keys, make_variant, tiny_bundle
from tests.support.lab import Lab, lab
from tests.unit.fleet.web.site import Page

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin") is None,
    reason="the fleet's broker, mosquitto, is not installed",
)


class Device:
    """Enrols, then answers each job: SUCCEEDED, unless its release is in `bad`."""

    def __init__(self, home: Lab, name: str, folder: Path) -> None:
        self.name, self.bad, self.runs, self.jobs = name, set[str](), "", list[str]()
        self._seq = self._version = self._counter = 0
        self._lock = threading.Lock()
        made = home.run(
            *("edgekit", "fleet", "enroll", "--state", home.state, "--device", name),
            *("--profile", "generic-cpu", "--tag", f"site={name}", "--json"),
        )
        token = json.loads(made.stdout)["token"]
        key = x509.new_device_key()
        body = {
            "token": token,
            "csr_pem": x509.make_csr(key, name).decode(),
            "sealing_key_pem": SealingKey.generate().public().to_pem().decode(),
        }
        status, answer = home.api("POST", "/v1/enroll", body)
        assert status == 201, answer
        self._fleet_key = VerifyKey.from_pem(answer["assignment_key_pem"].encode(), "assignment key")
        for suffix, text in (
            ("key", key.decode()),
            ("pem", answer["certificate_pem"]),
            ("ca", answer["ca_pem"]),
        ):
            (folder / f"{name}.{suffix}").write_text(text)
        context = ssl.create_default_context(cafile=str(folder / f"{name}.ca"))
        context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
        self.client.tls_set_context(context)
        self.client.on_connect = lambda *_: self._hello()
        self.client.on_message = lambda _client, _data, message: self._obey(bytes(message.payload))
        self.client.connect(answer["broker_host"], answer["broker_port"])
        self.client.loop_start()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, channel: str, message: Any, *, retain: bool = False) -> None:
        self.client.publish(wire.topic(self.name, channel), codec.to_json(message), 1, retain)

    def _hello(self) -> None:
        self.client.subscribe(wire.topic(self.name, wire.JOB_NOTIFY), 1)
        self.say(wire.PRESENCE, wire.Presence(True, "boot-1"), retain=True)
        self._report("")

    def _report(self, digest: str) -> None:
        self._version += 1
        self.say(
            wire.REPORTED,
            wire.Reported(
                version=self._version,
                boot="boot-1",
                agent_version="<b>0.1</b>",
                profile="generic-cpu",
                emulated=True,
                architecture="x86_64",
                isa=("avx2",),
                engines={"reference": "1.2.3"},
                release=self.runs,
                bundle_digest=digest,
                counter=self._counter,
            ),
            retain=True,
        )

    def _obey(self, payload: bytes) -> None:
        with self._lock:
            notify = codec.from_json(wire.JobNotify, payload, what="notify")
            if notify.cancel or notify.job in self.jobs:
                return
            self.jobs.append(notify.job)
            signed = dsse.verify(notify.assignment.encode(), wire.ASSIGNMENT_TYPE, [self._fleet_key])
            order = codec.from_json(wire.Assignment, signed, what="assignment")
            assert order.device == self.name
            self._update(order.job, JobState.IN_PROGRESS, "DOWNLOAD")
            if order.release in self.bad:
                self._update(order.job, JobState.FAILED, "PROBE", "GoldenError", "<i>2 of 16</i> agree")
                return
            self.runs, self._counter = order.release, order.counter
            self._report(order.bundle_digest)
            self._update(order.job, JobState.SUCCEEDED, "COMMIT")

    def _update(self, job: str, state: JobState, stage: str, code: str = "", message: str = "") -> None:
        self._seq += 1
        self.say(wire.JOB_UPDATE, wire.JobUpdate(job, self._seq, state, stage, code, message))

    def telemetry(self, seq: int) -> None:
        values = {"edgekit_requests_total": 40.0, "edgekit_request_errors_total": 0.0}
        buckets = (0, 0, 30, 10, *[0] * 10)
        window = wire.Telemetry(
            "boot-1", seq, "2026-01-01T00:00:00Z", 1.0, 1, values, buckets, {"yes": 40}, self.runs
        )
        self.say(wire.TELEMETRY, window)


class Browser:
    """Keeps cookies, follows redirects, sends forms: a browser without JavaScript."""

    def __init__(self, home: Lab) -> None:
        self.info = json.loads((home.state / "fleet.json").read_text())
        self._context = ssl.create_default_context(cafile=self.info["ca_pem"])
        self._cookies: dict[str, str] = {}

    def open(self, path: str, form: dict[str, str] | None = None) -> tuple[int, Page]:
        url = urlsplit(self.info["url"])
        connection = http.client.HTTPSConnection(
            url.hostname or "", url.port, context=self._context, timeout=30
        )
        headers = {"Accept": "text/html", "Cookie": "; ".join(f"{k}={v}" for k, v in self._cookies.items())}
        body = None
        if form is not None:
            body = urlencode(form)
            headers |= {"Content-Type": "application/x-www-form-urlencoded", "Origin": self.info["url"]}
        try:
            connection.request("GET" if form is None else "POST", path, body, headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.split(";")[0].partition("=")
            self._cookies[name] = value
        if answer.status == 303:
            return self.open(answer.headers["Location"])
        return answer.status, Page(text)

    def press(self, path: str, verb: str) -> tuple[int, Page]:
        """Press a button of the page at `path`, with the hidden fields that are on it."""
        _, page = self.open(path)
        action = next(str(f["action"]) for f in page.all("form") if str(f["action"]).endswith(f"/{verb}"))
        hidden = {str(f["name"]): str(f["value"]) for f in page.all("input") if f.get("type") == "hidden"}
        return self.open(action, hidden)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A fleet with two releases, kws:1 and kws:2, that trusts their builder."""
    with lab(tmp_path_factory.mktemp("dash")) as made:
        keys = Keys(recipient=SealingKey.load(made.state / "keys" / "recipient.pem"))
        (made.folder / "builder.pub").write_bytes(keys.signer.public().to_pem())
        made.trust(made.folder / "builder.pub")
        made.up()
        for version in ("1", "2"):
            info = replace(INFO, name="kws", version=version)
            variant = make_variant(model=f"weights {version}".encode())
            path, _ = tiny_bundle(
                made.folder, variants=[variant], keys=keys, info=info, name=f"{version}.edgekit"
            )
            said = made.run("edgekit", "fleet", "publish", path, "--state", made.state).stdout
            assert f"published kws:{version}" in said
        yield made


@pytest.fixture
def devices(home: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Device]]:
    names = [f"{request.node.name.removeprefix('test_')[:20].replace('_', '-')}-{i}" for i in range(3)]
    made = [Device(home, name, tmp_path) for name in names]
    home.wait(lambda: all(home.devices()[d.name]["online"] for d in made), "devices online")
    yield made
    for device in made:
        device.close()


def fleet(home: Lab, *words: str, check: bool = True) -> tuple[int, str, str]:
    done = home.run("edgekit", "fleet", *words, "--state", home.state, check=check)
    return done.returncode, done.stdout, done.stderr


def of(devices: list[Device]) -> str:
    return "id in (" + ", ".join(device.name for device in devices) + ")"


def test_bad_release_is_rolled_back_and_everybody_sees_it(home: Lab, devices: list[Device]) -> None:
    fleet(home, "rollout", "create", "kws:1", "--query", of(devices), "--phase", "all")
    code, said, _ = fleet(home, "watch")
    assert (code, "FINISHED" in said) == (0, True)
    assert {device.runs for device in devices} == {"kws:1"}

    for device in devices[1:]:
        device.bad = {"kws:2"}
    good = devices[0].name
    phases = ("--phase", f"canary:1,errors=0,where=id == {good}", "--phase", "rest,errors=0")
    made = json.loads(fleet(home, "rollout", "create", "kws:2", "--query", of(devices), *phases, "--json")[1])
    assert made["groups"][0] == {"name": "canary", "devices": [good]}
    code, said, _ = fleet(home, "watch", str(made["id"]), check=False)
    assert code == 3
    assert "FAILED - PROBE GoldenError <i>2 of 16</i> agree" in said
    assert "ROLLED_BACK" in said
    assert {device.runs for device in devices} == {"kws:1"}
    shown = json.loads(fleet(home, "rollout", "show", str(made["id"]), "--json")[1])
    assert shown["groups"][0]["jobs"][0]["back"]["state"] == "SUCCEEDED"

    browser = Browser(home)
    browser.open(urlsplit(browser.info["dashboard"])._replace(scheme="", netloc="").geturl())
    status, page = browser.open(f"/rollouts/{made['id']}")
    assert status == 200
    assert "ROLLED_BACK" in page.text
    assert "PROBE GoldenError <i>2 of 16</i> agree" in page.text
    assert page.all("i") == []


def test_pause_and_resume_in_the_dashboard(home: Lab, devices: list[Device]) -> None:
    said = fleet(
        *(home, "rollout", "create", "kws:1", "--query", of(devices), "--json"),
        *("--phase", "one:1,on_success=pause", "--phase", "others"),
    )[1]
    rollout = json.loads(said)["id"]

    def state() -> str:
        return str(home.get(f"/v1/rollouts/{rollout}")["state"])

    home.wait(lambda: state() == "PAUSED", "the pause after the first phase")
    assert sum(device.runs == "kws:1" for device in devices) == 1
    browser = Browser(home)
    token = (home.state / "admin.token").read_text().strip()
    assert browser.open("/rollouts")[1].all("input"), "not sent to the login form"
    status, page = browser.open("/login", {"token": token, "next": f"/rollouts/{rollout}"})
    assert status == 200
    assert "PAUSED" in page.text
    status, page = browser.press(f"/rollouts/{rollout}", "resume")
    assert status == 200
    assert fleet(home, "watch", str(rollout))[0] == 0

    for seq in range(1, 4):
        devices[0].telemetry(seq)
    path = f"/devices/{devices[0].name}"
    home.wait(lambda: "120 (100.0%)" in browser.open(path)[1].text, "telemetry on the page")
    text = browser.open(path)[1].text
    assert "<b>0.1</b>" in text
    for path, what in (
        ("/", "kws:2"),
        ("/devices", devices[2].name),
        ("/releases", "kws:1"),
        (f"/releases/{home.devices()[devices[0].name]['bundle_digest']}", "95 % confidence 0.8921 to 0.9314"),
        ("/audit", "intact"),
    ):
        status, page = browser.open(path)
        assert (status, what in page.text) == (200, True), path


def test_tags_and_revocation(home: Lab, devices: list[Device]) -> None:
    name = devices[0].name
    assert "ring=0" in fleet(home, "devices", "tag", name, "ring=0", "site=")[1]
    assert home.devices()[name]["tags"] == {"ring": "0"}
    assert "revoked" in fleet(home, "devices", "revoke", name)[1]
    listed = fleet(home, "devices", "list")[1]
    assert any(line.startswith(name) and "revoked" in line for line in listed.splitlines())
    code, _, said = fleet(home, "rollout", "create", "kws:1", "--query", f"id == {name}", check=False)
    assert code == 2
    assert said.startswith("error: no device matches")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("rollout", "create", "kws:9"), "no release 'kws:9'"),
        (("rollout", "create", "kws:1", "--query", "profile = x"), "column 9"),
        (("rollout", "create", "kws:1", "--phase", "a:many"), "size 'many'"),
        (("rollout", "create", "kws:1", "--phase", "a:1,soak=soon"), "'soon' is not a time"),
        (("rollout", "show", "4711"), "no rollout 4711"),
        (("rollout", "pause", "x"), "'x' is not a rollout's number"),
        (("devices", "revoke", "nobody"), "no device"),
        (("publish", "/nonexistent.edgekit"), "cannot read /nonexistent.edgekit"),
        (("publish", __file__), ""),
        (("rollout", "list", "--url", "https://127.0.0.1:1"), "no fleet answers"),
        (("rollout", "list", "--url", "http://127.0.0.1:1"), "is not an https address"),
        (("rollout", "list", "--token-file", __file__), "does not hold an admin token"),
        (("rollout", "list", "--token-file", "/proc/sys/kernel/ostype"), "admin token is wrong"),
    ],
)
def test_mistakes_get_one_line_and_a_hint(home: Lab, words: tuple[str, ...], what: str) -> None:
    code, out, said = fleet(home, *words, check=False)
    lines = said.splitlines()
    assert (code, out) == (2, "")
    assert lines[0].startswith("error: ")
    assert what in lines[0]
    assert len(lines) <= 2
    assert all(line.startswith("  hint: ") for line in lines[1:])


def test_another_fleets_certificate_is_not_trusted(home: Lab, tmp_path: Path) -> None:
    x509.CertificateAuthority.create("other").save(tmp_path)
    code, _, said = fleet(home, "devices", "list", "--ca", str(tmp_path / "ca.pem"), check=False)
    assert code == 2
    assert "its certificate is not trusted" in said
