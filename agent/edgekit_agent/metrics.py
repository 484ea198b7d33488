"""Counters of the serving process: per release, cumulative since it started.

All of it is touched on the event loop only; exposition.py shows it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgekit.catalogue import LATENCY_BOUNDS_MS
from edgekit_agent.messages import ReleaseStats
from edgekit_agent.serve.sketch import Sketch, largest

KEPT_RELEASES = 4


@dataclass
class Timing:
    """How often, and how long in total."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        self.count += count
        self.ns += ns

    @property
    def us(self) -> int:
        return self.ns // 1000


def _empty() -> list[int]:
    return [0] * (len(LATENCY_BOUNDS_MS) + 1)


@dataclass
class Histogram:
    """Durations by LATENCY_BOUNDS_MS; the last bucket is everything above."""

    buckets: list[int] = field(default_factory=_empty)
    sum_ms: float = 0.0


KINDS = {
    404: "unknown_model",
    413: "too_large",
    429: "overload",
    499: "canceled",
    503: "overload",
    504: "timeout",
}
"""Status of an answer to the kind of failure; other 4xx are the client's, other 5xx the engine's."""


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
    buckets: list[int] = field(default_factory=_empty)
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
    protocols: dict[str, Histogram] = field(default_factory=dict)
    """Successes by the protocol that they came in."""
    queued: Histogram = field(default_factory=Histogram)
    failures: dict[str, int] = field(default_factory=dict)
    """By kind."""
    runs: dict[int, Runs] = field(default_factory=dict)
    """Engine runs by their number of samples; requests that come together share one."""
    sketch: Sketch | None = None
    """None: there is nothing to hold requests against."""

    @property
    def release(self) -> str:
        return f"{self.name}:{self.version}" if self.name else ""

    def answered(self, status: int, latency_ns: int, protocol: str = "") -> None:
        """Count one answered inference request."""
        self.requests += 1
        if status >= 500:
            self.errors += 1
        elif status >= 400:
            self.rejected += 1
        else:
            latency_ms = latency_ns / 1e6
            bucket = bisect_left(LATENCY_BOUNDS_MS, latency_ms)
            self.buckets[bucket] += 1
            self.latency_sum_ms += latency_ms
            self.success.count += 1
            self.success.ns += latency_ns
            histogram = self.protocols.get(protocol)
            if histogram is None:
                histogram = self.protocols[protocol] = Histogram()
            histogram.buckets[bucket] += 1
            histogram.sum_ms += latency_ms
            return
        self.fail.add(latency_ns)
        kind = KINDS.get(status) or ("engine" if status >= 500 else "client")
        self.failures[kind] = self.failures.get(kind, 0) + 1

    def inferred(
        self, samples: int, waits_ns: Sequence[int], input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count successful requests: their samples, what each waited for the engine, and what all of them
        together took before, in and after it."""
        requests, buckets = len(waits_ns), self.queued.buckets
        waited_ns = 0
        for ns in waits_ns:
            waited_ns += ns
            buckets[bisect_left(LATENCY_BOUNDS_MS, ns / 1e6)] += 1
        self.inferences += samples
        self.queued.sum_ms += waited_ns / 1e6
        self.queue.add(waited_ns, requests)
        self.compute_input.add(input_ns, requests)
        self.compute_infer.add(infer_ns, requests)
        self.compute_output.add(output_ns, requests)

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
            sketched=self.sketch.rows if self.sketch else 0,
            input_psi=largest(self.sketch.inputs()) if self.sketch else None,
            output_psi=largest(self.sketch.outputs()) if self.sketch else None,
        )


class Ledger:
    """Counters of the current release and the last few before it. `nobody` counts while none is served."""

    def __init__(self) -> None:
        self.nobody = Counters()
        self._releases: dict[str, Counters] = {}

    def open(self, name: str, version: str, beside: int = 0) -> Counters:
        """The counters of a release, continued when it was served before. `beside`: others served."""
        counters = Counters(name, version)
        counters = self._releases.pop(counters.release, counters)
        self._releases[counters.release] = counters
        while len(self._releases) > KEPT_RELEASES + beside:
            del self._releases[next(iter(self._releases))]
        return counters

    def __iter__(self) -> Iterator[Counters]:
        yield from self._releases.values()
        if self.nobody.requests:
            yield self.nobody
