"""A rollout out of the database, as the decision core sees it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, and_, case, func, select

from edgekit import codec
from edgekit.wire import JobState
from edgekit_fleet.db import devices, jobs, releases, rollout_groups, rollouts, telemetry
from edgekit_fleet.devices import Unknown
from edgekit_fleet.rollout.gates import Evidence, Sample, look_time
from edgekit_fleet.rollout.snapshot import Group, Job, Member, RolloutSnapshot
from edgekit_fleet.rollout.states import GroupState, RolloutState
from edgekit_fleet.rollout.strategies import Strategy

CONTROL_BEFORE_S = 900.0
"""How long before the rollout's first notification windows on the old release count as control."""


@dataclass(frozen=True)
class Loaded:
    """A snapshot and the rows behind it."""

    snapshot: RolloutSnapshot
    row: Row[Any]
    release: str
    """name:version"""
    deploy: dict[str, Row[Any]]
    """Deploy job by device."""
    back: dict[str, Row[Any]]
    profiles: dict[str, str]
    """Profile by device."""

    def with_evidence(self, found: Evidence) -> Loaded:
        return replace(self, snapshot=replace(self.snapshot, evidence=found))


def load(connection: Connection, rollout: int) -> Loaded:
    """Raises Unknown (404). Evidence is left empty: see `evidence`."""
    found = connection.execute(
        select(rollouts, releases.c.name.label("release_name"), releases.c.version)
        .join(releases, releases.c.digest == rollouts.c.digest)
        .where(rollouts.c.id == rollout)
    ).first()
    if found is None:
        raise Unknown(f"no rollout {rollout}", "`edgekit fleet rollout list` shows all")
    strategy = codec.from_plain(Strategy, found.strategy, what=f"strategy of rollout {rollout}")
    groups = connection.execute(
        select(rollout_groups).where(rollout_groups.c.rollout == rollout).order_by(rollout_groups.c.position)
    ).all()
    known = set(connection.scalars(select(releases.c.digest)))
    members: dict[int, list[Member]] = defaultdict(list)
    deploy: dict[str, Row[Any]] = {}
    back: dict[str, Row[Any]] = {}
    profiles: dict[str, str] = {}
    rows = connection.execute(
        select(jobs, *(_DEVICE_COLUMNS))
        .join(devices, devices.c.id == jobs.c.device)
        .where(jobs.c.rollout == rollout)
        .order_by(jobs.c.position, jobs.c.device)
    ).all()
    for row in rows:
        (deploy if row.kind == "deploy" else back)[row.device] = row
        profiles[row.device] = row.profile
    for device, row in deploy.items():
        members[row.position].append(_member(row, back.get(device), known))
    snapshot = RolloutSnapshot(
        id=str(rollout),
        digest=found.digest,
        strategy=strategy,
        groups=tuple(
            Group(phase, tuple(members[row.position]), GroupState(row.state), row.soak_started_at)
            for row, phase in zip(groups, strategy.phases, strict=True)
        ),
        state=RolloutState(found.state),
        reason=found.reason,
        start_at=found.start_at,
    )
    return Loaded(snapshot, found, f"{found.release_name}:{found.version}", deploy, back, profiles)


def fingerprint(connection: Connection, rollout: int) -> tuple[Any, ...]:
    """Changes whenever something that the rules look at does, time and telemetry apart; one query."""
    ended = jobs.c.state.in_([state.value for state in JobState if state.terminal])
    row = connection.execute(
        select(
            func.count(),
            func.sum(case((ended, 1), else_=0)),
            func.count(jobs.c.notified_at),
            func.sum(case((jobs.c.acknowledged, 1), else_=0)),
            func.sum(case((devices.c.online, 1), else_=0)),
            func.count(devices.c.revoked_at),
            func.sum(devices.c.reported_counter),
            func.sum(devices.c.reported_version),
        )
        .select_from(jobs)
        .join(devices, devices.c.id == jobs.c.device)
        .where(jobs.c.rollout == rollout)
    ).one()
    state = connection.scalar(select(rollouts.c.state).where(rollouts.c.id == rollout))
    return (state, *row)


_DEVICE_COLUMNS = (
    devices.c.profile,
    devices.c.online,
    devices.c.revoked_at,
    devices.c.bundle_digest,
    devices.c.reported_counter,
)


def _member(row: Row[Any], back: Row[Any] | None, known: set[str]) -> Member:
    told = row.notified_at is not None
    # After it was told, what it runs counts as ours only if it runs it because of this job or a later one.
    runs_it = row.bundle_digest == row.digest and (not told or row.reported_counter >= row.counter)
    previous = row.previous if told else row.bundle_digest
    confirmed = (
        back is not None
        and back.counter > 0
        and row.bundle_digest == back.digest
        and row.reported_counter >= back.counter
    )
    return Member(
        device=row.device,
        deploy=_job(row),
        back=_job(back) if back is not None else None,
        previous=previous if previous in known else "",
        on_new=runs_it,
        confirmed_back=confirmed,
        online=row.online,
        revoked=row.revoked_at is not None,
    )


def _job(row: Row[Any]) -> Job:
    return Job(JobState(row.state), row.notified_at, row.deadline_at, row.acknowledged)


def look_of(loaded: Loaded, now: float) -> float | None:
    """The moment up to which telemetry may be judged now; None: nothing soaks, or it is too early."""
    for group in loaded.snapshot.groups:
        if group.state is GroupState.SOAKING and group.soak_started_at is not None:
            looks = loaded.snapshot.strategy.gates.looks
            return look_time(group.soak_started_at, group.phase.soak_s, looks, now)
    return None


def evidence(connection: Connection, loaded: Loaded, until: float) -> Evidence:
    """Telemetry of the rollout's devices received up to `until`, by release and profile.

    Canary: windows on the new release since the rollout's first notification. Control: windows on
    another release since CONTROL_BEFORE_S before that.
    """
    told = [row.notified_at for row in loaded.deploy.values() if row.notified_at is not None]
    if not told:
        return Evidence()
    started = min(told)
    rows = connection.execute(
        select(
            telemetry.c.device,
            telemetry.c.release,
            telemetry.c.received_at,
            telemetry.c["values"],
            telemetry.c.latency_buckets,
        )
        .join(
            jobs,
            and_(
                jobs.c.device == telemetry.c.device,
                jobs.c.rollout == loaded.row.id,
                jobs.c.kind == "deploy",
            ),
        )
        .where(telemetry.c.received_at > started - CONTROL_BEFORE_S, telemetry.c.received_at <= until)
    )
    per_device: dict[tuple[bool, str], Sample] = {}
    for row in rows:
        new = row.release == loaded.release
        if not row.release or (new and row.received_at <= started):
            continue
        key = (new, row.device)
        sample = window(row._mapping["values"], row.latency_buckets)
        per_device[key] = per_device.get(key, Sample(devices=1)) + sample
    canary = _by_profile((loaded.profiles[d], s) for (new, d), s in per_device.items() if new)
    control = _by_profile((loaded.profiles[d], s) for (new, d), s in per_device.items() if not new)
    return Evidence(canary, control)


def window(values: dict[str, float], buckets: list[int]) -> Sample:
    """A telemetry row as a sample; a device that sends nonsense counts as nothing, not as an error."""
    empty = Sample()
    fits = len(buckets) == len(empty.buckets) and min(buckets, default=0) >= 0
    requests, errors, restarts = (
        max(0, int(values.get(name, 0)))
        for name in (
            "edgekit_requests_total",
            "edgekit_request_errors_total",
            "edgekit_serving_restarts_total",
        )
    )
    return Sample(requests, errors, tuple(buckets) if fits else empty.buckets, restarts)


def _by_profile(samples: Iterable[tuple[str, Sample]]) -> dict[str, Sample]:
    result: dict[str, Sample] = {}
    for profile, sample in samples:
        result[profile] = result.get(profile, Sample()) + sample
    return result
