"""`edgekit-agent top`: what the endpoint does, live in the terminal.

Drawn with rich where it is installed (a device has no need of it), as plain lines otherwise.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edgekit.errors import InputError
from edgekit_agent import config
from edgekit_agent.scrape import Figures, Latency, ModelFigures, Reading, fetch, figures

_CLEAR = "\x1b[H\x1b[2J"
Row = tuple[str, ...]
HEADER: Row = (
    "model",
    "req/s",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "samples/s",
    "batch",
    "queue ms",
    "drift",
    "fail/s",
    "failed",
)


def top(
    *, url: str, unix: Path | None, state: Path | None, interval_s: float, once: bool, as_json: bool
) -> None:
    """Scrape and show every `interval_s` seconds, until interrupted; `once`: one interval only.

    Raises InputError for a senseless interval, SystemFault when nobody answers.
    """
    if not 0.1 <= interval_s <= 3600:
        raise InputError(f"--interval {interval_s:g}: not an interval", "0.1 to 3600 seconds")
    if state is not None:
        url, unix = _endpoint(state)
    read = lambda: fetch(url, unix)  # noqa: E731 - one source, two uses
    if as_json:
        for found in _series(read, interval_s, once):
            sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")
            sys.stdout.flush()
    elif once or not sys.stdout.isatty():
        for found in _series(read, interval_s, once):
            sys.stdout.write(plain(found) + "\n")
            sys.stdout.flush()
    elif importlib.util.find_spec("rich"):
        from edgekit_agent import top_rich

        top_rich.show(_series(read, interval_s, once))
    else:
        for found in _series(read, interval_s, once):
            sys.stdout.write(_CLEAR + plain(found) + "\n")
            sys.stdout.flush()


def plain(found: Figures) -> str:
    """The screen as text."""
    table = [HEADER, *rows(found)]
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([*head(found), "", *lines])


def head(found: Figures) -> list[str]:
    """Release, serving process, board: one line each."""
    budget = f" of {found.budget_mib:.0f}" if found.budget_mib else ""
    heat = ", ".join(f"{zone} {value:.0f} °C" for zone, value in sorted(found.temperatures.items()))
    return [
        f"release  {found.release or 'none'}  {found.variant}",
        f"serving  {found.rss_mib:.0f}{budget} MiB, {found.connections} connections, "
        f"{found.waiting} waiting, {found.restarts} restarts",
        f"board    CPU {found.cpu_percent:.0f} %, memory {found.memory_percent:.0f} % "
        f"({found.memory_available_mib:.0f} MiB free), disk {found.disk_percent:.0f} % "
        f"({found.disk_free_mib:.0f} MiB free){', ' + heat if heat else ''}",
    ]


def rows(found: Figures) -> Iterator[Row]:
    """One row per release, and one per protocol that has brought requests."""
    for one in found.models:
        name = f"{one.model}:{one.version}" if one.model else "(nothing served)"
        failed = ", ".join(f"{n} {kind}" for kind, n in sorted(one.failures.items())) or "0"
        yield (
            f"{name}{' *' if one.serving else ''}", *_cells(one.latency), f"{one.samples_per_s:.0f}",
            f"{one.batch:.1f}", f"{one.queue_ms:.2f}", _drift(one), f"{one.failures_per_s:.1f}", failed,
        )  # fmt: skip
        for protocol, latency in one.protocols.items():
            yield f"  {protocol}", *_cells(latency), "", "", "", "", "", ""


def _drift(one: ModelFigures) -> str:
    """Stability index of inputs and answers."""
    if one.input_psi is None and one.output_psi is None:
        return "-"
    return " / ".join("-" if psi is None else f"{psi:.2f}" for psi in (one.input_psi, one.output_psi))


def _cells(latency: Latency) -> tuple[str, str, str, str]:
    if not latency.per_s:
        return "0", "-", "-", "-"
    p50, p95, p99 = (f"{ms:.2f}" for ms in (latency.p50_ms, latency.p95_ms, latency.p99_ms))
    return f"{latency.per_s:.0f}", p50, p95, p99


def _series(read: Callable[[], Reading], interval_s: float, once: bool) -> Iterator[Figures]:
    before = read()
    while True:
        time.sleep(interval_s)
        now = read()
        yield figures(before, now)
        if once:
            return
        before = now


def _endpoint(state: Path) -> tuple[str, Path | None]:
    """Where the agent of a state folder listens. Raises ConfigError."""
    serve = config.load(state / "agent.toml").serve
    host = f"[{serve.host}]" if ":" in serve.host else serve.host
    return f"http://{host}:{serve.port}", Path(serve.unix) if serve.unix else None
