"""Device profiles: what a kind of device is, what it runs and what it may cost.

A profile is data: `device-profiles/<name>.toml`, or a file path given instead of a name.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgekit import codec
from edgekit.errors import ProfileError


@dataclass(frozen=True)
class Hardware:
    architecture: str
    """As `uname -m` says: x86_64, aarch64, armv7l."""
    isa: tuple[str, ...]
    """CPU features as /proc/cpuinfo names them: avx512_vnni, asimddp, neon ..."""
    cores: int
    ram_mib: int
    storage_mib: int
    accelerators: tuple[str, ...] = ()
    cpu: str = ""
    detect: tuple[str, ...] = ()
    """Substrings of the board's model name (/proc/device-tree/model) that identify this device."""


@dataclass(frozen=True)
class Target:
    """One engine the device can run; targets are listed in order of preference."""

    runtime: str
    precisions: tuple[str, ...]
    """Wanted precisions: fp32, fp16, int8 (static), int8-dynamic."""
    minimum: str = ""
    below: str = ""
    activation: str = "s8"
    """Signedness of int8 activations: u8 where VNNI makes u8*s8 exact and fast, s8 elsewhere."""
    reduce_range: bool = False
    """7-bit weights, for x86 without VNNI where u8*s8 saturates."""
    options: dict[str, str | int | float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What a variant may cost; a gate fails above it. 0 means no limit."""

    accuracy_ratio: float = 0.99
    """Accuracy of a variant over accuracy of fp32 must reach this (MLPerf's rule)."""
    error_growth: float = 0.10
    """Errors may grow by this share beyond the confidence interval."""
    min_speedup: float = 1.0
    """Against fp32 on the same engine; 0 when size is the goal."""
    latency_p95_ms: float = 0.0
    peak_rss_mib: float = 0.0
    bundle_mib: float = 0.0
    min_coverage: float = 0.0
    """Share of nodes that must run on the wanted compute unit."""


@dataclass(frozen=True)
class CalibrationPolicy:
    samples: int = 200
    method: str = "minmax"


@dataclass(frozen=True)
class Security:
    encrypt: bool = True


@dataclass(frozen=True)
class Verify:
    golden_samples: int = 16
    max_abs_difference: float = 0.05
    min_reference_agreement: float = 0.75


@dataclass(frozen=True)
class Profile:
    name: str
    description: str
    hardware: Hardware
    target: tuple[Target, ...]
    aliases: tuple[str, ...] = ()
    budget: Budget = field(default_factory=Budget)
    calibration: CalibrationPolicy = field(default_factory=CalibrationPolicy)
    security: Security = field(default_factory=Security)
    verify: Verify = field(default_factory=Verify)


def folder() -> Path:
    """Where the profiles lie: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).parent
    inside = here / "device-profiles"
    return inside if inside.is_dir() else here.parent / "device-profiles"


@cache
def all_profiles() -> dict[str, Profile]:
    """Every shipped profile by name. Raises ProfileError for a file that does not fit the schema."""
    profiles = {path.stem: read(path) for path in sorted(folder().glob("*.toml"))}
    for stem, profile in profiles.items():
        if profile.name != stem:
            raise ProfileError(
                f"{stem}.toml: its name is {profile.name!r}", "name the file after the profile"
            )
    return profiles


def read(path: Path) -> Profile:
    """A profile from a TOML file."""
    return codec.from_toml(Profile, path, error=ProfileError)


def get(name: str) -> Profile:
    """The profile with this name, alias or file path.

    Raises ProfileError; the hint names the nearest profile.
    """
    if name.endswith(".toml") or "/" in name:
        return read(Path(name))
    profiles = all_profiles()
    by_name = {alias: p for p in profiles.values() for alias in (p.name, *p.aliases)}
    if name in by_name:
        return by_name[name]
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ProfileError(f"unknown profile {name!r}", f"{hint}`edgekit profile list` shows all")
