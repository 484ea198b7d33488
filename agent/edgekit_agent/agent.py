"""The agent under a fleet: puts store, supervisor, activator, link and telemetry together."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import os
import secrets
import threading
import time
from pathlib import Path

from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.errors import ConfigError, EdgekitError
from edgekit.runtimes._cache import ENGINE_CACHE
from edgekit.wire import Assignment, Reported, Telemetry
from edgekit_agent import certificates, device, fallback, fetch, telemetry
from edgekit_agent.activate import Activator
from edgekit_agent.certificates import Certificates
from edgekit_agent.config import AgentConfig
from edgekit_agent.intake import Intake
from edgekit_agent.link import Link
from edgekit_agent.prepare import Keys
from edgekit_agent.store import FolderLock, Store
from edgekit_agent.supervisor import Supervisor

log = logging.getLogger("edgekit.agent")


class Agent:
    """Raises ConfigError, ProfileError or SystemFault when it cannot begin."""

    def __init__(self, config: AgentConfig) -> None:
        if config.fleet is None:
            raise ConfigError("the configuration has no [fleet]", "enrol: edgekit-agent enroll --token ...")
        fleet = config.fleet
        self._config = config
        self.boot = secrets.token_hex(8)
        self.device = device.describe(config.device)
        folder = Path(config.state.dir)
        os.environ.setdefault(ENGINE_CACHE, str(folder / "engines"))  # for the processes that load engines
        keys = Keys(
            tuple(VerifyKey.load(Path(key)) for key in fleet.builder_keys),
            SealingKey.load(Path(fleet.sealing_key)),
        )
        assignment_key = VerifyKey.load(Path(fleet.assignment_key))
        self._tls = fetch.tls(fleet.ca, fleet.cert, fleet.key)
        self._lock = FolderLock(folder)
        self.store = Store(folder)
        self.supervisor = Supervisor(config.serve, config.limits, config.log)
        self.certificates = Certificates(folder / certificates.FOLDER, self.device)
        self.activator = Activator(
            self.store,
            self.supervisor,
            self.device,
            keys,
            self._download,
            folder / "bundles",
            self.certificates,
            restart_limit=config.serve.restart_limit,
            changed=self._changed,
        )
        self.supervisor.fallback = self.activator.fall_back
        self.supervisor.fell_back = self._changed
        self.intake = Intake(
            self.store, self.activator, assignment_key, config.device.id, config.device.tenant
        )
        self.link = Link(
            fleet, config.device.id, config.device.tenant, self.boot, self.store, self.intake.submit
        )
        self._reporting = threading.Lock()
        self._reported: Reported | None = None
        self._stopping = threading.Event()
        self._meter = threading.Thread(target=self._measure, name="telemetry", daemon=True)

    def start(self) -> None:
        """Bind, serve the current release, then talk to the fleet. Raises SystemFault: a busy port."""
        self.supervisor.bind()
        self.store.set("endpoint", self.supervisor.endpoint)
        self.supervisor.start(wait_for_load=self.store.release("current") is not None)
        self.activator.recover()
        self._changed()
        self.link.start()
        self.activator.start()
        self._meter.start()
        log.info("%s serves on %s", self._config.device.id, self.supervisor.endpoint)

    @property
    def status(self) -> str:
        """One line for people."""
        release = self.supervisor.release
        return f"{release.release if release else 'nothing'} on {self.supervisor.endpoint}"

    def healthy(self) -> bool:
        """Whether this process does its work; if not, only starting it again helps."""
        return self.supervisor.healthy

    def stop(self) -> None:
        """Drain and end; what is not done is in the journal."""
        self._stopping.set()
        self.activator.stop()
        self.link.stop()
        self.supervisor.stop()
        if self._meter.ident is not None:
            self._meter.join(5)
        self.store.close()
        self._lock.release()

    def _download(self, assignment: Assignment, to: Path, keep_going: fetch.KeepGoing) -> None:
        assert self._config.fleet is not None  # noqa: S101 - checked at the start
        url, size = self._config.fleet.device_url, assignment.bundle_size_bytes
        fetch.download(url, assignment.url_path, size, to, self._tls, keep_going)

    # -- what the fleet hears ------------------------------------------------------------------

    def _changed(self) -> None:
        """Publish the state if it is news, and wake the link for what is in the outbox."""
        with self._reporting:
            now = self._state()
            if (
                self._reported is None
                or dataclasses.replace(now, version=self._reported.version) != self._reported
            ):
                version = int(self.store.get("shadow_version", "0")) + 1
                self.store.set("shadow_version", str(version))
                self._reported = dataclasses.replace(now, version=version)
                self.link.report(self._reported)
        self.link.wake()

    def _state(self) -> Reported:
        """What is served now; during a watch that is the candidate."""
        serving = self.supervisor.release
        known = [self.store.release(role) for role in ("candidate", "current", "previous")]
        match = [
            r for r in known
            if r is not None and serving is not None and (r.assignment.release, r.variant)
            == (serving.release, serving.variant)
        ]  # fmt: skip
        _, current, previous = known
        digest = match[0].assignment.bundle_digest if match else ""
        before = (previous if match[0] == current else current) if match else None
        return Reported(
            version=0,
            boot=self.boot,
            agent_version=importlib.metadata.version("edgekit-agent"),
            profile=self.device.profile,
            emulated=self.device.emulated,
            architecture=self.device.architecture,
            isa=self.device.isa,
            engines=self.device.engines,
            release=serving.release if serving else "",
            bundle_digest=digest,
            variant=serving.variant if serving else "",
            previous_release=before.assignment.release if before else "",
            counter=self.store.floor,
            endpoint=self.supervisor.endpoint,
            certificate=self.certificates.of(digest, serving.variant) if serving and digest else None,
            notice=fallback.notice(self.store),
        )

    # -- telemetry -----------------------------------------------------------------------------

    def _measure(self) -> None:
        """One window per release with traffic, and always one for the release that is served."""
        readings = telemetry.Readings()
        seq, began = 0, time.monotonic()
        while not self._stopping.wait(self._config.telemetry.interval_s):
            now = time.monotonic()
            for counted, release in self._read(readings):
                seq += 1
                window = telemetry.window(
                    counted, boot=self.boot, seq=seq, window_s=round(now - began, 3), release=release
                )
                self._keep(window)
            began = now
            self.link.wake()

    def _read(self, readings: telemetry.Readings) -> list[tuple[telemetry.Counters, str]]:
        stats = self.supervisor.stats()
        return readings.advance(stats, self.supervisor.restarts) if stats is not None else []

    def _keep(self, window: Telemetry) -> None:
        try:
            telemetry.keep(self.store, window, self._config.telemetry.max_windows)
        except EdgekitError as exc:
            log.warning("telemetry is lost: %s", exc)
