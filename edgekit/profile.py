"""Device profiles: what a kind of device is, what it runs and what it may cost.

A profile is data: `device-profiles/<name>.toml`, or a file path given instead of a name.
docs/profiles.md describes every field; `device-profiles/schema.json` is the same for editors.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from edgekit import codec
from edgekit.errors import ProfileError
from edgekit.host import ISA_FEATURES, Host, unmet

Precision = Literal["fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "int4-weights", "int16x8"]
"""int8: static, activations calibrated; int8-dynamic: activations at run time; *-weights: weights only,
arithmetic in floating point; int16x8: 16-bit activations, 8-bit weights."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Hardware:
    architecture: str
    """As `uname -m` says: x86_64, aarch64, armv7l; or any."""
    isa: tuple[str, ...]
    """CPU features as /proc/cpuinfo names them (`host.ISA_FEATURES`), all of them required; "a|b" is met by
    either: "avx512_vnni|avx_vnni". Compare with `host.unmet`."""
    cores: int
    ram_mib: int
    storage_mib: int
    accelerators: tuple[str, ...] = ()
    cpu: str = ""
    clock_ghz: float = 0.0
    """Sustained clock of one core, for latency forecasts; 0: unknown."""
    detect: tuple[str, ...] = ()
    """Substrings of the board's model name (/proc/device-tree/model) that identify this device."""
    emulate: str = ""
    """QEMU's name of the CPU that stands for this one with `edgekit build --emulate`, e.g. "cortex-a72";
    empty: none can."""


@dataclass(frozen=True)
class Target:
    """One engine the device can run; targets are listed in order of preference."""

    runtime: str
    precisions: tuple[Precision, ...]
    """Wanted precisions, in order of preference."""
    minimum: str = ""
    """First engine version that may serve; the versions before it are known to be wrong or untested."""
    below: str = ""
    """First engine version that may not; empty: no limit."""
    activation: Literal["s8", "u8"] = "s8"
    """Signedness of int8 activations: u8 where VNNI makes u8*s8 exact and fast, s8 elsewhere."""
    format: Literal["onnx", "ort"] = "onnx"
    """For onnxruntime: "ort" where the device has a reduced build without the ONNX parser."""
    reduce_range: bool = False
    """7-bit weights, for x86 without VNNI where u8*s8 saturates."""
    unit: str = ""
    """Compute unit, as the engine's coverage names it, that `budget.min_coverage` is about, e.g.
    "TensorrtExecutionProvider" or "CPU/i8"; empty: the busiest one."""
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
    method: Literal["minmax", "percentile", "entropy"] = "minmax"


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
    names = [name for profile in profiles.values() for name in (profile.name, *profile.aliases)]
    for name in names:
        if names.count(name) > 1:
            raise ProfileError(f"two profiles are called {name!r}", f"see {folder()}")
    return profiles


def read(path: Path) -> Profile:
    """A profile from a TOML file. Raises ProfileError naming the file and the field."""
    profile = codec.from_toml(Profile, path, error=ProfileError)
    for problem, hint in _problems(profile):
        raise ProfileError(f"{path}: {problem}", hint)
    return profile


def get(name: str) -> Profile:
    """The profile with this name, alias or file path. Raises ProfileError."""
    return read(path_of(name))


def path_of(name: str) -> Path:
    """The file of the profile with this name or alias; a file path stands for itself.

    Raises ProfileError; the hint names the nearest profile.
    """
    if name.endswith(".toml") or "/" in name:
        return Path(name)
    by_name = {alias: p for p in all_profiles().values() for alias in (p.name, *p.aliases)}
    if name in by_name:
        return folder() / f"{by_name[name].name}.toml"
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ProfileError(f"unknown profile {name!r}", f"{hint}`edgekit profile list` shows all")


def detect(host: Host) -> Profile:
    """The shipped profile that describes `host` best.

    A profile that names boards needs one of its names in the board's model; the others are chosen by
    instruction set, the most demanding first; generic-cpu fits all.
    """
    fitting = [p for p in all_profiles().values() if not unmet_by(p, host)]
    named = [p for p in fitting if any(part in host.board for part in p.hardware.detect)]
    by_isa = sorted(
        (p for p in fitting if not p.hardware.detect),
        key=lambda p: (p.hardware.architecture != "any", len(p.hardware.isa), "vnni" in str(p.hardware.isa)),
    )
    return named[0] if named else by_isa[-1]


def unmet_by(profile: Profile, host: Host) -> list[str]:
    """What `host` lacks of the profile's architecture and CPU features; empty when nothing."""
    return unmet(profile.hardware.architecture, profile.hardware.isa, host.architecture, host.isa)


def of_host(host: Host, base: Profile) -> Profile:
    """A profile of exactly this machine, with the engines and budgets of `base`."""
    slug = re.sub(r"[^a-z0-9]+", "-", (host.board or host.cpu).lower()).strip("-") or "this-machine"
    hardware = dataclasses.replace(
        base.hardware,
        architecture=host.architecture,
        isa=host.isa,
        cores=host.cores or base.hardware.cores,
        ram_mib=host.ram_mib or base.hardware.ram_mib,
        storage_mib=host.storage_mib or base.hardware.storage_mib,
        cpu=host.cpu,
        detect=(host.board,) if host.board else (),
    )
    description = f"{host.board or host.cpu or host.architecture}, detected; based on {base.name}"
    return dataclasses.replace(base, name=slug, aliases=(), description=description, hardware=hardware)


def _problems(profile: Profile) -> Iterator[tuple[str, str]]:
    """What the types cannot say, as (problem, hint)."""
    names = [profile.name, *profile.aliases]
    if not all(re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", name) for name in names):
        yield f"bad name {names}", "use lower-case letters, digits and dashes"
    for feature in (name for item in profile.hardware.isa for name in item.split("|")):
        if feature not in ISA_FEATURES:
            near = difflib.get_close_matches(feature, ISA_FEATURES, n=1, cutoff=0.4)
            yield f"hardware.isa: unknown feature {feature!r}", f"did you mean {near[0]!r}?" if near else ""
    sizes = ("cores", "ram_mib", "storage_mib")
    for name in sizes:
        if getattr(profile.hardware, name) <= 0:
            yield f"hardware.{name} must be positive", ""
    if not profile.target:
        yield "no [[target]]", "name at least one engine"
    if profile.security.encrypt and any(target.options.get("cache") == "disk" for target in profile.target):
        yield (
            'target.options.cache = "disk" would put an encrypted model\'s weights on a disk',
            'use cache = "memory", or set security.encrypt = false',
        )
    budget = dataclasses.asdict(profile.budget)
    for name, value in budget.items():
        if value < 0 or (name in ("accuracy_ratio", "min_coverage") and value > 1):
            yield f"budget.{name} cannot be {value}", "a share lies between 0 and 1; 0 means no limit"
    if profile.calibration.samples <= 0 or profile.verify.golden_samples <= 0:
        yield "calibration.samples and verify.golden_samples must be positive", ""
    if not 0 <= profile.verify.min_reference_agreement <= 1 or profile.verify.max_abs_difference < 0:
        yield "verify: a tolerance is out of range", "the agreement is a share, the difference at least 0"
