"""Counters of the serving process: per release, cumulative since it started, and as Prometheus text.

All of it is touched on the event loop only. Text format: Prometheus exposition format 0.0.4.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from edgekit.wire import LATENCY_BOUNDS_MS, METRICS
from edgekit_agent.messages import ReleaseStats

KEPT_RELEASES = 4


@dataclass
class Timing:
    """How often, and how long in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns


@dataclass
class Runs:
    """Engine runs of one size, and what was done before and after them."""

    input: Timing = field(default_factory=Timing)
    infer: Timing = field(default_factory=Timing)
    output: Timing = field(default_factory=Timing)


@dataclass
class Counters:
    """Of one release."""

    name: str = ""
    version: str = ""
    requests: int = 0
    errors: int = 0
    rejected: int = 0
    inferences: int = 0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS_MS) + 1))
    latency_sum_ms: float = 0.0
    classes: dict[str, int] = field(default_factory=dict)
    last_ms: int = 0
    """Unix time of the last success in milliseconds, as Triton's statistics report it."""
    success: Timing = field(default_factory=Timing)
    fail: Timing = field(default_factory=Timing)
    queue: Timing = field(default_factory=Timing)
    compute_input: Timing = field(default_factory=Timing)
    compute_infer: Timing = field(default_factory=Timing)
    compute_output: Timing = field(default_factory=Timing)
    runs: dict[int, Runs] = field(default_factory=dict)
    """Engine runs by their number of samples; requests that come together share one."""

    @property
    def release(self) -> str:
        return f"{self.name}:{self.version}" if self.name else ""

    def answered(self, status: int, latency_ns: int) -> None:
        """Count one answered inference request."""
        self.requests += 1
        if status >= 500:
            self.errors += 1
        elif status >= 400:
            self.rejected += 1
        else:
            latency_ms = latency_ns / 1e6
            self.buckets[bisect_left(LATENCY_BOUNDS_MS, latency_ms)] += 1
            self.latency_sum_ms += latency_ms
            self.success.add(latency_ns)
            return
        self.fail.add(latency_ns)

    def executed(self, samples: int, infer_ns: int, input_ns: int, output_ns: int) -> None:
        """Count one engine run, with the decoding and encoding of all its requests."""
        self.last_ms = int(time.time() * 1e3)
        runs = self.runs.get(samples)
        if runs is None:
            runs = self.runs[samples] = Runs()
        runs.infer.add(infer_ns)
        runs.input.add(input_ns)
        runs.output.add(output_ns)

    def stats(self) -> ReleaseStats:
        return ReleaseStats(
            release=self.release,
            requests=self.requests,
            errors=self.errors,
            rejected=self.rejected,
            inferences=self.inferences,
            latency_buckets=tuple(self.buckets),
            latency_sum_ms=self.latency_sum_ms,
            classes=dict(self.classes),
        )


class Ledger:
    """Counters of the current release and the last few before it. `nobody` counts while none is served."""

    def __init__(self) -> None:
        self.nobody = Counters()
        self._releases: dict[str, Counters] = {}

    def open(self, name: str, version: str) -> Counters:
        """The counters of a release, continued when it was served before."""
        counters = Counters(name, version)
        counters = self._releases.pop(counters.release, counters)
        self._releases[counters.release] = counters
        while len(self._releases) > KEPT_RELEASES:
            del self._releases[next(iter(self._releases))]
        return counters

    def __iter__(self) -> Iterator[Counters]:
        yield from self._releases.values()
        if self.nobody.requests:
            yield self.nobody


def exposition(ledger: Iterable[Counters], serving: dict[str, str], restarts: int, rss_mib: float) -> bytes:
    """Prometheus text. `serving`: labels of the release that answers now; empty when none does."""
    counters = list(ledger)
    series: dict[str, list[str]] = {
        "edgekit_requests_total": [_line("requests_total", c, c.requests) for c in counters],
        "edgekit_request_errors_total": [_line("request_errors_total", c, c.errors) for c in counters],
        "edgekit_rejected_total": [_line("rejected_total", c, c.rejected) for c in counters],
        "edgekit_inferences_total": [_line("inferences_total", c, c.inferences) for c in counters],
        "edgekit_latency_ms": [line for c in counters for line in _histogram(c)],
        "edgekit_serving_restarts_total": [f"edgekit_serving_restarts_total {restarts}"],
        "edgekit_rss_mib": [f"edgekit_rss_mib {rss_mib:.1f}"],
        "edgekit_release_info": [f"edgekit_release_info{_labels(serving)} 1"] if serving else [],
    }
    lines = []
    for info in METRICS:
        lines += [f"# HELP {info.name} {info.help}", f"# TYPE {info.name} {info.kind}", *series[info.name]]
    return ("\n".join(lines) + "\n").encode()


def _line(suffix: str, counters: Counters, value: float) -> str:
    return f"edgekit_{suffix}{_labels(_of(counters))} {value}"


def _histogram(counters: Counters) -> Iterator[str]:
    total = 0
    for bound, count in zip((*LATENCY_BOUNDS_MS, "+Inf"), counters.buckets, strict=True):
        total += count
        yield f"edgekit_latency_ms_bucket{_labels({**_of(counters), 'le': str(bound)})} {total}"
    yield _line("latency_ms_sum", counters, round(counters.latency_sum_ms, 6))
    yield _line("latency_ms_count", counters, total)


def _of(counters: Counters) -> dict[str, str]:
    return {"model": counters.name, "version": counters.version}


def _labels(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
