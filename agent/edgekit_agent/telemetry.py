"""Telemetry windows: differences of the serving process's counters, merged when they pile up offline."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from edgekit import wire
from edgekit.wire import LATENCY_BOUNDS_MS, Telemetry
from edgekit_agent.messages import ReleaseStats, Stats
from edgekit_agent.store import Store

GAUGES = frozenset(metric.name for metric in wire.METRICS if metric.kind == "gauge")
MERGE_UP_TO = 60
"""Windows that one merged window may stand for, while there is a choice."""
CANDIDATES = 64
RESTARTS = "edgekit_serving_restarts_total"
RSS = "edgekit_rss_mib"
INFO = "edgekit_release_info"
LATENCY_SUM = "edgekit_latency_ms_sum"
INPUT_PSI, OUTPUT_PSI = "edgekit_input_drift_psi", "edgekit_output_drift_psi"
_EMPTY = (0,) * (len(LATENCY_BOUNDS_MS) + 1)


@dataclasses.dataclass(frozen=True)
class Counters:
    """What was counted; totals by their names in wire.METRICS."""

    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    latency_buckets: tuple[int, ...] = _EMPTY
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def counters(stats: ReleaseStats) -> Counters:
    """One release's totals since its serving process started."""
    values = {
        "edgekit_requests_total": float(stats.requests),
        "edgekit_request_errors_total": float(stats.errors),
        "edgekit_rejected_total": float(stats.rejected),
        "edgekit_inferences_total": float(stats.inferences),
        LATENCY_SUM: stats.latency_sum_ms,
    }
    if stats.sketched:
        values["edgekit_drift_samples_total"] = float(stats.sketched)
    return Counters(values, stats.latency_buckets, stats.classes)


def drift(stats: ReleaseStats) -> dict[str, float]:
    """Gauges, where enough was seen."""
    found = {INPUT_PSI: stats.input_psi, OUTPUT_PSI: stats.output_psi}
    return {name: value for name, value in found.items() if value is not None}


def difference(before: Counters, after: Counters) -> Counters:
    """What happened between two readings of one process."""
    values = {name: value - before.values.get(name, 0.0) for name, value in after.values.items()}
    buckets = zip(before.latency_buckets, after.latency_buckets, strict=True)
    classes = {label: count - before.classes.get(label, 0) for label, count in after.classes.items()}
    return Counters(
        values, tuple(new - old for old, new in buckets), {k: n for k, n in classes.items() if n > 0}
    )


class Readings:
    """Remembers the last reading of every release."""

    def __init__(self) -> None:
        self._last: dict[str, Counters] = {}
        self._restarts = 0
        self._uptime_s = 0.0

    def advance(self, stats: Stats, restarts: int) -> list[tuple[Counters, str]]:
        """(what happened, release) since the last call, for releases with traffic and the one that serves."""
        if stats.uptime_s < self._uptime_s or restarts != self._restarts:
            self._last.clear()  # another process, which counts from zero
        came_back = float(restarts - self._restarts)
        self._restarts, self._uptime_s = restarts, stats.uptime_s
        found = []
        for one in stats.releases:
            now = counters(one)
            seen = difference(self._last.get(one.release, Counters()), now)
            self._last[one.release] = now
            serving = one.release == stats.serving
            if serving or seen.values["edgekit_requests_total"]:
                extra = {RESTARTS: came_back * serving, RSS: stats.rss_mib, INFO: float(serving)}
                extra |= drift(one) if serving else {}
                found.append((dataclasses.replace(seen, values={**seen.values, **extra}), one.release))
        return found


def merge(first: Telemetry, second: Telemetry) -> Telemetry:
    """One window for two consecutive ones: sums, the later gauges, the later sequence number."""
    values = dict(first.values)
    for name, value in second.values.items():
        values[name] = value if name in GAUGES else values.get(name, 0.0) + value
    old, new = first.latency_buckets or _EMPTY, second.latency_buckets or _EMPTY
    classes = dict(first.classes)
    for label, count in second.classes.items():
        classes[label] = classes.get(label, 0) + count
    return dataclasses.replace(
        second,
        start=first.start,
        window_s=first.window_s + second.window_s,
        windows=first.windows + second.windows,
        values=values,
        latency_buckets=tuple(a + b for a, b in zip(old, new, strict=True)),
        classes=classes,
    )


def keep(store: Store, window: Telemetry, max_windows: int) -> None:
    """Add a window; while there are too many, merge two neighbours among the oldest.

    Windows of different releases are merged only when nothing else is left. What was sent and not yet
    acknowledged is not touched, so that the fleet never counts a window twice.
    """
    with store.transaction():
        store.add_window(window)
        while store.count_windows() > max_windows:
            oldest = store.windows(CANDIDATES, unsent=True)
            pairs = list(itertools.pairwise(oldest))
            if not pairs:
                return
            chosen = next((pair for pair in pairs if _alike(pair[0][1], pair[1][1])), pairs[0])
            (first_id, first), (second_id, second) = chosen
            store.replace_windows([first_id, second_id], merge(first, second))


def _alike(first: Telemetry, second: Telemetry) -> bool:
    same = (first.release, first.boot) == (second.release, second.boot)
    return same and first.windows + second.windows <= MERGE_UP_TO


def window(counted: Counters, *, boot: str, seq: int, window_s: float, release: str) -> Telemetry:
    """A message from one difference. Its start is by this device's clock, which may be wrong."""
    start = datetime.now(UTC) - timedelta(seconds=window_s)
    return Telemetry(
        boot=boot,
        seq=seq,
        start=start.isoformat(timespec="milliseconds"),
        window_s=window_s,
        windows=1,
        values=dict(counted.values),
        latency_buckets=counted.latency_buckets,
        classes=dict(counted.classes),
        release=release,
    )
