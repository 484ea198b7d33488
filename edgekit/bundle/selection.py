"""Which variant of a bundle is for this device."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from edgekit import host
from edgekit.bundle.contents import VariantEntry
from edgekit.bundle.model import EngineRange
from edgekit.errors import BundleError


def select(
    variants: Iterable[VariantEntry],
    profile_name: str,
    architecture: str,
    isa: Iterable[str],
    engines: Mapping[str, str],
    emulated: bool = False,
) -> list[VariantEntry]:
    """Variants that may run here, best first: those built for `profile_name`, then the most specific.

    `engines` are installed names and versions. `emulated`: this host stands in for a device of the
    profile, so the hardware of that profile's variants is not checked (the caller says so to people).
    Raises BundleError with the reason for each variant when none fits.
    """
    have = tuple(isa)
    fitting: list[VariantEntry] = []
    reasons: list[str] = []
    for entry in variants:
        config = entry.config
        stand_in = emulated and config.profile == profile_name
        lacks = [] if stand_in else host.unmet(config.architecture, config.isa, architecture, have)
        if engine := _engine_reason(config.engine, engines):
            lacks.append(engine)
        if lacks:
            reasons.append(f"{config.variant}: {', '.join(lacks)}")
        else:
            fitting.append(entry)
    if not fitting:
        raise BundleError(
            f"no variant fits this device (profile {profile_name}): {'; '.join(reasons)}",
            "build the bundle for this profile, or install the engine that is named",
        )
    # A stable sort: within a profile the builder's order, which is its order of preference, stays.
    return sorted(fitting, key=lambda entry: _distance(entry, profile_name))


def in_range(version: str, wanted: EngineRange) -> bool:
    """minimum <= version < below, comparing the leading numbers ("2025.2.0-19-abc" is 2025.2.0)."""
    have = numbers(version)
    return (not wanted.minimum or have >= numbers(wanted.minimum)) and (
        not wanted.below or have < numbers(wanted.below)
    )


def _engine_reason(wanted: EngineRange, engines: Mapping[str, str]) -> str:
    version = engines.get(wanted.name)
    if version is None:
        return f"engine {wanted.name} is not installed"
    if in_range(version, wanted):
        return ""
    bounds = [f">= {wanted.minimum}"] * bool(wanted.minimum) + [f"< {wanted.below}"] * bool(wanted.below)
    return f"needs {wanted.name} {' and '.join(bounds)}, installed is {version}"


def numbers(version: str) -> tuple[int, ...]:
    """Leading numbers without trailing zeros, so that 1.20 equals 1.20.0."""
    leading = re.match(r"\d{1,9}(?:\.\d{1,9})*", version)
    numbers = [int(part) for part in leading[0].split(".")] if leading else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _distance(entry: VariantEntry, profile_name: str) -> tuple[bool, bool, int]:
    config = entry.config
    return config.profile != profile_name, config.architecture == "any", -len(config.isa)
