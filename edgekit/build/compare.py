"""Two bundles or two build reports side by side, profile by profile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgekit import bundle
from edgekit.build.reporting import document
from edgekit.bundle.model import Interval


@dataclass(frozen=True)
class Item:
    """What ships for one profile, as far as its source tells. Digests are of plaintext."""

    profile: str
    variant: str
    engine: str
    precision: str
    metric: str
    accuracy: Interval
    samples: int
    latency_p50_ms: float
    latency_p95_ms: float
    peak_rss_mib: float
    size_bytes: int
    failed_gates: tuple[str, ...] = ()
    dataset_sha256: str = ""
    source_sha256: str = ""
    host_cpu: str = ""
    files: Mapping[str, str] | None = None
    """File name to SHA-256; None where the source does not tell (a report)."""


@dataclass(frozen=True)
class Side:
    """One of the two."""

    name: str
    release: str
    digest: str
    signed_by: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Figure:
    """One line of a comparison; `ratio` is second over first (0 where it has no meaning)."""

    name: str
    first: float
    second: float
    ratio: float


@dataclass(frozen=True)
class Pair:
    """A profile's two variants. One of them is None when only one side has the profile."""

    profile: str
    first: Item | None
    second: Item | None
    accuracy_change: float = 0.0
    beyond_intervals: bool = False
    """The 95 % intervals do not overlap: more than chance. Overlapping ones do not prove equality."""
    figures: tuple[Figure, ...] = ()
    files_added: tuple[str, ...] = ()
    files_removed: tuple[str, ...] = ()
    files_changed: tuple[str, ...] = ()
    same_files: bool = False
    caveats: tuple[str, ...] = ()
    """Why figures of the two should not be held against each other."""


@dataclass(frozen=True)
class Comparison:
    first: Side
    second: Side
    same_signer: bool
    pairs: tuple[Pair, ...] = field(default_factory=tuple)


def of_bundle(name: str, opened: bundle.Bundle) -> Side:
    """What a verified bundle says; no recipient's key is needed."""
    items = tuple(_of_entry(entry) for entry in opened.variants)
    return Side(name, f"{opened.info.name} {opened.info.version}", opened.digest, opened.key_id, items)


def of_report(name: str, plain: Mapping[str, Any]) -> Side:
    """What a build's JSON report says. Raises InputError when it is none."""
    report = document.parse(plain, name)
    metric = report.metric.name
    items = tuple(_of_candidate(c, c.figures, metric) for c in report.candidates if c.kept and c.figures)
    return Side(name, "", report.digest, "", items)


def compare(first: Side, second: Side) -> Comparison:
    """Match by profile, in the first side's order, then what only the second has."""
    left, right = _by_profile(first.items), _by_profile(second.items)
    pairs = tuple(_pair(profile, left.get(profile), right.get(profile)) for profile in {**left, **right})
    return Comparison(first, second, first.signed_by == second.signed_by, pairs)


def _by_profile(items: Iterable[Item]) -> dict[str, Item]:
    """By profile; a second variant of a profile by its own name too, so that none is lost."""
    found: dict[str, Item] = {}
    for item in items:
        found[item.profile if item.profile not in found else item.variant] = item
    return found


def _pair(profile: str, a: Item | None, b: Item | None) -> Pair:
    if a is None or b is None:
        return Pair(profile, a, b)
    figures = tuple(
        Figure(name, x, y, y / x if x > 0 else 0.0)
        for name, x, y in (
            ("latency_p50_ms", a.latency_p50_ms, b.latency_p50_ms),
            ("latency_p95_ms", a.latency_p95_ms, b.latency_p95_ms),
            ("peak_rss_mib", a.peak_rss_mib, b.peak_rss_mib),
            ("size_bytes", float(a.size_bytes), float(b.size_bytes)),
        )
    )
    known = a.files is not None and b.files is not None
    old, new = a.files or {}, b.files or {}
    return Pair(
        profile,
        a,
        b,
        accuracy_change=b.accuracy.value - a.accuracy.value,
        beyond_intervals=a.accuracy.high < b.accuracy.low or b.accuracy.high < a.accuracy.low,
        figures=figures,
        files_added=tuple(sorted(new.keys() - old.keys())) if known else (),
        files_removed=tuple(sorted(old.keys() - new.keys())) if known else (),
        files_changed=tuple(sorted(n for n in old.keys() & new.keys() if old[n] != new[n])) if known else (),
        same_files=known and old == new,
        caveats=tuple(_caveats(a, b)),
    )


def _caveats(a: Item, b: Item) -> Sequence[str]:
    found = []
    if a.metric != b.metric:
        found.append(f"different metrics: {a.metric} and {b.metric}")
    if a.dataset_sha256 != b.dataset_sha256:
        found.append("evaluated on different data: the accuracies are not of the same questions")
    if a.source_sha256 != b.source_sha256:
        found.append("made from different source models")
    if a.host_cpu != b.host_cpu:
        found.append("timed on different CPUs: the latencies are not of the same machine")
    return found


def _of_entry(entry: bundle.VariantEntry) -> Item:
    config, c = entry.config, entry.certificate
    return Item(
        profile=config.profile,
        variant=config.variant,
        engine=f"{c.engine} {c.engine_version}",
        precision=config.precision,
        metric=c.metric,
        accuracy=c.accuracy,
        samples=c.samples,
        latency_p50_ms=c.latency.p50_ms,
        latency_p95_ms=c.latency.p95_ms,
        peak_rss_mib=c.peak_rss_mib,
        size_bytes=c.size_bytes,
        failed_gates=tuple(gate.gate for gate in c.gates if not gate.passed),
        dataset_sha256=c.dataset_sha256,
        source_sha256=c.source_sha256,
        host_cpu=c.host_cpu,
        files={blob.name: blob.plaintext_sha256 for blob in entry.blobs},
    )


def _of_candidate(c: document.Candidate, f: document.Figures, metric: str) -> Item:
    return Item(
        profile=c.profile,
        variant=f"{c.profile}.{c.name}",
        engine=c.engine,
        precision=c.precision,
        metric=metric,
        accuracy=Interval(f.accuracy.value, f.accuracy.low, f.accuracy.high),
        samples=f.samples,
        latency_p50_ms=f.latency.p50_ms,
        latency_p95_ms=f.latency.p95_ms,
        peak_rss_mib=f.peak_rss_mib,
        size_bytes=f.size_bytes,
        failed_gates=tuple(gate.gate for gate in c.gates if not gate.passed),
    )
