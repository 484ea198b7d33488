"""GET /metrics: the fleet's own state in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from edgekit_fleet.api.body import fleet_of
from edgekit_fleet.db import devices, jobs, outbox, releases, rollouts
from edgekit_fleet.fleet import Fleet

Samples = Iterable[tuple[Mapping[str, str], float]]


def metrics(request: Request) -> Response:
    text = render(fleet_of(request))
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")


def render(fleet: Fleet) -> str:
    counts = fleet.worker.ingest.counts
    with fleet.db.read() as connection:
        online = connection.scalar(select(func.count()).where(devices.c.online)) or 0
        known = connection.scalar(select(func.count()).where(devices.c.revoked_at.is_(None))) or 0
        published = connection.scalar(select(func.count()).select_from(releases)) or 0
        waiting = connection.scalar(select(func.count()).where(outbox.c.sent_at.is_(None))) or 0
        states = connection.execute(select(rollouts.c.state, func.count()).group_by(rollouts.c.state)).all()
        ends = connection.execute(select(jobs.c.state, func.count()).group_by(jobs.c.state)).all()
    none: dict[str, str] = {}
    parts = [
        _metric("edgekit_fleet_devices", "gauge", "Enrolled devices, not revoked", [(none, known)]),
        _metric("edgekit_fleet_devices_online", "gauge", "Devices that are connected", [(none, online)]),
        _metric("edgekit_fleet_releases", "gauge", "Published releases", [(none, published)]),
        _metric(
            "edgekit_fleet_rollouts", "gauge", "Rollouts by state", [({"state": s}, n) for s, n in states]
        ),
        _metric("edgekit_fleet_jobs", "gauge", "Device jobs by state", [({"state": s}, n) for s, n in ends]),
        _metric(
            "edgekit_fleet_messages_total",
            "counter",
            "MQTT messages received, by channel",
            [({"channel": name}, n) for name, n in sorted(counts.messages.items())],
        ),
        _metric(
            "edgekit_fleet_messages_dropped_total",
            "counter",
            "MQTT messages refused, by reason",
            [({"reason": name}, n) for name, n in sorted(counts.dropped.items())],
        ),
        _metric(
            "edgekit_fleet_duplicates_total",
            "counter",
            "Messages that were known already",
            [(none, counts.duplicates)],
        ),
        _metric(
            "edgekit_fleet_telemetry_windows_total",
            "counter",
            "Telemetry windows stored",
            [(none, counts.windows)],
        ),
        _metric(
            "edgekit_fleet_published_total",
            "counter",
            "MQTT messages sent to devices",
            [(none, fleet.worker.published)],
        ),
        _metric("edgekit_fleet_outbox", "gauge", "Messages that wait to be sent", [(none, waiting)]),
        _metric(
            "edgekit_fleet_broker_restarts_total",
            "counter",
            "Times the broker was started again",
            [(none, fleet.broker.restarts)],
        ),
        _metric(
            "edgekit_fleet_start_time_seconds", "gauge", "When this process began", [(none, fleet.started_at)]
        ),
    ]
    return "".join(parts)


def _metric(name: str, kind: str, text: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{inside}}} {value:.15g}" if inside else f"{name} {value:.15g}")
    return "\n".join(lines) + "\n"


def _escape(label: str) -> str:
    return label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
