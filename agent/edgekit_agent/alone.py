"""`edgekit-agent serve`: one bundle on one machine, without a fleet. Nothing is written to the disk."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit import bundle
from edgekit.bundle import Bundle
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.errors import EngineError
from edgekit_agent import device, sd
from edgekit_agent.config import DeviceSection, LogSection, ServeSection
from edgekit_agent.prepare import Prepared, fitting, into_memory
from edgekit_agent.prove import probe
from edgekit_agent.supervisor import LOAD_S, Supervisor

log = logging.getLogger("edgekit.agent")

PROBE_S = 600.0
"""An engine may be compiled on the device, which takes minutes."""


def serve(
    path: Path,
    *,
    key: Path | None,
    trust: Sequence[Path],
    profile: str,
    emulated: bool,
    section: ServeSection,
    log_section: LogSection,
    until: Callable[[], None],
) -> None:
    """Serve until `until` returns. Prints one JSON line with the endpoint once requests are answered.

    Raises BundleError, InputError, EngineError, SystemFault (busy port) before anything is served.
    """
    ring = KeyRing.at()  # on the machine that built the bundle, its keys are at hand
    opened = bundle.open(path, [VerifyKey.load(one) for one in trust or [ring.builder_public]])
    engines = {entry.config.engine.name for entry in opened.variants}
    here = device.describe(DeviceSection("standalone", profile, emulated), engines)
    content_key = _content_key(opened, key or ring.recipient_private)
    supervisor = Supervisor(section, log=log_section)
    supervisor.bind()
    try:
        supervisor.start(wait_for_load=True)  # it imports what it needs while the release is proven
        begin = time.monotonic()
        release = _first_that_fits(opened, here, content_key)
        slow_s = 2 * (time.monotonic() - begin)  # what takes the probe long takes serving long
        supervisor.swap(release, max(LOAD_S, slow_s))
        ready = {
            "release": release.release,
            "variant": release.variant,
            "endpoint": supervisor.endpoint.split()[0],
            "unix": section.unix,
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        with sd.service(f"{release.release} on {supervisor.endpoint}", lambda: supervisor.healthy):
            until()
    finally:
        supervisor.stop()


def _content_key(opened: Bundle, key: Path) -> bytes | None:
    return opened.content_key(SealingKey.load(key)) if opened.encrypted else None


def _first_that_fits(opened: Bundle, here: device.Device, content_key: bytes | None) -> Prepared:
    """The first variant whose answers are the certified ones here. Raises the first one's EngineError."""
    first: EngineError | None = None
    for entry in fitting(opened, here):
        prepared = into_memory(opened, entry, content_key)
        try:
            probe(prepared, PROBE_S, lambda: None, certify=False)  # there is no fleet to tell
        except EngineError as exc:
            prepared.close()
            first = first or exc
            log.warning("%s does not fit this device: %s", entry.config.variant, exc)
            continue
        return prepared
    raise first or EngineError("no variant could be probed")
