"""Read an agent's /metrics and turn two readings into figures for people."""

from __future__ import annotations

import http.client
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from edgekit.errors import InputError, SystemFault
from edgekit_agent.health import quantile

MAX_BYTES = 4 * 1024 * 1024
_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Key = tuple[str, frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class Reading:
    """One scrape: samples by name and labels, and when it was made (monotonic seconds)."""

    at: float
    samples: Mapping[Key, float]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name that have these labels."""
        wanted = set(labels.items())
        return sum(value for (key, have), value in self.samples.items() if key == name and wanted <= have)

    def most(self, name: str, **labels: str) -> float | None:
        """The largest of them; None where there is none."""
        wanted = set(labels.items())
        return max((value for have, value in self.of(name).items() if wanted <= have), default=None)

    def of(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """Samples of this name by their labels."""
        return {have: value for (key, have), value in self.samples.items() if key == name}


@dataclass(frozen=True)
class Latency:
    """Of requests that were answered between two readings; 0 where there were none."""

    per_s: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0


@dataclass(frozen=True)
class ModelFigures:
    """One release between two readings, and since its process was started."""

    model: str
    version: str
    serving: bool
    requests: int
    """Since the process was started."""
    failures: dict[str, int]
    """The same, by kind."""
    latency: Latency
    failures_per_s: float
    samples_per_s: float
    queue_ms: float
    """Mean wait of a request."""
    batch: float
    """Mean samples of an engine run."""
    input_psi: float | None = None
    """How far the worst input is from the bundle's reference; None: not known."""
    output_psi: float | None = None
    protocols: dict[str, Latency] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """What `edgekit-agent top` shows."""

    seconds: float
    release: str
    variant: str
    engine: str
    models: tuple[ModelFigures, ...]
    waiting: int
    connections: int
    restarts: int
    rss_mib: float
    budget_mib: float
    """0: none."""
    cpu_percent: float
    """Of all cores of the board."""
    memory_percent: float
    memory_available_mib: float
    disk_percent: float
    disk_free_mib: float
    temperatures: dict[str, float]


def fetch(url: str = "", unix: Path | None = None, timeout_s: float = 5.0) -> Reading:
    """Scrape http://HOST:PORT or a Unix socket. Raises SystemFault: nobody there, or no agent."""
    where = str(unix) if unix is not None else url
    connection = _connection(url, unix, timeout_s)
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        body = response.read(MAX_BYTES + 1)
    except (OSError, http.client.HTTPException) as exc:
        raise SystemFault(
            f"no answer from {where}: {exc}", "is the agent running? give --url or --unix"
        ) from None
    finally:
        connection.close()
    if response.status != 200 or len(body) > MAX_BYTES:
        raise SystemFault(f"{where}/metrics answered {response.status}", "is it an edgekit agent?")
    return Reading(time.monotonic(), parse(body.decode("utf-8", "replace")))


def parse(text: str) -> dict[Key, float]:
    """Prometheus text to samples; lines that are none are passed over."""
    found: dict[Key, float] = {}
    for line in text.splitlines():
        match = None if line.startswith("#") else _LINE.fullmatch(line)
        if match:
            labels = frozenset((name, _unescape(value)) for name, value in _LABEL.findall(match[2] or ""))
            try:
                found[match[1], labels] = float(match[3])
            except ValueError:
                continue
    return found


def figures(before: Reading, now: Reading) -> Figures:
    """What happened between two readings; a process that was started again meanwhile counts from zero."""
    if now.total("edgekit_requests_total") < before.total("edgekit_requests_total"):
        before = Reading(before.at, {})
    served = [dict(labels) for labels in now.of("edgekit_release_info")]
    info = served[0] if served else {}
    seconds = max(1e-6, now.at - before.at)
    busy_s = now.total("edgekit_board_cpu_seconds_total") - before.total("edgekit_board_cpu_seconds_total")
    cores = now.total("edgekit_board_cpu_cores")
    memory, used = now.total("nv_cpu_memory_total_bytes"), now.total("nv_cpu_memory_used_bytes")
    disk, free = now.total("edgekit_board_disk_bytes"), now.total("edgekit_board_disk_free_bytes")
    known = before.samples and cores
    return Figures(
        seconds=round(seconds, 3),
        release=f"{info['model']}:{info['version']}" if "model" in info else "",
        variant=info.get("variant", ""),
        engine=info.get("engine", ""),
        models=tuple(_models(before, now, served)),
        waiting=int(now.total("nv_inference_pending_request_count")),
        connections=int(now.total("edgekit_connections")),
        restarts=int(now.total("edgekit_serving_restarts_total")),
        rss_mib=now.total("edgekit_rss_mib"),
        budget_mib=now.total("edgekit_memory_budget_mib"),
        cpu_percent=_rounded(100 * busy_s / (seconds * cores)) if known else 0.0,
        memory_percent=_rounded(100 * used / memory) if memory else 0.0,
        memory_available_mib=_rounded(now.total("edgekit_board_memory_available_bytes") / (1 << 20)),
        disk_percent=_rounded(100 * (disk - free) / disk) if disk else 0.0,
        disk_free_mib=_rounded(free / (1 << 20)),
        temperatures={
            dict(labels)["zone"]: value
            for labels, value in now.of("edgekit_board_temperature_celsius").items()
        },
    )


def _models(before: Reading, now: Reading, served: Sequence[Mapping[str, str]]) -> Iterator[ModelFigures]:
    """What is served first, in its order."""
    known = [dict(labels) for labels in now.of("edgekit_requests_total")]
    first = [one for info in served for one in known if one.items() <= info.items()]
    for labels in first:
        yield _model(labels, before, now, serving=True)
    for labels in known:
        if labels not in first:
            yield _model(labels, before, now, serving=False)


def _model(labels: dict[str, str], before: Reading, now: Reading, *, serving: bool) -> ModelFigures:
    seconds = max(1e-6, now.at - before.at)

    def grown(name: str) -> float:
        return now.total(name, **labels) - before.total(name, **labels)

    kinds = [have for have in now.of("edgekit_failures_total") if set(labels.items()) <= have]
    protocols = {
        dict(have)["protocol"]
        for have in now.of("edgekit_protocol_latency_ms_count")
        if set(labels.items()) <= have
    }
    queued, runs = grown("edgekit_queue_ms_count"), grown("edgekit_batch_samples_count")
    return ModelFigures(
        model=labels.get("model", ""),
        version=labels.get("version", ""),
        serving=serving,
        requests=int(now.total("edgekit_requests_total", **labels)),
        failures={dict(have)["kind"]: int(now.of("edgekit_failures_total")[have]) for have in kinds},
        latency=_latency("edgekit_latency_ms", labels, before, now),
        failures_per_s=_rounded(grown("edgekit_failures_total") / seconds),
        samples_per_s=_rounded(grown("edgekit_inferences_total") / seconds),
        queue_ms=round(grown("edgekit_queue_ms_sum") / queued, 3) if queued else 0.0,
        batch=_rounded(grown("edgekit_batch_samples_sum") / runs) if runs else 0.0,
        input_psi=now.most("edgekit_input_drift_psi", **labels),
        output_psi=now.most("edgekit_output_drift_psi", **labels),
        protocols={
            name: _latency("edgekit_protocol_latency_ms", {**labels, "protocol": name}, before, now)
            for name in sorted(protocols)
        },
    )


def _latency(name: str, labels: Mapping[str, str], before: Reading, now: Reading) -> Latency:
    buckets = _buckets(name, labels, now)
    old = _buckets(name, labels, before) or [0] * len(buckets)
    counts = [new - seen for new, seen in zip(buckets, old, strict=False)]
    if sum(counts) <= 0:
        return Latency()
    p50, p95, p99 = (round(quantile(counts, q), 3) for q in (0.5, 0.95, 0.99))
    return Latency(_rounded(sum(counts) / max(1e-6, now.at - before.at)), p50, p95, p99)


def _buckets(name: str, labels: Mapping[str, str], reading: Reading) -> Sequence[int]:
    """Counts per bucket, not cumulative."""
    wanted = set(labels.items())
    found = [
        (float(dict(have)["le"].replace("+Inf", "inf")), int(value))
        for have, value in reading.of(f"{name}_bucket").items()
        if wanted <= have
    ]
    totals = [0, *(value for _, value in sorted(found))]
    return [high - low for low, high in pairwise(totals)]


def _connection(url: str, unix: Path | None, timeout_s: float) -> http.client.HTTPConnection:
    if unix is not None:
        return _Unix(unix, timeout_s)
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"--url {url!r}: not an http address", "for example http://127.0.0.1:8000")
    return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _unescape(value: str) -> str:
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], value)


def _rounded(value: float) -> float:
    return round(value, 1)
