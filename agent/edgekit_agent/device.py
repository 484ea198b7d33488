"""What this device is: profile, processor, installed engines."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from edgekit import host, profile, runtimes
from edgekit.errors import ProfileError
from edgekit_agent import launch
from edgekit_agent.config import DeviceSection


@dataclass(frozen=True)
class Device:
    id: str
    tenant: str
    profile: str
    emulated: bool
    architecture: str
    isa: tuple[str, ...]
    engines: dict[str, str]
    """Engine name to installed version."""
    cpu: str = ""


def describe(section: DeviceSection, wanted: Collection[str] | None = None) -> Device:
    """This device; of its engines only those that are `wanted`: looking for one takes a while.

    Raises ProfileError: unknown profile, or hardware that is not the profile's; SystemFault.
    """
    machine = host.read()
    known = profile.detect(machine) if section.profile == "auto" else profile.get(section.profile)
    lacking = profile.unmet_by(known, machine)
    if lacking and not section.emulated:
        raise ProfileError(
            f"this machine is not a {known.name}: {', '.join(lacking)}",
            "choose another profile, or --emulated to let this machine stand for it",
        )
    return Device(
        id=section.id,
        tenant=section.tenant,
        profile=known.name,
        emulated=section.emulated,
        architecture=machine.architecture,
        isa=machine.isa,
        engines=engines(wanted),
        cpu=machine.cpu,
    )


def engines(wanted: Collection[str] | None = None) -> dict[str, str]:
    """Installed engines and their versions."""
    return launch.survey([name for name in runtimes.names() if wanted is None or name in wanted])
