"""What the fleet knows about its devices; tags; revocation."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, desc, select, update

from edgekit import wire
from edgekit.codec import parse_json, to_json
from edgekit.errors import InputError
from edgekit_fleet import audit
from edgekit_fleet.config import Keys
from edgekit_fleet.db import Database, devices, insert_new, note, revoked, send, settings, telemetry

MAX_TAGS = 64
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class Unknown(InputError):
    """No such thing."""

    http_status = 404


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises InputError naming the bad tag."""
    if len(tags) > MAX_TAGS:
        raise InputError(f"{len(tags)} tags, at most {MAX_TAGS} are allowed")
    for name, value in tags.items():
        if not _TAG.fullmatch(name):
            raise InputError(f"bad tag name {name[:80]!r}", "use up to 63 letters, digits, dots, dashes")
        if not isinstance(value, str) or len(value) > 200 or not value.isprintable():
            raise InputError(f"bad value of tag {name}", "use up to 200 printable characters")


def list_devices(connection: Connection) -> list[dict[str, Any]]:
    """Every device as the API shows it, by id."""
    rows = connection.execute(select(devices).order_by(devices.c.id)).mappings()
    return [describe(row) for row in rows]


def get_device(connection: Connection, device: str) -> dict[str, Any]:
    row = connection.execute(select(devices).where(devices.c.id == device)).mappings().first()
    if row is None:
        raise Unknown(f"no device {device[:80]!r}", "`edgekit fleet devices` lists them")
    return describe(row)


def describe(row: RowMapping) -> dict[str, Any]:
    reported = row["reported"] or {}
    return {
        **{name: row[name] for name in _SHOWN},
        "revoked": row["revoked_at"] is not None,
        "agent_version": reported.get("agent_version", ""),
        "engines": reported.get("engines", {}),
        "isa": reported.get("isa", []),
        "previous_release": reported.get("previous_release", ""),
        "endpoint": reported.get("endpoint", ""),
        "notice": reported.get("notice", ""),
        "certificate": reported.get("certificate"),
    }


_SHOWN = (
    "id",
    "profile",
    "tags",
    "online",
    "release",
    "bundle_digest",
    "variant",
    "architecture",
    "emulated",
    "last_seen",
    "counter",
    "reported_counter",
    "created_at",
    "revoked_at",
    "serial",
)


def set_tags(db: Database, device: str, tags: Mapping[str, str], actor: str) -> dict[str, Any]:
    """Replace the device's tags. Raises InputError, Unknown."""
    check_tags(tags)
    with db.write() as connection:
        before = get_device(connection, device)["tags"]
        if before != dict(tags):
            connection.execute(update(devices).where(devices.c.id == device).values(tags=dict(tags)))
            audit.record(connection, actor, "device.tags", device, {"from": before, "to": dict(tags)})
            note(connection, "device", f"tags of {device} changed", device=device)
        return get_device(connection, device)


def revoke(db: Database, device: str, actor: str) -> dict[str, Any]:
    """Its certificate is refused from now on and it gets no more keys; idempotent. Raises Unknown.

    The caller then renews the revocation list of the listeners and of the broker.
    """
    now = time.time()
    with db.write() as connection:
        found = get_device(connection, device)
        if not found["revoked"]:
            row = {"serial": found["serial"], "device": device, "revoked_at": now}
            insert_new(connection, revoked, [row])
            values = {"revoked_at": now, "online": False}
            connection.execute(update(devices).where(devices.c.id == device).values(values))
            audit.record(connection, actor, "device.revoke", device, {"serial": found["serial"]})
            send(connection, wire.topic(device, wire.DESIRED), None, retain=True)
            note(connection, "device", f"{device} was revoked", device=device)
        return get_device(connection, device)


def revocation_list(db: Database, keys: Keys) -> bytes:
    """A fresh CRL (PEM) of every revoked serial; its number grows with each call."""
    with db.write() as connection:
        number = (connection.scalar(select(settings.c.value).where(settings.c.key == "crl_number")) or 0) + 1
        if not insert_new(connection, settings, [{"key": "crl_number", "value": number}]):
            connection.execute(update(settings).where(settings.c.key == "crl_number").values(value=number))
        serials = [int(serial, 16) for serial in connection.scalars(select(revoked.c.serial))]
    return keys.ca.crl(serials, number=number)


def may_connect(connection: Connection, device: str, serial: str) -> bool:
    """Whether this certificate is the one that the device has now, and not revoked."""
    row = connection.execute(
        select(devices.c.serial, devices.c.revoked_at).where(devices.c.id == device)
    ).first()
    return row is not None and row.revoked_at is None and row.serial == serial


def read_telemetry(connection: Connection, device: str, limit: int) -> list[dict[str, Any]]:
    """The newest windows, newest first; of one device, or of all when `device` is empty."""
    query = select(telemetry).order_by(desc(telemetry.c.received_at)).limit(limit)
    if device:
        get_device(connection, device)
        query = query.where(telemetry.c.device == device)
    rows = connection.execute(query).mappings()
    return [parse_json(to_json(dict(row)), what="telemetry") for row in rows]
