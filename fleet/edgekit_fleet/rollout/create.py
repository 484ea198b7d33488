"""A request for a rollout, checked and turned into groups and jobs."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from edgekit import codec
from edgekit.errors import InputError
from edgekit.wire import JobState
from edgekit_fleet import audit
from edgekit_fleet.db import Database, devices, jobs, note, releases, rollout_groups, rollouts
from edgekit_fleet.rollout.engine import LIVE, RolloutEngine
from edgekit_fleet.rollout.query import Target
from edgekit_fleet.rollout.query import select as select_targets
from edgekit_fleet.rollout.states import GroupState, RolloutState, TransitionError
from edgekit_fleet.rollout.strategies import Strategy, plan, validate


@dataclass(frozen=True)
class RolloutRequest:
    """Body of POST /v1/rollouts."""

    release: str
    """ "name:version", "name" for its newest version, or the bundle digest."""
    query: str = ""
    """Which devices; "" for all. See `edgekit_fleet.rollout.query`."""
    name: str = ""
    strategy: Strategy = field(default_factory=Strategy)
    start_at: float = 0.0
    """Seconds since the epoch; 0: now."""
    draft: bool = False
    """Wait for the command `start`."""
    supersede: bool = False
    """End running rollouts that hold some of these devices, instead of being refused."""
    dry_run: bool = False
    """Only answer which device would be in which phase."""


def create(
    db: Database, engine: RolloutEngine, request: RolloutRequest, now: float, actor: str = "admin"
) -> dict[str, Any]:
    """Make a rollout and let it begin: {"id", "groups": [{"name", "devices"}]}; "id" is None on a dry run.

    Raises InputError (no such release, no device matches), ConfigError (query, strategy),
    TransitionError (devices are in another rollout).
    """
    strategy = validate(request.strategy)
    with db.write() as connection:
        release = find_release(connection, request.release)
        targets = select_targets(request.query, load_targets(connection))
        if not targets:
            hint = "`edgekit fleet devices list` shows all devices, their profiles and tags"
            raise InputError(f"no device matches {request.query!r}", hint)
        groups = plan(strategy, targets)
        placed = {device for group in groups for device in group}
        if not placed:
            raise InputError("no phase takes any device", "check the phases' size and where")
        answer = [
            {"name": phase.name, "devices": ids} for phase, ids in zip(strategy.phases, groups, strict=True)
        ]
        if request.dry_run:
            return {"id": None, "groups": answer}
        busy = _busy(connection, placed)
        if busy and not request.supersede:
            ids = ", ".join(str(rollout) for rollout in sorted(busy))
            hint = "wait for it, abort it, or create this one with --supersede"
            raise TransitionError(f"rollout {ids} still holds some of these devices", hint)
        rollout = _insert(connection, request, strategy, release, groups, now, actor)
        for other in sorted(busy):
            engine.supersede(connection, other, f"rollout {rollout}", now)
        label = f"{release.name}:{release.version}"
        text = f"created by {actor}: {label} to {len(placed)} device(s) in {len(groups)} phase(s)"
        detail = {"release": label, "digest": release.digest, "query": request.query, "devices": len(placed)}
        audit.record(connection, actor, "rollout.create", f"rollout {rollout}", detail)
        note(connection, "rollout", text, rollout=rollout)
        engine.settle_in(connection, rollout, now)
    return {"id": rollout, "groups": answer}


def find_release(connection: Connection, text: str) -> Row[Any]:
    """By digest, name:version, or name (its newest). Raises InputError."""
    name, colon, version = text.rpartition(":")
    table = releases.c
    if text.startswith("sha256:"):
        where = table.digest == text
    elif colon:
        where = (table.name == name) & (table.version == version)
    else:
        where = table.name == text
    found = connection.execute(
        select(releases).where(where).order_by(table.created_at.desc()).limit(1)
    ).first()
    if found is None:
        known = connection.execute(select(table.name, table.version).order_by(table.created_at.desc())).all()
        listed = ", ".join(f"{row.name}:{row.version}" for row in known[:5])
        hint = f"published are {listed}" if listed else "publish one with `edgekit fleet publish FILE`"
        raise InputError(f"no release {text!r}", hint)
    return found


def load_targets(connection: Connection) -> list[Target]:
    """Every device that is not revoked, as queries see it, ordered by id."""
    rows = connection.execute(
        select(devices).where(devices.c.revoked_at.is_(None)).order_by(devices.c.id)
    ).all()
    return [
        Target(
            id=row.id,
            profile=row.profile,
            release=row.release,
            architecture=row.architecture,
            variant=row.variant,
            online=row.online,
            emulated=row.emulated,
            tags={str(key): str(value) for key, value in (row.tags or {}).items()},
        )
        for row in rows
    ]


def _busy(connection: Connection, placed: set[str]) -> set[int]:
    """Rollouts that are not over and have an order, given or planned, for one of these devices."""
    rows = connection.execute(
        select(jobs.c.rollout, jobs.c.device)
        .join(rollouts, rollouts.c.id == jobs.c.rollout)
        .where(rollouts.c.state.in_(LIVE))
        .distinct()
    )
    return {row.rollout for row in rows if row.device in placed}


def _insert(
    connection: Connection,
    request: RolloutRequest,
    strategy: Strategy,
    release: Row[Any],
    groups: list[list[str]],
    now: float,
    actor: str,
) -> int:
    state = RolloutState.DRAFT if request.draft else RolloutState.CREATING
    row = {
        "name": (request.name or f"{release.name}:{release.version}")[:200],
        "digest": release.digest,
        "query": request.query,
        "strategy": codec.to_plain(strategy),
        "state": state.value,
        "start_at": request.start_at,
        "created_at": now,
        "updated_at": now,
        "created_by": actor,
    }
    rollout = int(connection.execute(insert(rollouts).returning(rollouts.c.id), row).scalar_one())
    for position, (phase, ids) in enumerate(zip(strategy.phases, groups, strict=True)):
        group = {"rollout": rollout, "position": position, "name": phase.name}
        group_row = {**group, "state": GroupState.SCHEDULED.value, "updated_at": now}
        connection.execute(insert(rollout_groups), group_row)
        if ids:
            rows = [_job_row(rollout, position, device, release.digest, now) for device in ids]
            connection.execute(insert(jobs), rows)
    return rollout


def _job_row(rollout: int, position: int, device: str, digest: str, now: float) -> dict[str, Any]:
    return {
        "id": f"r{rollout}-{uuid.uuid4().hex[:12]}",
        "rollout": rollout,
        "position": position,
        "device": device,
        "kind": "deploy",
        "digest": digest,
        "state": JobState.QUEUED.value,
        "created_at": now,
        "updated_at": now,
    }
