"""Windows are differences; merged they keep every count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgekit.wire import LATENCY_BOUNDS_MS, Telemetry
from edgekit_agent.messages import ReleaseStats, Stats
from edgekit_agent.store import Store
from edgekit_agent.telemetry import INPUT_PSI, OUTPUT_PSI, Readings, keep, merge

REQUESTS = "edgekit_requests_total"
WIDTH = len(LATENCY_BOUNDS_MS) + 1


def stats(requests: int, *, release: str = "m:1", uptime_s: float = 1.0) -> Stats:
    one = ReleaseStats(
        release, requests, 1, 0, requests, (requests, *(0,) * (WIDTH - 1)), 2.0, {"yes": requests}
    )
    return Stats(1, release, 12.0, 0, 0, uptime_s, (one,))


def window(seq: int, requests: int, release: str = "m:1") -> Telemetry:
    return Telemetry(
        "boot", seq, f"t{seq}", 1.0, 1, {REQUESTS: float(requests), "edgekit_rss_mib": float(seq)},
        (requests, *(0,) * (WIDTH - 1)), {"yes": requests}, release,
    )  # fmt: skip


def test_differences() -> None:
    readings = Readings()
    ((first, release),) = readings.advance(stats(5), 0)
    assert (first.values[REQUESTS], release) == (5, "m:1")
    ((second, _),) = readings.advance(stats(8, uptime_s=2.0), 0)
    assert (second.values[REQUESTS], second.latency_buckets[0], second.classes) == (3, 3, {"yes": 3})
    # A process that was started again counts from zero.
    ((third, _),) = readings.advance(stats(2, uptime_s=0.5), 1)
    assert (third.values[REQUESTS], third.values["edgekit_serving_restarts_total"]) == (2, 1)


def test_drift_is_told_of_the_release_that_serves_and_once_it_is_known() -> None:
    readings = Readings()
    told = []
    for sketched, psi in ((100, None), (600, 0.02), (700, 0.31)):
        one = dataclasses.replace(stats(5).releases[0], sketched=sketched, input_psi=psi, output_psi=psi)
        old = dataclasses.replace(one, release="m:0")
        read = dataclasses.replace(stats(5, uptime_s=float(sketched)), releases=(old, one))
        told.append({release: counted.values for counted, release in readings.advance(read, 0)})
    first, second, third = (values["m:1"] for values in told)
    assert INPUT_PSI not in first and INPUT_PSI not in told[0]["m:0"]
    assert [values["edgekit_drift_samples_total"] for values in (first, second, third)] == [100, 500, 100]
    assert (second[INPUT_PSI], third[INPUT_PSI], third[OUTPUT_PSI]) == (0.02, 0.31, 0.31)
    windows = [
        dataclasses.replace(window(n, 1), values=dict(one)) for n, one in enumerate((second, third, first))
    ]
    merged = merge(merge(windows[0], windows[1]), windows[2])
    assert merged.values[INPUT_PSI] == 0.31 and merged.values["edgekit_drift_samples_total"] == 700


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8))
def test_merging_keeps_every_count(requests: list[int]) -> None:
    windows = [window(n, count) for n, count in enumerate(requests)]
    merged = windows[0]
    for one in windows[1:]:
        merged = merge(merged, one)
    assert merged.values[REQUESTS] == sum(requests) == merged.latency_buckets[0] == merged.classes["yes"]
    assert (merged.start, merged.seq, merged.windows) == ("t0", len(windows) - 1, len(windows))
    assert merged.values["edgekit_rss_mib"] == len(windows) - 1


def test_bounded_and_oldest_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seq in range(1, 101):
        keep(store, window(seq, 1), 10)
    kept = [one for _, one in store.windows(100)]
    assert len(kept) == 10
    assert sum(one.values[REQUESTS] for one in kept) == 100
    assert kept[-1].windows == 1 and kept[0].windows > 1
    assert [one.seq for one in kept] == sorted(one.seq for one in kept)


def test_what_was_sent_is_not_merged(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seq in (1, 2):
        keep(store, window(seq, 1), 4)
    store.mark_sent([row for row, _ in store.windows(2)])
    for seq in range(3, 12):
        keep(store, window(seq, 1), 4)
    kept = [one for _, one in store.windows(100)]
    assert [one.seq for one in kept[:2]] == [1, 2] and all(one.windows == 1 for one in kept[:2])
    store.acknowledge_window("boot", 1)
    assert store.count_windows() == 3
