"""The deny-list: engine versions that are known to be wrong somewhere, with the evidence, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from edgekit import codec
from edgekit.bundle.model import EngineRange
from edgekit.bundle.selection import in_range, numbers

Value = str | int | float | bool
_FILE = Path(__file__).with_name("known_bad.toml")


@dataclass(frozen=True)
class KnownBad:
    """An empty condition holds for everything."""

    engine: str
    symptom: str
    evidence: str
    """Figures, and where it was seen; upstream's own numbers where there are some."""
    remedy: str
    minimum: str = ""
    """First bad version."""
    below: str = ""
    """First version after it that is good again."""
    architecture: str = ""
    lacks: tuple[str, ...] = ()
    """CPU features each of which makes it right."""
    cpus: tuple[str, ...] = ()
    """Names as `host.Host.cpu` and profiles have them, or an emulator's."""
    precisions: tuple[str, ...] = ()
    options: dict[str, Value] = field(default_factory=dict)
    """What the quantizer or the engine was told, e.g. reduce_range = false."""

    @property
    def reason(self) -> str:
        versions = f" from {self.minimum}" * bool(self.minimum) + f" below {self.below}" * bool(self.below)
        known = f"{self.engine}{versions} is known to be bad here: {self.symptom}"
        return f"{known} ({self.evidence.strip()}); {self.remedy}"


@dataclass(frozen=True)
class Place:
    """Where a variant would run."""

    architecture: str
    isa: tuple[str, ...]
    """As a profile or a host has them; "a|b" counts as both."""
    cpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """What would run."""

    engine: str
    precision: str
    options: Mapping[str, Value]
    """The quantizer's and the engine's."""


@dataclass(frozen=True)
class _File:
    entry: tuple[KnownBad, ...]


@cache
def entries() -> tuple[KnownBad, ...]:
    """All of them. Raises ConfigError when the file does not fit."""
    return codec.from_toml(_File, _FILE).entry


def of_version(made: Made, version: str, place: Place) -> KnownBad | None:
    """The entry that this very version falls under; None when there is none."""
    return _first(e for e in _that_fit(made, place) if in_range(version, _range(e)))


def of_range(made: Made, versions: EngineRange, place: Place) -> KnownBad | None:
    """The entry that every version in the range falls under; None when one of them may be good."""
    return _first(e for e in _that_fit(made, place) if _within(versions, _range(e)))


def _that_fit(made: Made, place: Place) -> Iterable[KnownBad]:
    features = {one for name in place.isa for one in name.split("|")}
    for entry in entries():
        told = {key: made.options.get(key) for key in entry.options}
        if (
            entry.engine == made.engine
            and entry.architecture in ("", place.architecture)
            and features.isdisjoint(entry.lacks)
            and (not entry.cpus or set(entry.cpus) & set(place.cpus))
            and (not entry.precisions or made.precision in entry.precisions)
            and told == entry.options
        ):
            yield entry


def _within(inner: EngineRange, outer: EngineRange) -> bool:
    starts = not outer.minimum or numbers(inner.minimum) >= numbers(outer.minimum)
    ends = not outer.below or (bool(inner.below) and numbers(inner.below) <= numbers(outer.below))
    return starts and ends


def _range(entry: KnownBad) -> EngineRange:
    return EngineRange(entry.engine, entry.minimum, entry.below)


def _first(found: Iterable[KnownBad]) -> KnownBad | None:
    return next(iter(found), None)
