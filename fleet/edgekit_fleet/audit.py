"""The audit log: who changed what, each entry carrying the hash of the one before.

hash = SHA-256 of the canonical JSON of [id, at, actor, action, subject, detail, previous]. Whoever edits,
drops or reorders entries must recompute every later hash; comparing the newest hash with one noted
elsewhere (`edgekit-fleet audit verify` prints it) then shows it, and a cut-off end as well.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, desc, insert, select

from edgekit.codec import to_json
from edgekit_fleet.db import audit

START = "0" * 64


@dataclass(frozen=True)
class Verdict:
    entries: int
    head: str
    """Hash of the newest entry."""
    broken_at: int | None
    """Id of the first entry that does not fit, None when the chain holds."""


def record(
    connection: Connection,
    actor: str,
    action: str,
    subject: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an entry in the caller's transaction: the change and its trace exist together or not at all.

    Writers are serialised (`Database.write`), so ids have no gaps.
    """
    last = connection.execute(
        select(audit.c.id, audit.c.hash).order_by(desc(audit.c.id)).limit(1)
    ).one_or_none()
    number, previous = (last.id + 1, last.hash) if last else (1, START)
    row = {
        "id": number,
        "at": round(time.time(), 3),
        "actor": actor[:64],
        "action": action,
        "subject": subject[:200],
        "detail": to_json(dict(detail or {})).decode(),
        "previous": previous,
    }
    connection.execute(insert(audit), {**row, "hash": _hash(row)})


def verify(connection: Connection) -> Verdict:
    """Walk the whole chain."""
    previous, expected = START, 1
    for entry in connection.execute(select(audit).order_by(audit.c.id)).mappings():
        fits = entry["id"] == expected and entry["previous"] == previous
        if not fits or _hash(dict(entry)) != entry["hash"]:
            return Verdict(expected - 1, previous, int(entry["id"]))
        previous, expected = entry["hash"], expected + 1
    return Verdict(expected - 1, previous, None)


def _hash(row: Mapping[str, Any]) -> str:
    fields = ("id", "at", "actor", "action", "subject", "detail", "previous")
    return hashlib.sha256(to_json([row[name] for name in fields])).hexdigest()
