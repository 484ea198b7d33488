"""Device certificates: what this device measured of variants that nobody measured on such a device before.

One JSON file per bundle, beside the journal; an engine that was updated since asks for a new one.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

from edgekit import codec, host
from edgekit.errors import ConfigError, SystemFault
from edgekit.files import write_bytes
from edgekit.wire import DeviceCertificate
from edgekit_agent.device import Device
from edgekit_agent.messages import Loaded
from edgekit_agent.prepare import Prepared

log = logging.getLogger("edgekit.agent.certificates")

FOLDER = "certificates"
"""In the state folder."""


def make(release: Prepared, digest: str, found: Loaded, device: Device) -> DeviceCertificate | None:
    """From a probe's answer; None when nothing was measured, for the builder's certificate is enough."""
    measured = found.measured
    if measured is None:
        return None
    machine = host.read()
    return DeviceCertificate(
        release=release.release,
        variant=release.variant,
        bundle_digest=digest,
        engine=release.entry.config.engine.name,
        engine_version=measured.engine_version,
        host_cpu=machine.cpu,
        host_architecture=machine.architecture,
        host_isa=machine.isa,
        measured_on_target=not device.emulated,
        samples=found.samples,
        max_abs_difference=found.max_abs_difference,
        reference_agreement=found.reference_agreement,
        latency_p50_ms=measured.latency_p50_ms,
        latency_p95_ms=measured.latency_p95_ms,
        latency_p99_ms=measured.latency_p99_ms,
        runs=measured.runs,
        load_ms=round(found.load_ms, 1),
        peak_rss_mib=measured.peak_rss_mib,
        coverage=measured.coverage,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class Certificates:
    """Those of one device, in one folder."""

    def __init__(self, folder: Path, device: Device) -> None:
        self.folder, self._device = folder, device

    def of(self, digest: str, variant: str) -> DeviceCertificate | None:
        return read(self.folder, digest, variant)

    def wanted(self, release: Prepared, digest: str) -> bool:
        """Nobody measured this variant on such a device with the engine that is installed now."""
        if release.entry.certificate.measured_on_target:
            return False
        have = self.of(digest, release.variant)
        return have is None or have.engine_version != self._device.engines.get(have.engine)

    def keep(self, release: Prepared, digest: str, found: Loaded) -> None:
        """Write what a probe measured. A full disk must not stop a release that answers rightly."""
        made = make(release, digest, found, self._device)
        if made is None:
            return
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            write_bytes(_path(self.folder, digest), codec.to_json(made), mode=0o600)
        except (OSError, SystemFault) as exc:
            log.warning("%s: no device certificate: %s", made.variant, exc)
            return
        latency = f"p50 {made.latency_p50_ms:.3g} ms, p95 {made.latency_p95_ms:.3g} ms"
        nodes = made.coverage or "unknown"
        log.info("%s: measured here: %s, %.1f MiB, nodes %s", made.variant, latency, made.peak_rss_mib, nodes)


def read(folder: Path, digest: str, variant: str) -> DeviceCertificate | None:
    """None when there is none for this variant, or it cannot be read: then it is made again."""
    try:
        data = _path(folder, digest).read_bytes()
        found = codec.from_json(DeviceCertificate, data, what="device certificate")
    except (OSError, ConfigError):
        return None
    return found if found.variant == variant else None


def _path(folder: Path, digest: str) -> Path:
    return folder / f"{digest.removeprefix('sha256:')}.json"
