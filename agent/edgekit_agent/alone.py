"""`edgekit-agent serve`: bundles on one machine, without a fleet. Nothing is written to the disk."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from edgekit import bundle
from edgekit.bundle import Bundle
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.errors import EdgekitError, EngineError, InputError
from edgekit_agent import device, sd
from edgekit_agent.config import DeviceSection, LogSection, ServeSection
from edgekit_agent.prepare import Prepared, fitting, into_memory
from edgekit_agent.prove import probe
from edgekit_agent.supervisor import LOAD_S, Supervisor

log = logging.getLogger("edgekit.agent")

MOST = 16
"""Bundles that are served side by side."""
PROBE_S = 600.0
"""An engine may be compiled on the device, which takes minutes."""


def serve(
    paths: Sequence[Path],
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

    The first of several is the device's release, which /v2/health/ready speaks of. Raises BundleError,
    InputError, EngineError, SystemFault (busy port) before anything is served.
    """
    ring = KeyRing.at()  # on the machine that built the bundle, its keys are at hand
    trusted = [VerifyKey.load(one) for one in trust or [ring.builder_public]]
    opened = [bundle.open(path, trusted) for path in paths]
    _check_names(opened)
    content_keys = [_content_key(one, key or ring.recipient_private) for one in opened]
    supervisor = Supervisor(section, log=log_section)
    supervisor.bind()
    try:
        supervisor.start(wait_for_load=True)  # it imports what it needs while the release is proven
        engines = {entry.config.engine.name for one in opened for entry in one.variants}
        here = device.describe(DeviceSection("standalone", profile, emulated), engines)
        begin = time.monotonic()
        with ExitStack() as unserved:
            found = []
            for path, one, content_key in zip(paths, opened, content_keys, strict=True):
                try:
                    found.append(_first_that_fits(one, here, content_key))
                except EdgekitError as exc:  # of several it could be any
                    raise type(exc)(f"{path}: {exc.message}", exc.hint) from None
                unserved.callback(found[-1].close)
            slow_s = 2 * (time.monotonic() - begin)  # what takes the probe long takes serving long
            release, *beside = found
            supervisor.keep_beside(beside)
            supervisor.swap(release, max(LOAD_S, slow_s))
            unserved.pop_all()
        ready = {
            "release": release.release,
            "variant": release.variant,
            "endpoint": supervisor.endpoint.split()[0],
            "unix": section.unix,
            "beside": [one.release for one in beside],
        }
        sys.stdout.write(json.dumps(ready) + "\n")
        sys.stdout.flush()
        names = ", ".join(one.release for one in found)
        with sd.service(f"{names} on {supervisor.endpoint}", lambda: supervisor.healthy):
            until()
    finally:
        supervisor.stop()


def _check_names(opened: Sequence[Bundle]) -> None:
    """Raises InputError: clients tell models apart by their names."""
    if len(opened) > MOST:
        raise InputError(f"{len(opened)} bundles", f"serve {MOST} at most")
    names = [one.info.name for one in opened]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"two of the bundles are called {twice!r}", "serve one of them, or build it with --name"
        )


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
