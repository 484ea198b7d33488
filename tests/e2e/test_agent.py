"""The agent as a real process: alone with one bundle, and as a device on a real broker."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit import codec, wire
from edgekit.wire import JobAck, JobNotify, JobState, JobUpdate, Presence, Reported, Telemetry, TelemetryAck
from edgekit_agent.config import ServeSection
from tests.support.agent_process import kill_workers
from tests.support.bundles import Keys
from tests.support.devices import Client, release, variant, wait_for
from tests.support.standin import Broker, StandIn, standin

AGENT = [str(Path(sys.executable).with_name("edgekit-agent"))]


class Fleet:
    """The other end of the broker: collects what the device says and acknowledges it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.updates: list[JobUpdate] = []
        self.windows: list[Telemetry] = []
        self.reported: list[Reported] = []
        self.presence: list[Presence] = []

    def listen(self, timeout_s: float = 0.05) -> None:
        """Take one message, if there is one, and answer it."""
        try:
            channel, payload = self.broker.received.get(timeout=timeout_s)
        except queue.Empty:
            return
        match channel:
            case wire.JOB_UPDATE:
                update = codec.from_json(JobUpdate, payload, what=channel)
                self.updates.append(update)
                self.broker.publish(wire.JOB_ACK, JobAck(update.seq))
            case wire.TELEMETRY:
                window = codec.from_json(Telemetry, payload, what=channel)
                self.windows.append(window)
                self.broker.publish(wire.TELEMETRY_ACK, TelemetryAck(window.boot, window.seq))
            case wire.REPORTED:
                self.reported.append(codec.from_json(Reported, payload, what=channel))
            case wire.PRESENCE:
                self.presence.append(codec.from_json(Presence, payload, what=channel))

    def until(self, what: str, ready: Any) -> None:
        def done() -> bool:
            self.listen()
            return bool(ready())

        wait_for(what, done)

    def end_of(self, job: str) -> JobUpdate:
        def ended() -> list[JobUpdate]:
            return [u for u in self.updates if u.job == job and u.state.terminal]

        self.until(f"the end of {job}", ended)
        return ended()[0]

    def online(self) -> None:
        self.until("the device online", lambda: self.presence and self.presence[-1].online)


class Device:
    def __init__(self, config: Path) -> None:
        self.config, self.state = config, config.parent
        self.client = Client(unix=self.state / "agent.sock")
        self.child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.state / "log").open("ab") as log:
            command = [*AGENT, "--config", str(self.config)]
            self.child = subprocess.Popen(command, stdout=log, stderr=log)

    def log(self) -> str:
        return (self.state / "log").read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.child is not None
        self.child.send_signal(number)
        return self.child.wait(30)

    def close(self) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.kill()
            self.child.wait()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[StandIn]:
    with standin(tmp_path) as made:
        yield made


@pytest.fixture
def fleet(place: StandIn) -> Iterator[Fleet]:
    broker = Broker(place.identity, place.folder / "broker")
    broker.start()
    try:
        yield Fleet(broker)
    finally:
        broker.close()


@pytest.fixture
def device(place: StandIn, fleet: Fleet) -> Iterator[Device]:
    made = Device(place.install(fleet.broker.port))
    made.start()
    try:
        fleet.online()
        yield made
    finally:
        made.close()


def roll(place: StandIn, fleet: Fleet, path: Path, **changes: Any) -> JobUpdate:
    """Assign a release and wait for the job's end."""
    assignment = place.assignment(path, **changes)
    fleet.broker.publish(wire.JOB_NOTIFY, place.notify(assignment))
    return fleet.end_of(assignment.job)


def test_release_after_release(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    second = release(place.folder, "2.0.0", variant(2.0), keys=place.keys)
    assert roll(place, fleet, first).state is JobState.SUCCEEDED, (device.state / "log").read_text()
    assert device.client.served_weight() == 1.0
    fleet.until("the first report", lambda: fleet.reported[-1].release == "tiny:1.0.0")
    assert fleet.reported[-1].previous_release == ""
    assert roll(place, fleet, second).state is JobState.SUCCEEDED
    assert device.client.served_weight() == 2.0
    stages = [u.stage for u in fleet.updates if u.job == "job-2"]
    assert stages[0] == "DOWNLOAD" and stages[-1] == "COMMIT"
    fleet.until("the report", lambda: fleet.reported[-1].release == "tiny:2.0.0")
    last = fleet.reported[-1]
    assert (last.previous_release, last.counter, last.profile) == ("tiny:1.0.0", 2, "generic-cpu")
    fleet.until("telemetry", lambda: any(w.classes for w in fleet.windows))
    window = next(w for w in fleet.windows if w.classes)
    assert sum(window.latency_buckets) == window.values["edgekit_requests_total"] >= 1
    bundles = sorted(path.name for path in (device.state / "bundles").iterdir())
    assert len(bundles) == 2 and all(name.endswith(".edgekit") for name in bundles)
    # Back to the first release: a new assignment, nothing to download.
    downloads = len(place.server.requests)
    assert roll(place, fleet, first).state is JobState.SUCCEEDED
    assert device.client.served_weight() == 1.0
    assert len(place.server.requests) == downloads


def test_golden_check_keeps_the_old_release(place: StandIn, fleet: Fleet, device: Device) -> None:
    good = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    bad = release(place.folder, "2.0.0", variant(2.0, lie=0.5), keys=place.keys)
    assert roll(place, fleet, good).state is JobState.SUCCEEDED
    ended = roll(place, fleet, bad)
    assert (ended.state, ended.stage, ended.code) == (JobState.FAILED, "PROBE", "GoldenError")
    assert device.client.served_weight() == 1.0


def test_next_variant_when_the_first_answers_wrongly(place: StandIn, fleet: Fleet, device: Device) -> None:
    lying, honest = variant(3.0, lie=0.5, name="generic-cpu.a"), variant(3.0, name="generic-cpu.b")
    both = release(place.folder, "3.0.0", lying, honest, keys=place.keys)
    assert roll(place, fleet, both).state is JobState.SUCCEEDED
    fleet.until("the report", lambda: fleet.reported[-1].variant == "generic-cpu.b")


def test_orders_that_are_refused(place: StandIn, fleet: Fleet, device: Device) -> None:
    good = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    assert roll(place, fleet, good).state is JobState.SUCCEEDED
    old = place.notify(place.assignment(good, counter=1, job="replayed"))
    elsewhere = place.notify(place.assignment(good, device="dev-2", job="not-mine"))
    forged = place.notify(place.assignment(good, job="forged"), Keys().signer)
    for notify in (old, elsewhere, forged):
        fleet.broker.publish(wire.JOB_NOTIFY, notify)
        ended = fleet.end_of(notify.job)
        assert (ended.state, ended.code) == (JobState.REJECTED, "SignatureError"), ended
    assert device.client.served_weight() == 1.0


def test_bundles_that_are_refused(place: StandIn, fleet: Fleet, device: Device) -> None:
    """A fleet that was taken over can sign assignments, but no bundle."""
    good = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    assert roll(place, fleet, good).state is JobState.SUCCEEDED
    builder, place.keys = place.keys, Keys(recipient=place.keys.recipient)
    foreign = place.assignment(release(place.folder, "9.0.0", variant(9.0), keys=place.keys))
    place.keys = builder
    pi_only = variant(4.0, profile="raspberry-pi-5")
    pi_only = dataclasses.replace(pi_only, config=dataclasses.replace(pi_only.config, isa=("sve2", "sme")))
    other = place.assignment(release(place.folder, "4.0.0", pi_only, keys=place.keys))
    wrong = place.assignment(good, release="tiny:7.0.0")
    missing = place.assignment(release(place.folder, "5.0.0", variant(5.0), keys=place.keys))
    del place.server.files[missing.url_path]
    large = place.assignment(
        release(place.folder, "6.0.0", variant(6.0), keys=place.keys), bundle_size_bytes=1 << 60
    )
    expected = [
        (foreign, JobState.REJECTED, "VERIFY", "SignatureError"),
        (other, JobState.REJECTED, "VERIFY", "BundleError"),
        (wrong, JobState.FAILED, "VERIFY", "InputError"),
        (missing, JobState.FAILED, "DOWNLOAD", "InputError"),
        (large, JobState.REJECTED, "DOWNLOAD", "NoSpace"),
    ]
    for assignment, *how in expected:
        fleet.broker.publish(wire.JOB_NOTIFY, place.notify(assignment))
        ended = fleet.end_of(assignment.job)
        assert [ended.state, ended.stage, ended.code] == how, ended
    assert device.client.served_weight() == 1.0
    assert len(list((device.state / "bundles").iterdir())) == 1


def test_cancel_in_the_watch_rolls_back(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    second = release(place.folder, "2.0.0", variant(2.0), keys=place.keys)
    assert roll(place, fleet, first).state is JobState.SUCCEEDED
    assignment = place.assignment(second, watch_s=60.0)
    fleet.broker.publish(wire.JOB_NOTIFY, place.notify(assignment))
    fleet.until(
        "the watch", lambda: any(u.stage == "WATCH" for u in fleet.updates if u.job == assignment.job)
    )
    assert device.client.served_weight() == 2.0
    fleet.broker.publish(wire.JOB_NOTIFY, JobNotify(assignment.job, cancel=True))
    assert fleet.end_of(assignment.job).state is JobState.CANCELED
    assert device.client.served_weight() == 1.0


def test_newer_assignment_takes_over(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    second = release(place.folder, "2.0.0", variant(2.0), keys=place.keys)
    slow = place.assignment(first, watch_s=60.0)
    fleet.broker.publish(wire.JOB_NOTIFY, place.notify(slow))
    fleet.until("the watch", lambda: any(u.stage == "WATCH" for u in fleet.updates))
    assert roll(place, fleet, second).state is JobState.SUCCEEDED
    assert fleet.end_of(slow.job).state is JobState.CANCELED
    assert device.client.served_weight() == 2.0


def test_deadline_in_the_watch(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    assert roll(place, fleet, first, watch_s=60.0, deadline_s=4.0).state is JobState.TIMED_OUT
    status, _ = device.client.request("GET", "/v2/health/ready")
    assert status != 200


def test_offline_device_serves_and_reports_later(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    assert roll(place, fleet, first).state is JobState.SUCCEEDED
    fleet.broker.stop()
    device.client.infer()
    assert device.stop() == 0
    device.start()
    wait_for("serving without a broker", lambda: device.client.served_weight() == 1.0)
    fleet.windows.clear()
    time.sleep(1.2)  # two telemetry windows with nobody to take them
    fleet.presence.clear()
    fleet.broker.start()
    fleet.online()
    fleet.until("stored windows", lambda: sum(w.values["edgekit_requests_total"] for w in fleet.windows) >= 1)
    assert len({(w.boot, w.seq) for w in fleet.windows}) == len(fleet.windows)


def test_last_will_and_goodbye(fleet: Fleet, device: Device) -> None:
    device.stop(signal.SIGKILL)
    fleet.until("the last will", lambda: not fleet.presence[-1].online)
    killed = fleet.presence[-1].boot
    device.start()
    fleet.online()
    assert fleet.presence[-1].boot != killed
    assert device.stop() == 0
    fleet.until("the goodbye", lambda: not fleet.presence[-1].online)


def test_worker_is_replaced(place: StandIn, fleet: Fleet, device: Device) -> None:
    first = release(place.folder, "1.0.0", variant(1.0), keys=place.keys)
    assert roll(place, fleet, first).state is JobState.SUCCEEDED
    assert device.child is not None
    for _ in range(3):
        kill_workers(device.child)
        assert device.client.served_weight() == 1.0  # the connection waits for the new process


def test_the_fleet_hears_that_a_release_gave_way(place: StandIn, fleet: Fleet, device: Device) -> None:
    for version, weight in (("1.0.0", 1.0), ("2.0.0", 2.0)):
        assert (
            roll(place, fleet, release(place.folder, version, variant(weight), keys=place.keys)).state
            is JobState.SUCCEEDED
        )
    assert device.child is not None
    for crash in range(1, ServeSection().crash_limit + 1):
        kill_workers(device.child)
        assert device.client.served_weight() == (2.0 if crash < ServeSection().crash_limit else 1.0), (
            device.log()
        )
        # Clients are answered a moment before the supervisor hears that the load is done; killed in between,
        # one release would have crashed twice.
        wait_for("the end of it", lambda: device.log().count(" again after ") >= crash)  # noqa: B023 - called at once
    fleet.until("the report", lambda: fleet.reported[-1].release == "tiny:1.0.0")
    assert fleet.reported[-1].notice == "tiny:2.0.0 crashed again and again, tiny:1.0.0 serves instead"
    assert fleet.updates[-1].state is JobState.SUCCEEDED, "the job had ended; nothing is said of it any more"


def test_one_agent_per_state_folder(device: Device) -> None:
    again = subprocess.run(
        [*AGENT, "--config", str(device.config)], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 2
    assert again.stderr.startswith("error: ") and "in use by another agent" in again.stderr


def test_status_and_the_first_certificate_on_this_device(
    place: StandIn, fleet: Fleet, device: Device
) -> None:
    """A variant that was not measured on such a device is measured by it, before it serves."""

    def made(version: str, weight: float, **certificate: Any) -> Path:
        one = variant(weight)
        changed = dataclasses.replace(one.certificate, **certificate)
        return release(place.folder, version, dataclasses.replace(one, certificate=changed), keys=place.keys)

    assert roll(place, fleet, made("1.0.0", 1.0, measured_on_target=True)).state is JobState.SUCCEEDED
    assert status_of(device)["certificate"] is None, "the builder's certificate is enough"
    second = made("2.0.0", 2.0, measured_on_target=False, stand_in="onnxruntime 1.32.0")
    assert roll(place, fleet, second).state is JobState.SUCCEEDED
    said = status_of(device)
    assert (said["current"]["release"], said["counter"], said["job"]) == ("tiny:2.0.0", 2, None)
    found = codec.from_plain(wire.DeviceCertificate, said["certificate"], what="certificate")
    assert (found.release, found.variant) == ("tiny:2.0.0", said["current"]["variant"])
    assert (found.engine, found.engine_version, found.coverage) == ("reference", "1.0", {"numpy": 1})
    assert (found.measured_on_target, found.samples, found.runs) == (True, 2, 300)
    assert 0 < found.latency_p50_ms <= found.latency_p95_ms <= found.latency_p99_ms
    assert found.max_abs_difference <= 0.01 and found.peak_rss_mib > 5
    assert found.host_architecture == os.uname().machine
    fleet.until("the report", lambda: fleet.reported[-1].certificate == found)

    # An engine that was updated since is measured again, when the agent is started again.
    (path,) = (device.state / "certificates").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(codec.to_json(dataclasses.replace(found, engine_version="0.9")))
    assert device.stop() == 0
    device.start()
    wait_for("a new one", lambda: status_of(device)["certificate"]["engine_version"] == "1.0")
    assert device.client.served_weight() == 2.0
    # Its bundle goes, and it goes with it.
    for version in ("3.0.0", "4.0.0"):
        third = made(version, 3.0, measured_on_target=True)
        assert roll(place, fleet, third).state is JobState.SUCCEEDED
    wait_for("its end", lambda: not list((device.state / "certificates").iterdir()))
    assert status_of(device)["certificate"] is None


def status_of(device: Device) -> Any:
    command = [*AGENT, "status", "--state", str(device.state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)
