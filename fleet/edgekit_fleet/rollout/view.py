"""Rollouts as plain data for the API, the command line and the dashboard."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, Row, func, select

from edgekit import codec
from edgekit.wire import JobState
from edgekit_fleet.db import events, jobs, releases, rollout_groups, rollouts
from edgekit_fleet.devices import Unknown
from edgekit_fleet.rollout.decide import needed
from edgekit_fleet.rollout.load import load
from edgekit_fleet.rollout.states import FAILURES, RolloutState

MAX_EVENTS = 200


def list_rollouts(connection: Connection) -> list[dict[str, Any]]:
    """Newest first: id, name, release, state, reason, times, and how many devices are in which state."""
    counts: dict[int, dict[str, int]] = {}
    grouped = connection.execute(
        select(jobs.c.rollout, jobs.c.state, func.count().label("n"))
        .where(jobs.c.kind == "deploy")
        .group_by(jobs.c.rollout, jobs.c.state)
    )
    for row in grouped:
        counts.setdefault(row.rollout, {})[row.state] = row.n
    rows = connection.execute(_SELECT.order_by(rollouts.c.id.desc())).all()
    return [{**_head(row), "devices": _totals(counts.get(row.id, {}))} for row in rows]


def describe(connection: Connection, rollout: int) -> dict[str, Any]:
    """One rollout with its groups, every device's part, and its latest events, oldest first.

    Raises Unknown (404) when there is none.
    """
    row = connection.execute(_SELECT.where(rollouts.c.id == rollout)).first()
    if row is None:
        raise Unknown(f"no rollout {rollout}", "`edgekit fleet rollout list` shows all")
    loaded = load(connection, rollout)
    stored = connection.execute(
        select(rollout_groups).where(rollout_groups.c.rollout == rollout).order_by(rollout_groups.c.position)
    ).all()
    groups = []
    for group_row, group in zip(stored, loaded.snapshot.groups, strict=True):
        states = Counter(member.deploy.state.value for member in group.members)
        soak = group.soak_started_at
        groups.append(
            {
                "name": group_row.name,
                "state": group_row.state,
                "reason": group_row.reason,
                "phase": codec.to_plain(group.phase),
                "needed": needed(group),
                "soak_ends_at": None if soak is None else soak + group.phase.soak_s,
                "devices": _totals(states),
                "jobs": [_part(loaded.deploy[m.device], loaded.back.get(m.device)) for m in group.members],
            }
        )
    told = connection.execute(
        select(events).where(events.c.rollout == rollout).order_by(events.c.id.desc()).limit(MAX_EVENTS)
    ).all()
    return {
        **_head(row),
        "strategy": row.strategy,
        "devices": _totals(Counter(m.deploy.state.value for m in loaded.snapshot.members)),
        "groups": groups,
        "events": [event(item) for item in reversed(told)],
    }


def event(row: Row[Any]) -> dict[str, Any]:
    """An event for people: {id, at, kind, device, rollout, text}."""
    return {name: getattr(row, name) for name in ("id", "at", "kind", "device", "rollout", "text")}


_SELECT = select(rollouts, releases.c.name.label("release_name"), releases.c.version).join(
    releases, releases.c.digest == rollouts.c.digest
)


def _head(row: Row[Any]) -> dict[str, Any]:
    names = ("id", "name", "digest", "query", "state", "reason", "start_at", "created_at", "updated_at")
    head = {name: getattr(row, name) for name in (*names, "created_by")}
    ended = RolloutState(row.state).terminal
    return {**head, "release": f"{row.release_name}:{row.version}", "ended": ended}


def _totals(states: dict[str, int]) -> dict[str, int]:
    """Devices by outcome: total, succeeded, failed, canceled, in_progress, queued."""
    failed = sum(states.get(state.value, 0) for state in FAILURES)
    names = {
        "succeeded": JobState.SUCCEEDED,
        "canceled": JobState.CANCELED,
        "in_progress": JobState.IN_PROGRESS,
        "queued": JobState.QUEUED,
    }
    counted = {name: states.get(state.value, 0) for name, state in names.items()}
    return {"total": sum(states.values()), "failed": failed, **counted}


def _part(deploy: Row[Any], back: Row[Any] | None) -> dict[str, Any]:
    names = ("device", "state", "stage", "code", "message", "notified_at", "deadline_at", "ended_at")
    part = {name: getattr(deploy, name) for name in names}
    part.update(job=deploy.id, online=deploy.online, acknowledged=deploy.acknowledged)
    if back is not None:
        back_names = ("state", "stage", "code", "message")
        part["back"] = {"job": back.id, **{name: getattr(back, name) for name in back_names}}
    return part
