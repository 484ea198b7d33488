"""`edgekit-agent status`: the journal in words. Reads the database beside a running agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekit import codec
from edgekit.errors import InputError
from edgekit_agent import certificates, fallback
from edgekit_agent.store import Release, Store


def status(folder: Path) -> dict[str, Any]:
    """Releases, job in hand, what waits for the fleet. Raises InputError: no agent's state folder."""
    if not (folder / "agent.db").exists():
        raise InputError(f"{folder} has no agent.db", "give the state folder of an agent that has run")
    store = Store(folder)
    try:
        job = store.active() or store.queued()
        return {
            "endpoint": store.get("endpoint"),
            "current": _release(store.release("current")),
            "certificate": _certificate(folder, store.release("current")),
            "previous": _release(store.release("previous")),
            "notice": fallback.notice(store),
            "job": None
            if job is None
            else {"job": job.job, "release": job.assignment.release, "state": job.state, "stage": job.stage},
            "counter": store.floor,
            "updates_waiting": len(store.outbox()),
            "windows_waiting": store.count_windows(),
        }
    finally:
        store.close()


def _certificate(folder: Path, release: Release | None) -> Any:
    """What this device measured of the variant it serves; None when the builder had done it."""
    if release is None:
        return None
    found = certificates.read(folder / certificates.FOLDER, release.assignment.bundle_digest, release.variant)
    return None if found is None else codec.to_plain(found)


def _release(release: Release | None) -> dict[str, str] | None:
    if release is None:
        return None
    assignment = release.assignment
    return {
        "release": assignment.release,
        "variant": release.variant,
        "bundle_digest": assignment.bundle_digest,
        "job": assignment.job,
    }
