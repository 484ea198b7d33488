"""Enrolment: a one-time token buys a device certificate and registers the device's sealing key.

A token is `ek1.<base64url(JSON {url, ca_sha256, secret})>`. The fleet stores only SHA-256 of the secret.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, insert, or_, select, update

from edgekit import wire
from edgekit.codec import parse_json, to_json
from edgekit.crypto.keys import RecipientKey, VerifyKey
from edgekit.crypto.x509 import check_device_id, serial_number
from edgekit.errors import AuthError, InputError
from edgekit.wire import EnrollAnswer, EnrollRequest
from edgekit_fleet import audit
from edgekit_fleet.auth import Forbidden
from edgekit_fleet.config import Keys
from edgekit_fleet.db import (
    Database,
    devices,
    insert_new,
    job_updates,
    note,
    revoked,
    send,
    telemetry,
    tokens,
)
from edgekit_fleet.devices import check_tags

DEFAULT_TTL_S = 24 * 3600.0
MAX_TTL_S = 90 * 24 * 3600.0
MAX_PEM = 16 * 1024
RESERVED = frozenset({"fleet"})
"""User names on the broker that are not devices."""


class NotReady(InputError):
    """The fleet lacks something that enrolment hands out."""

    http_status = 409


@dataclass(frozen=True)
class TokenRequest:
    device: str = ""
    profile: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    ttl_s: float = DEFAULT_TTL_S


@dataclass(frozen=True)
class Token:
    token: str
    expires_at: float
    device: str
    profile: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Address:
    """Where devices find the fleet."""

    url: str
    device_url: str
    broker_host: str
    broker_port: int


def create_token(db: Database, keys: Keys, address: Address, wanted: TokenRequest, actor: str) -> Token:
    """Raises InputError for a bad device id, tags or time to live."""
    if wanted.device:
        _check_id(wanted.device)
    check_tags(wanted.tags)
    if len(wanted.profile) > 64:
        raise InputError("profile: longer than 64 characters")
    if not 0 < wanted.ttl_s <= MAX_TTL_S:
        raise InputError(f"ttl_s: {wanted.ttl_s:g} s", f"choose more than 0 and at most {MAX_TTL_S:g}")
    secret, now = secrets.token_urlsafe(24), time.time()
    row = {"device": wanted.device, "profile": wanted.profile, "tags": dict(wanted.tags)}
    with db.write() as connection:
        connection.execute(
            insert(tokens),
            {**row, "hash": _hash(secret), "created_at": now, "expires_at": now + wanted.ttl_s},
        )
        audit.record(connection, actor, "token.create", wanted.device, {**row, "ttl_s": wanted.ttl_s})
    carried = to_json({"url": address.url, "ca_sha256": keys.ca.pin, "secret": secret})
    text = "ek1." + base64.urlsafe_b64encode(carried).rstrip(b"=").decode()
    return Token(text, now + wanted.ttl_s, wanted.device, wanted.profile, wanted.tags)


def enroll(
    db: Database, keys: Keys, address: Address, builders: list[VerifyKey], request: EnrollRequest
) -> tuple[EnrollAnswer, bool]:
    """Use up the token and register the device; either all of it happens or nothing.

    True with the answer: a device of this name was there before, its old certificate is revoked now and
    the caller renews the revocation lists.

    Raises AuthError (401) for a token that is unknown, used or expired; InputError (400) for a bad
    request and NotReady (409) while no builder is trusted, which leave the token usable.
    """
    if not builders:  # the device would have nothing to verify a bundle with, for good
        raise NotReady(
            "this fleet trusts no builder yet", "on the fleet: edgekit-fleet trust add builder.pub"
        )
    if len(request.csr_pem) > MAX_PEM or len(request.sealing_key_pem) > MAX_PEM:
        raise InputError("enrolment: a key is too large", "send one PEM document each")
    sealing = RecipientKey.from_pem(request.sealing_key_pem.encode(), "sealing_key_pem")
    now = time.time()
    with db.write() as connection:
        token = connection.execute(
            select(tokens).where(tokens.c.hash == _hash(_secret(request.token)))
        ).first()
        if token is None:
            raise AuthError("the enrolment token is unknown", "ask for a new one: edgekit fleet enroll")
        if token.used_at is not None:
            raise AuthError("the enrolment token was used already", "each device needs a token of its own")
        if token.expires_at <= now:
            raise AuthError("the enrolment token has expired", "ask for a new one: edgekit fleet enroll")
        device = _agree("device id", token.device, request.device)
        profile = _agree("profile", token.profile, request.profile)
        if not device:
            raise InputError("neither the token nor the device names the device", "enrol with --device NAME")
        _check_id(device)
        if len(profile) > 64:
            raise InputError("profile: longer than 64 characters")
        if not token.device and _known(connection, device):
            raise Forbidden(
                f"a device named {device} is enrolled already",
                f"to replace it use a token made for it: edgekit fleet enroll --device {device}",
            )
        certificate = keys.ca.sign_csr(request.csr_pem.encode(), device)
        # One statement decides who was first, whatever the database's isolation.
        won = connection.execute(
            update(tokens)
            .where(tokens.c.hash == token.hash, tokens.c.used_at.is_(None))
            .values(used_at=now, used_by=device)
        )
        if won.rowcount != 1:
            raise AuthError("the enrolment token was used already", "each device needs a token of its own")
        values = {
            "profile": profile,
            "tags": token.tags,
            "serial": f"{serial_number(certificate):x}",
            "fingerprint": hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.decode())).hexdigest(),
            "sealing_key_pem": sealing.to_pem().decode(),
        }
        replaced = _register(connection, device, values, now)
        detail = {"profile": profile, "serial": values["serial"], "sealing_key": sealing.key_id}
        audit.record(connection, f"device:{device}", "device.enroll", device, detail)
        note(connection, "enrolled", f"{device} enrolled as {profile or 'any profile'}", device=device)
    answer = EnrollAnswer(
        device=device,
        tenant=wire.TENANT,
        certificate_pem=certificate.decode(),
        ca_pem=keys.ca.certificate_pem.decode(),
        broker_host=address.broker_host,
        broker_port=address.broker_port,
        device_url=address.device_url,
        assignment_key_pem=keys.assignment.public().to_pem().decode(),
        builder_keys_pem=tuple(key.to_pem().decode() for key in builders),
    )
    return answer, replaced


def _register(connection: Connection, device: str, values: Mapping[str, object], now: float) -> bool:
    """A new device, or a known one with a new identity: its old certificate is revoked.

    Counters of what it sent start anew with it; `counter` (of what we signed) only ever grows.
    """
    known = connection.execute(select(devices).where(devices.c.id == device)).first()
    if known is None:
        connection.execute(insert(devices), {"id": device, "created_at": now, **values})
        return False
    insert_new(connection, revoked, [{"serial": known.serial, "device": device, "revoked_at": now}])
    fresh = {"revoked_at": None, "online": False, "boot": "", "reported": None, "reported_version": 0}
    connection.execute(update(devices).where(devices.c.id == device).values({**fresh, **values}))
    for table in (job_updates, telemetry):
        connection.execute(delete(table).where(table.c.device == device))
    send(connection, wire.topic(device, wire.DESIRED), None, retain=True)  # sealed to its old key
    return True


def forget_old_tokens(connection: Connection, now: float) -> None:
    """Tokens that nobody can use any more, a while after they ended (so that errors stay precise)."""
    old = now - 7 * 24 * 3600.0
    connection.execute(delete(tokens).where(or_(tokens.c.used_at < old, tokens.c.expires_at < old)))


def _known(connection: Connection, device: str) -> bool:
    return connection.scalar(select(devices.c.id).where(devices.c.id == device)) is not None


def _agree(what: str, given: str, asked: str) -> str:
    """What the token prescribes, else what the device asks for. Raises Forbidden."""
    if given and asked and given != asked:
        raise Forbidden(
            f"the token is for {what} {given!r}, not {asked!r}", "use a token made for this device"
        )
    return given or asked


def _check_id(device: str) -> None:
    check_device_id(device)
    if device.lower() in RESERVED:
        raise InputError(f"the device id {device!r} is reserved", "choose another")


def _secret(token: str) -> str:
    """The secret of "ek1..." text; anything else is taken as the secret itself."""
    if not token.startswith("ek1."):
        return token
    text = token.removeprefix("ek1.")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        return str(parse_json(data, what="the enrolment token", max_bytes=4096, error=AuthError)["secret"])
    except (ValueError, KeyError, TypeError, AuthError):
        raise AuthError("the enrolment token is not readable", "copy all of it") from None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
