"""From a bundle on disk to a variant in sealed memory, ready to be handed to the serving process."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit import bundle, host
from edgekit.bundle import Bundle, VariantEntry
from edgekit.bundle.model import Certificate, VariantConfig
from edgekit.crypto import sealing
from edgekit.crypto.keys import SealingKey, VerifyKey
from edgekit.errors import BundleError, DecryptError, DigestError, FormatError, InputError
from edgekit.host import Host
from edgekit.runtimes import _known_bad
from edgekit.wire import Assignment
from edgekit_agent import memfd, process
from edgekit_agent.device import Device
from edgekit_agent.messages import Load, Pacing

log = logging.getLogger(__name__)
MAX_VARIANTS = 3
"""Variants that are tried when the first one answers wrongly on this device."""


@dataclass(frozen=True)
class Keys:
    """What this device trusts and what it can open."""

    builders: tuple[VerifyKey, ...]
    sealing: SealingKey


@dataclass(frozen=True)
class Prepared:
    """A variant's plaintext in sealed memory. `close` gives it back."""

    name: str
    version: str
    entry: VariantEntry
    files: dict[str, int]
    """File name to memfd."""
    golden_files: dict[str, int]

    @property
    def release(self) -> str:
        return f"{self.name}:{self.version}"

    @property
    def variant(self) -> str:
        return self.entry.config.variant

    @property
    def engine(self) -> str:
        return self.entry.config.engine.name

    @property
    def needs_mib(self) -> float:
        """About what loading it takes beside what is served already, in MiB."""
        return memfd.forecast_mib(self.files.values())

    def message(
        self,
        number: int,
        *,
        replace: bool = False,
        certify: bool = False,
        proven: Pacing | None = None,
        announce_s: float = 0.0,
        memory_mib: float = 0.0,
        restarts: int = 0,
        slot: int = 0,
        lazy: bool = False,
    ) -> tuple[Load, list[int]]:
        """The order to serve it, and the descriptors that travel with it."""
        here = _host()
        load = Load(
            id=number,
            name=self.name,
            version=self.version,
            config=tuned(self.entry, here),
            golden=self.entry.golden,
            files=tuple(self.files),
            golden_files=tuple(self.golden_files),
            replace=replace,
            certify=certify,
            proven=proven,
            advice=advice(self.entry, here),
            announce_s=announce_s,
            memory_mib=memory_mib,
            restarts=restarts,
            reference=self.entry.certificate.reference,
            slot=slot,
            lazy=lazy,
        )
        return load, [*self.files.values(), *self.golden_files.values()]

    def close(self) -> None:
        memfd.close_all([*self.files.values(), *self.golden_files.values()])
        self.files.clear()
        self.golden_files.clear()


@cache
def _host() -> Host:
    return host.read()


def measured_on(certificate: Certificate, here: Host) -> bool:
    """Whether the figures were taken on a machine like this one: same processor, same number of cores."""
    serving = certificate.serving
    return (
        serving is not None
        and bool(here.cpu)
        and (certificate.host_cpu, certificate.host_architecture) == (here.cpu, here.architecture)
        and (certificate.host_isa, serving.cores) == (here.isa, here.cores)
    )


def tuned(entry: VariantEntry, here: Host) -> VariantConfig:
    """The variant with as many threads as were best on a machine like this one."""
    serving, config = entry.certificate.serving, entry.config
    if serving is None or not serving.threads or not measured_on(entry.certificate, here):
        return config
    return dataclasses.replace(config, options={**config.options, "intra_threads": serving.threads})


def advice(entry: VariantEntry, here: Host) -> Pacing | None:
    """What was measured of its runs on a machine like this one."""
    serving = entry.certificate.serving
    if serving is None or not measured_on(entry.certificate, here):
        return None
    version = entry.certificate.engine_version
    return Pacing(serving.run_ms, serving.batch, serving.batch_ms, engine_version=version)


def open_assigned(path: Path, assignment: Assignment, trusted: Sequence[VerifyKey]) -> Bundle:
    """Verify a downloaded bundle and that it is the assigned one.

    Raises FormatError or DigestError (damaged), SignatureError (not by a trusted builder).
    """
    opened = bundle.open(path, trusted)
    found = f"{opened.info.name}:{opened.info.version}"
    if opened.digest != assignment.bundle_digest:
        raise DigestError(f"got bundle {opened.digest}, {assignment.bundle_digest} was assigned")
    if found != assignment.release:
        raise InputError(f"the bundle holds {found}, {assignment.release} was assigned", "assign it again")
    return opened


def fitting(opened: Bundle, device: Device) -> list[VariantEntry]:
    """Variants for this device, best first; all for the same profile.

    Raises BundleError when none fits, or this device's engines are known to compute all of them wrongly.
    """
    found = bundle.select(
        opened.variants, device.profile, device.architecture, device.isa, device.engines, device.emulated
    )
    told = {item.variant: item.recipe_options for item in opened.provenance.variants}
    place = _known_bad.Place(device.architecture, device.isa, (device.cpu,))
    good, reasons = [], []
    for entry in found:
        config = entry.config
        made = _known_bad.Made(
            config.engine.name, config.precision, {**told.get(config.variant, {}), **config.options}
        )
        if bad := _known_bad.of_version(made, device.engines[config.engine.name], place):
            reasons.append(f"{config.variant}: {bad.reason}")
        else:
            good.append(entry)
    if not good:
        raise BundleError(
            f"no variant is right on this device: {'; '.join(reasons)}", "install another engine"
        )
    for reason in reasons:
        log.warning("avoided: %s", reason)
    return [entry for entry in good if entry.config.profile == good[0].config.profile][:MAX_VARIANTS]


def assigned_key(assignment: Assignment, key: SealingKey) -> bytes | None:
    """The content key that the fleet sealed to this device; None for a bundle that is not encrypted.

    Raises DecryptError when it was sealed to another device or for another bundle.
    """
    if not assignment.sealed_key:
        return None
    try:
        sealed = base64.b64decode(assignment.sealed_key, validate=True)
    except (binascii.Error, ValueError):
        raise DecryptError("the assignment's sealed key is not base64", "assign the release again") from None
    info = sealing.assignment_info(assignment.tenant, assignment.device, assignment.bundle_digest)
    return sealing.unseal(sealed, key, info)


def into_memory(opened: Bundle, entry: VariantEntry, content_key: bytes | None) -> Prepared:
    """Decrypt one variant. Raises DecryptError, DigestError, SystemFault (no memory)."""
    if opened.encrypted and content_key is None:
        raise DecryptError("the bundle is encrypted and no content key came", "assign the release again")
    files = memfd.create_all(opened.read(entry, content_key))
    try:
        golden = memfd.create_all(opened.read_golden(entry, content_key))
    except BaseException:
        memfd.close_all(list(files.values()))
        raise
    process.give_back_memory()  # what decrypting took
    return Prepared(opened.info.name, opened.info.version, entry, files, golden)


def variant_named(opened: Bundle, name: str) -> VariantEntry:
    """Raises FormatError when the bundle has no such variant."""
    for entry in opened.variants:
        if entry.config.variant == name:
            return entry
    raise FormatError(f"the bundle has no variant {name!r}")
