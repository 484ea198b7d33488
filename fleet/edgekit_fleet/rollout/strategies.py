"""What a rollout does: its phases, limits and gates; and which device falls into which phase.

A strategy is data (TOML or JSON). A phase takes some of the devices that no earlier phase took, in
a fixed order: by SHA-256 of the device id, so that the same fleet always gets the same canary and
a canary is not just the alphabet's beginning. `where` narrows a phase to devices of one kind.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from edgekit.errors import ConfigError
from edgekit_fleet.rollout.query import Target, compile_query

REST = "rest"
MAX_PHASES = 100
_SIZE = re.compile(r"[0-9]{1,9}|[0-9]{1,3}(\.[0-9]{1,6})?%|rest")


class OnSuccess(StrEnum):
    NEXTGROUP = "NEXTGROUP"
    PAUSE = "PAUSE"


class OnError(StrEnum):
    ROLLBACK = "ROLLBACK"
    PAUSE = "PAUSE"


@dataclass(frozen=True)
class Phase:
    """One group of devices and when it counts as good or bad."""

    name: str
    size: str = REST
    """ "3" devices, "25%" of all targets (rounded up), or "rest"."""
    where: str = ""
    """Narrows this phase with a target query."""
    success: float = 100.0
    """Percent of the group's devices that must succeed before it soaks."""
    errors: int | None = None
    """More failed devices than this end the group in ERROR; None with `errors_percent` None: 0."""
    errors_percent: float | None = None
    """The same as percent of the group; as percent of the executed ones from `min_executed` on."""
    min_executed: int = 0
    """From this many finished devices on, `errors_percent` is judged over those; 0: never early."""
    soak_s: float = 0.0
    """How long the gates watch the group after its success threshold."""
    deadline_s: float = 600.0
    """From notification to the job's end; a device that is away so long is TIMED_OUT."""
    on_success: OnSuccess = OnSuccess.NEXTGROUP
    on_error: OnError = OnError.ROLLBACK


@dataclass(frozen=True)
class Gates:
    """Live metrics while a group soaks, per profile, against devices on another release."""

    alpha: float = 0.01
    """Chance that a good release is stopped by chance, over all looks, profiles and tests."""
    looks: int = 4
    """How often during the soak time the tests look at the data."""
    min_requests: int = 30
    """Fewer requests on either side: that comparison is not made."""
    error_rate_increase: float = 0.01
    """A significantly higher error rate is tolerated up to this difference (0.01: one point)."""
    latency_ratio: float = 1.5
    """p95 may grow to this multiple of the old release's."""
    max_error_rate: float = 0.2
    """No group may exceed this, whatever the others do."""
    max_restarts: int | None = None
    """Restarts of the serving process per device since the rollout began; None: not judged."""


@dataclass(frozen=True)
class Strategy:
    phases: tuple[Phase, ...] = (
        Phase("canary", size="1", soak_s=60.0),
        Phase("fleet", size=REST, errors_percent=10.0, soak_s=60.0),
    )
    gates: Gates = field(default_factory=Gates)
    watch_s: float = 5.0
    """How long a device watches itself after its swap."""
    max_error_rate: float = 0.05
    """On the device, within `watch_s`: above it the device rolls back by itself."""
    max_latency_p95_ms: float = 0.0
    """On the device, within `watch_s`; 0: no limit."""
    approval: bool = False
    """Wait for a person before the first device is told."""


def validate(strategy: Strategy) -> Strategy:
    """`strategy` itself, or ConfigError naming the phase and the field."""
    phases = strategy.phases
    if not 1 <= len(phases) <= MAX_PHASES:
        raise ConfigError(f"strategy: {len(phases)} phases", f"give 1 to {MAX_PHASES} phases")
    names = [phase.name for phase in phases]
    for phase in phases:
        _validate_phase(phase)
        if names.count(phase.name) > 1:
            raise ConfigError(f"strategy: two phases are named {phase.name!r}", "name each phase differently")
    gates = strategy.gates
    if not 0 < gates.alpha < 0.5:
        raise ConfigError(f"gates: alpha is {gates.alpha:g}", "choose it between 0 and 0.5, e.g. 0.01")
    _at_least("gates", "looks", gates.looks, 1)
    _at_least("gates", "min_requests", gates.min_requests, 1)
    _at_least("gates", "latency_ratio", gates.latency_ratio, 1.0)
    _within("gates", "error_rate_increase", gates.error_rate_increase, 1.0)
    _within("gates", "max_error_rate", gates.max_error_rate, 1.0)
    _within("strategy", "max_error_rate", strategy.max_error_rate, 1.0)
    _at_least("strategy", "watch_s", strategy.watch_s, 0.0)
    _at_least("strategy", "max_latency_p95_ms", strategy.max_latency_p95_ms, 0.0)
    return strategy


def _validate_phase(phase: Phase) -> None:
    what = f"phase {phase.name!r}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]{0,39}", phase.name):
        raise ConfigError(f"{what}: not a name", "use up to 40 letters, digits, dots, dashes")
    if not _SIZE.fullmatch(phase.size):
        raise ConfigError(f"{what}: size {phase.size!r}", 'write a number ("1"), a share ("25%") or "rest"')
    if phase.size.endswith("%"):
        _within(what, "size", float(phase.size[:-1]), 100.0)
    compile_query(phase.where)
    _within(what, "success", phase.success, 100.0)
    _within(what, "errors_percent", phase.errors_percent or 0.0, 100.0)
    _at_least(what, "errors", phase.errors or 0, 0)
    _at_least(what, "min_executed", phase.min_executed, 0)
    _at_least(what, "soak", phase.soak_s, 0.0)
    if not 0 < phase.deadline_s < 1e9:
        raise ConfigError(f"{what}: deadline is {phase.deadline_s:g}", "give seconds above 0")


def _within(what: str, name: str, value: float, top: float) -> None:
    if not 0 <= value <= top:
        raise ConfigError(f"{what}: {name} is {value:g}", f"choose it between 0 and {top:g}")


def _at_least(what: str, name: str, value: float, low: float) -> None:
    if not low <= value < math.inf:
        raise ConfigError(f"{what}: {name} is {value:g}", f"choose {low:g} or more")


def order(devices: Sequence[Target]) -> list[Target]:
    """The fixed order in which phases take devices."""
    return sorted(devices, key=lambda device: hashlib.sha256(device.id.encode()).digest())


def plan(strategy: Strategy, targets: Sequence[Target]) -> list[list[str]]:
    """Device ids per phase; every target is in exactly one phase, or in none when no phase has room.

    A phase that nobody fits is empty. Shares are of all targets, rounded up.
    """
    left = order(targets)
    groups = []
    for phase in strategy.phases:
        fits = compile_query(phase.where)
        wanted = _wanted(phase.size, len(targets))
        chosen = [device for device in left if fits(device)][:wanted]
        groups.append([device.id for device in chosen])
        gone = set(groups[-1])
        left = [device for device in left if device.id not in gone]
    return groups


def _wanted(size: str, total: int) -> int:
    if size == REST:
        return total
    # 1e-9: 7 % of 100 is 7.000000000000001 in binary floating point, not a reason for an eighth device.
    return math.ceil(total * float(size[:-1]) / 100 - 1e-9) if size.endswith("%") else int(size)
