"""What the pages show, read from the database into plain data."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from typing import Any

from markupsafe import Markup
from sqlalchemy import Connection, RowMapping, func, select

from edgekit_fleet import releases as releases_
from edgekit_fleet.db import devices, events, jobs, releases, telemetry
from edgekit_fleet.rollout.gates import quantile
from edgekit_fleet.rollout.load import window
from edgekit_fleet.rollout.view import event
from edgekit_fleet.web.charts import Series, bar_chart, line_chart

WINDOWS = 240
"""Telemetry windows behind a device's charts."""
RECENT_S = 60.0


def latest_events(connection: Connection, limit: int, device: str = "") -> list[dict[str, Any]]:
    """Newest first."""
    query = select(events).order_by(events.c.id.desc()).limit(limit)
    if device:
        query = query.where(events.c.device == device)
    return [event(row) for row in connection.execute(query)]


def profiles(connection: Connection) -> list[dict[str, Any]]:
    """Per profile: how many devices, how many online, and what they run."""
    rows = connection.execute(
        select(devices.c.profile, devices.c.release, devices.c.online, func.count().label("n"))
        .where(devices.c.revoked_at.is_(None))
        .group_by(devices.c.profile, devices.c.release, devices.c.online)
    )
    total: Counter[str] = Counter()
    online: Counter[str] = Counter()
    running: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        total[row.profile] += row.n
        online[row.profile] += row.n * bool(row.online)
        running[row.profile][row.release] += row.n
    return [
        {
            "profile": name,
            "all": total[name],
            "online": online[name],
            "releases": running[name].most_common(),
        }
        for name in sorted(total)
    ]


def traffic(connection: Connection) -> tuple[float, float]:
    """(requests per second, share of failed ones) of the fleet in the last minute."""
    columns = (telemetry.c["values"], telemetry.c.latency_buckets)
    rows = connection.execute(select(*columns).where(telemetry.c.received_at > time.time() - RECENT_S))
    requests = errors = 0
    for row in rows:
        sample = window(row._mapping["values"], row.latency_buckets)
        requests, errors = requests + sample.requests, errors + sample.errors
    return requests / RECENT_S, errors / requests if requests else 0.0


def with_running(connection: Connection, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Releases with how many devices run each."""
    counted = connection.execute(
        select(devices.c.bundle_digest, func.count().label("n"))
        .where(devices.c.revoked_at.is_(None))
        .group_by(devices.c.bundle_digest)
    )
    running = {row.bundle_digest: row.n for row in counted}
    return [{**item, "running": running.get(item["digest"], 0)} for item in found]


def list_releases(connection: Connection) -> list[dict[str, Any]]:
    """Newest first."""
    return with_running(connection, releases_.list_releases(connection))


def device_jobs(connection: Connection, device: str, limit: int = 50) -> list[RowMapping]:
    """Its jobs, newest first, each with the name of the release that it brings."""
    label = (releases.c.name + ":" + releases.c.version).label("release")
    rows = connection.execute(
        select(jobs, label)
        .join(releases, releases.c.digest == jobs.c.digest)
        .where(jobs.c.device == device)
        .order_by(jobs.c.created_at.desc())
        .limit(limit)
    )
    return list(rows.mappings())


def device_charts(connection: Connection, device: str) -> tuple[dict[str, Markup], int]:
    """(charts by name, number of windows they show)."""
    query = (
        select(telemetry)
        .where(telemetry.c.device == device)
        .order_by(telemetry.c.received_at.desc())
        .limit(WINDOWS)
    )
    rows = list(reversed(connection.execute(query).mappings().all()))
    times = [row["received_at"] for row in rows]
    samples = [window(row["values"], row["latency_buckets"]) for row in rows]
    spans = [row["window_s"] for row in rows]
    rate = [s.requests / span if span > 0 else None for s, span in zip(samples, spans, strict=True)]
    failed = [100 * s.errors / s.requests if s.requests else None for s in samples]
    memory = [row["values"].get("edgekit_rss_mib") for row in rows]
    drift = {
        name: [row["values"].get(f"edgekit_{kind}_drift_psi") for row in rows]
        for name, kind in (("inputs", "input"), ("answers", "output"))
    }
    quantiles = {
        f"p{q * 100:.0f}": [quantile(s.buckets, q) if sum(s.buckets) else None for s in samples]
        for q in (0.5, 0.95)
    }
    classes: Counter[str] = Counter()
    for row in rows:
        classes.update({str(name): max(0, int(count)) for name, count in row["classes"].items()})
    charts = {
        "requests": line_chart("Requests per second", "1/s", times, [Series("rate", rate)]),
        "errors": line_chart("Failed requests", "%", times, [Series("failed", failed)]),
        "latency": line_chart("Latency", "ms", times, [Series(k, v) for k, v in quantiles.items()]),
        "memory": line_chart("Memory", "MiB", times, [Series("resident", memory)]),
        "drift": line_chart("Drift", "", times, [Series(k, v) for k, v in drift.items()]),
        "classes": bar_chart("Answers by class", classes),
    }
    return charts, len(rows)
