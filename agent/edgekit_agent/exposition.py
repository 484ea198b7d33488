"""Everything that /metrics shows, as Prometheus text (exposition format 0.0.4).

Names are Triton's (nv_*) where the meaning is Triton's, so that its dashboards work; edgekit_* for the rest.
Source of the former: docs/user_guide/metrics.md of triton-inference-server/server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from edgekit.catalogue import LATENCY_BOUNDS_MS, METRICS
from edgekit_agent.board import Board
from edgekit_agent.metrics import Counters, Histogram
from edgekit_agent.serve.sketch import Shift

Labels = Mapping[str, str]
Shifted = tuple[Labels, Shift]
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Serving:
    """A release that answers now."""

    model: str
    version: str
    variant: str
    engine: str
    waiting: int = 0
    """Inference requests that have begun and are not answered."""
    loaded: bool = True
    """False: its memory is lent to others until the next request."""
    loads: int = 0
    """How often a request had to wait for that."""

    @property
    def name(self) -> Labels:
        return {"model": self.model, "version": self.version}


@dataclass(frozen=True)
class Process:
    """What the serving process knows of itself beside its counters."""

    restarts: int
    rss_mib: float
    connections: int = 0
    memory_budget_mib: float = 0.0


@dataclass(frozen=True)
class Family:
    """One metric: name, kind, help, and its samples as (suffix, labels, value)."""

    name: str
    kind: str
    help: str
    samples: Sequence[tuple[str, Labels, float]]


def text(
    counters: Iterable[Counters],
    serving: Sequence[Serving],
    process: Process,
    board: Board,
) -> bytes:
    """`serving`: what answers now, the device's release first."""
    known = list(counters)
    families = [
        *_catalogue(known, serving, process),
        *_detail(known, serving, process),
        *_triton(known, serving),
    ]
    families += _board(board)
    return ("\n".join(line for family in families for line in _lines(family)) + "\n").encode()


def _catalogue(counters: list[Counters], serving: Sequence[Serving], process: Process) -> Iterator[Family]:
    """The metrics that telemetry carries as well; catalogue.METRICS says what they mean. Drift is shown of
    the release that answers now: of another one it would stay what it was."""
    inputs, outputs = _shifts(counters, serving)
    found: dict[str, list[tuple[str, Labels, float]]] = {
        "edgekit_requests_total": [("", _of(c), c.requests) for c in counters],
        "edgekit_request_errors_total": [("", _of(c), c.errors) for c in counters],
        "edgekit_rejected_total": [("", _of(c), c.rejected) for c in counters],
        "edgekit_inferences_total": [("", _of(c), c.inferences) for c in counters],
        "edgekit_latency_ms": [
            sample for c in counters for sample in _histogram(_of(c), c.buckets, c.latency_sum_ms)
        ],
        "edgekit_serving_restarts_total": [("", {}, process.restarts)],
        "edgekit_rss_mib": [("", {}, round(process.rss_mib, 1))],
        "edgekit_release_info": [
            ("", {**one.name, "variant": one.variant, "engine": one.engine}, 1) for one in serving
        ],
        "edgekit_drift_samples_total": [("", _of(c), c.sketch.rows) for c in counters if c.sketch],
        "edgekit_input_drift_psi": [("", labels, one.psi) for labels, one in inputs],
        "edgekit_output_drift_psi": [("", labels, one.psi) for labels, one in outputs],
    }
    for info in METRICS:
        yield Family(info.name, info.kind, info.help, found[info.name])
    yield Family(
        "edgekit_input_drift_column", "gauge", "Column of an input that is farthest from the reference",
        [("", labels, one.column) for labels, one in inputs if one.column >= 0],
    )  # fmt: skip


def _shifts(counters: list[Counters], serving: Sequence[Serving]) -> tuple[list[Shifted], list[Shifted]]:
    """Of inputs and outputs, with their labels."""
    names = [one.name for one in serving]
    now = [c for c in counters if c.sketch and _of(c) in names]
    return (
        [({**_of(c), "input": one.tensor}, one) for c in now if c.sketch for one in c.sketch.inputs()],
        [({**_of(c), "output": one.tensor}, one) for c in now if c.sketch for one in c.sketch.outputs()],
    )


def _detail(counters: list[Counters], serving: Sequence[Serving], process: Process) -> Iterator[Family]:
    yield Family(
        "edgekit_protocol_latency_ms", "histogram", "Time from request read to answer ready, of successes",
        [sample for c in counters for name, histogram in c.protocols.items()
         for sample in _spread({**_of(c), "protocol": name}, histogram)],
    )  # fmt: skip
    yield Family(
        "edgekit_queue_ms", "histogram", "Time that successful requests waited for the engine",
        [sample for c in counters for sample in _spread(_of(c), c.queued)],
    )  # fmt: skip
    yield Family(
        "edgekit_batch_samples", "histogram", "Samples per engine run",
        [sample for c in counters for sample in _batches(c)],
    )  # fmt: skip
    yield Family(
        "edgekit_failures_total", "counter", "Requests that were not answered with a result, by kind",
        [("", {**_of(c), "kind": kind}, n) for c in counters for kind, n in sorted(c.failures.items())],
    )  # fmt: skip
    yield Family("edgekit_connections", "gauge", "Open connections", [("", {}, process.connections)])
    yield Family(
        "edgekit_model_loaded", "gauge", "1: the model is in memory; 0: others have its share of it",
        [("", one.name, int(one.loaded)) for one in serving],
    )  # fmt: skip
    yield Family(
        "edgekit_model_loads_total", "counter", "Times that a request had to wait until its model was loaded",
        [("", one.name, one.loads) for one in serving],
    )  # fmt: skip
    if process.memory_budget_mib:
        value = process.memory_budget_mib
        yield Family("edgekit_memory_budget_mib", "gauge", "Most memory serving may have", [("", {}, value)])


_REASONS = {"overload": "REJECTED", "timeout": "REJECTED", "canceled": "CANCELED", "engine": "BACKEND"}
"""Kinds of failure to Triton's reasons; all others are OTHER."""

_TRITON: tuple[tuple[str, str, Callable[[Counters], int]], ...] = (
    ("request_success", "Number of successful inference requests, all batch sizes",
     lambda c: c.success.count),
    ("count", "Number of inferences performed (does not include cached requests)", lambda c: c.inferences),
    ("exec_count", "Number of model executions performed",
     lambda c: sum(runs.infer.count for runs in c.runs.values())),
    ("request_duration_us", "Cumulative inference request duration in microseconds", lambda c: c.success.us),
    ("queue_duration_us", "Cumulative inference queuing duration in microseconds", lambda c: c.queue.us),
    ("compute_input_duration_us", "Cumulative compute input duration in microseconds",
     lambda c: c.compute_input.us),
    ("compute_infer_duration_us", "Cumulative compute inference duration in microseconds",
     lambda c: c.compute_infer.us),
    ("compute_output_duration_us", "Cumulative inference compute output duration in microseconds",
     lambda c: c.compute_output.us),
)  # fmt: skip


def _triton(counters: list[Counters], serving: Sequence[Serving]) -> Iterator[Family]:
    named = [c for c in counters if c.name]
    for name, what, value in _TRITON:
        yield Family(f"nv_inference_{name}", "counter", what, [("", _of(c), value(c)) for c in named])
    yield Family(
        "nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes",
        [("", {**_of(c), "reason": reason}, n) for c in named for reason, n in _reasons(c).items()],
    )  # fmt: skip
    yield Family(
        "nv_inference_pending_request_count", "gauge", "Instantaneous number of pending requests per-model",
        [("", one.name, one.waiting) for one in serving],
    )  # fmt: skip


def _reasons(counters: Counters) -> dict[str, int]:
    found = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
    for kind, count in counters.failures.items():
        found[_REASONS.get(kind, "OTHER")] += count
    return found


def _board(board: Board) -> Iterator[Family]:
    def gauge(name: str, help_text: str, value: float) -> Family:
        return Family(name, "gauge", help_text, [("", {}, value)] if value else [])

    yield Family(
        "edgekit_board_cpu_seconds_total", "counter", "Processor time used on this board, all cores",
        [("", {}, round(board.cpu_busy_s, 2))] if board.cores else [],
    )  # fmt: skip
    yield gauge("edgekit_board_cpu_cores", "Cores of this board", board.cores)
    yield Family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]",
                 [("", {}, round(board.cpu_share, 4))] if board.cores else [])  # fmt: skip
    total, available = board.memory_bytes, board.memory_available_bytes
    yield gauge("nv_cpu_memory_total_bytes", "CPU total memory (RAM), in bytes", total)
    yield gauge("nv_cpu_memory_used_bytes", "CPU used memory (RAM), in bytes", total - available)
    yield gauge("edgekit_board_memory_available_bytes", "Memory that programs may still take", available)
    yield gauge("edgekit_board_disk_bytes", "Size of the file system at the root", board.disk_bytes)
    yield gauge("edgekit_board_disk_free_bytes", "Of that, free", board.disk_free_bytes)
    yield Family(
        "edgekit_board_temperature_celsius", "gauge", "Temperature by thermal zone",
        [("", {"zone": zone}, value) for zone, value in sorted(board.temperatures.items())],
    )  # fmt: skip


def _lines(family: Family) -> Iterator[str]:
    if not family.samples and family.name not in _ALWAYS:
        return
    yield f"# HELP {family.name} {family.help}"
    yield f"# TYPE {family.name} {family.kind}"
    for suffix, labels, value in family.samples:
        yield f"{family.name}{suffix}{_labels(labels)} {value}"


_ALWAYS = frozenset(info.name for info in METRICS)


def _spread(labels: Labels, histogram: Histogram) -> Iterator[tuple[str, Labels, float]]:
    yield from _histogram(labels, histogram.buckets, histogram.sum_ms)


def _histogram(
    labels: Labels, buckets: Sequence[int], total: float, bounds: Sequence[float] = LATENCY_BOUNDS_MS
) -> Iterator[tuple[str, Labels, float]]:
    count = 0
    for bound, count in zip((*bounds, "+Inf"), accumulate(buckets), strict=True):
        yield "_bucket", {**labels, "le": str(bound)}, count
    yield "_sum", labels, round(total, 6)
    yield "_count", labels, count


def _batches(counters: Counters) -> Iterator[tuple[str, Labels, float]]:
    if not counters.runs:
        return
    buckets = [0] * (len(BATCH_BOUNDS) + 1)
    for samples, runs in counters.runs.items():
        at = next((i for i, bound in enumerate(BATCH_BOUNDS) if samples <= bound), len(BATCH_BOUNDS))
        buckets[at] += runs.infer.count
    total = sum(samples * runs.infer.count for samples, runs in counters.runs.items())
    yield from _histogram(_of(counters), buckets, total, BATCH_BOUNDS)


def _of(counters: Counters) -> dict[str, str]:
    return {"model": counters.name, "version": counters.version}


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels.items()) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
