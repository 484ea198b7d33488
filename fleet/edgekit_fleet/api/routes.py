"""The admin API's endpoints: devices, releases, rollouts, telemetry, audit."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgekit import wire
from edgekit.codec import to_plain
from edgekit.crypto.keys import VerifyKey
from edgekit_fleet import audit, config, devices, enroll, releases
from edgekit_fleet.api.body import fleet_of, integer, with_body
from edgekit_fleet.db import audit as audit_table
from edgekit_fleet.devices import Unknown
from edgekit_fleet.rollout import create as rollout_create
from edgekit_fleet.rollout import view
from edgekit_fleet.rollout.create import RolloutRequest

JSON_NUMBER_LIMIT = 2**31


def actor(request: Request) -> str:
    return str(request.state.actor)


def health(request: Request) -> Response:
    fleet = fleet_of(request)
    parts = {"broker": fleet.broker.alive, "worker": fleet.worker.connected}
    return JSONResponse({"ok": all(parts.values()), **parts}, 200 if all(parts.values()) else 503)


def ca(request: Request) -> Response:
    pem = fleet_of(request).keys.ca.certificate_pem
    return PlainTextResponse(pem, media_type="application/x-pem-file")


def recipient(request: Request) -> Response:
    pem = fleet_of(request).keys.recipient.to_pem()
    return PlainTextResponse(pem, media_type="application/x-pem-file")


def create_token(request: Request, wanted: enroll.TokenRequest) -> Response:
    fleet = fleet_of(request)
    token = enroll.create_token(fleet.db, fleet.keys, fleet.address, wanted, actor(request))
    return JSONResponse(to_plain(token), 201)


def enroll_device(request: Request, asked: wire.EnrollRequest) -> Response:
    fleet = fleet_of(request)
    builders = config.trusted_keys(fleet.state)
    answer, replaced = enroll.enroll(fleet.db, fleet.keys, fleet.address, builders, asked)
    if replaced:
        fleet.renew_revocations(answer.device)
    return JSONResponse(to_plain(answer), 201)


def list_devices(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse({"devices": devices.list_devices(connection)})


def get_device(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse(devices.get_device(connection, request.path_params["device"]))


def set_tags(request: Request, tags: dict[str, Any]) -> Response:
    """Body: all tags of the device, {"name": "value"}."""
    device = request.path_params["device"]
    return JSONResponse(devices.set_tags(fleet_of(request).db, device, tags, actor(request)))


def revoke_device(request: Request) -> Response:
    fleet, device = fleet_of(request), request.path_params["device"]
    answer = devices.revoke(fleet.db, device, actor(request))
    fleet.renew_revocations(device)
    return JSONResponse(answer)


async def publish(request: Request) -> Response:
    """Body: the bundle's bytes. 201 when new, 200 when it was there already."""
    fleet = fleet_of(request)
    upload = await run_in_threadpool(releases.Upload, fleet.state)
    try:
        async for chunk in request.stream():
            await run_in_threadpool(upload.write, chunk)
        release, new = await run_in_threadpool(
            releases.publish, fleet.db, fleet.keys, fleet.state, upload, actor(request)
        )
    finally:
        await run_in_threadpool(upload.discard)
    return JSONResponse(release, 201 if new else 200)


def list_releases(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse({"releases": releases.list_releases(connection)})


def get_release(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse(releases.get(connection, request.path_params["reference"]))


def create_rollout(request: Request, asked: RolloutRequest) -> Response:
    fleet = fleet_of(request)
    answer = rollout_create.create(fleet.db, fleet.engine, asked, time.time(), actor(request))
    return JSONResponse(answer, 200 if asked.dry_run else 201)


def list_rollouts(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse({"rollouts": view.list_rollouts(connection)})


def get_rollout(request: Request) -> Response:
    with fleet_of(request).db.read() as connection:
        return JSONResponse(view.describe(connection, _rollout(request)))


def command_rollout(request: Request) -> Response:
    """POST /v1/rollouts/{id}/{verb}: start, approve, pause, resume, abort, rollback."""
    fleet, rollout = fleet_of(request), _rollout(request)
    with fleet.db.read() as connection:
        view.describe(connection, rollout)  # 404 when there is none
    fleet.engine.command(rollout, request.path_params["verb"], time.time(), actor(request))
    with fleet.db.read() as connection:
        return JSONResponse(view.describe(connection, rollout))


def list_telemetry(request: Request) -> Response:
    """?device= (all when missing) &limit= (100, at most 10000): newest windows first."""
    limit = integer(request, "limit", 100, 10_000)
    with fleet_of(request).db.read() as connection:
        found = devices.read_telemetry(connection, request.query_params.get("device", ""), limit)
    return JSONResponse({"telemetry": found})


def list_audit(request: Request) -> Response:
    """?limit= newest entries, newest first, and whether the whole chain holds."""
    limit = integer(request, "limit", 100, 10_000)
    with fleet_of(request).db.read() as connection:
        verdict = audit.verify(connection)
        query = select(audit_table).order_by(audit_table.c.id.desc()).limit(limit)
        entries = [dict(row) for row in connection.execute(query).mappings()]
    return JSONResponse({"chain": to_plain(verdict), "entries": entries})


def add_trusted(request: Request, body: dict[str, Any]) -> Response:
    """Body {"pem": ...}: accept bundles of this builder."""
    fleet = fleet_of(request)
    key = config.trust(fleet.state, VerifyKey.from_pem(str(body.get("pem", "")).encode(), "pem"))
    with fleet.db.write() as connection:
        audit.record(connection, actor(request), "trust.add", key.key_id)
    return JSONResponse({"key_id": key.key_id}, 201)


def list_trusted(request: Request) -> Response:
    keys = config.trusted_keys(fleet_of(request).state)
    return JSONResponse({"trusted": [{"key_id": k.key_id, "pem": k.to_pem().decode()} for k in keys]})


def new_login(request: Request) -> Response:
    fleet = fleet_of(request)
    return JSONResponse({"url": f"{fleet.address.url}/login?code={fleet.gate.new_code()}"}, 201)


def _rollout(request: Request) -> int:
    text = request.path_params["rollout"]
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > JSON_NUMBER_LIMIT:
        raise Unknown(f"no rollout {text[:40]!r}", "`edgekit fleet rollout list` shows all")
    return int(text)


ROUTES = [
    Route("/healthz", health),
    Route("/v1/ca", ca),
    Route("/v1/recipient", recipient),
    Route("/v1/enroll", with_body(wire.EnrollRequest, enroll_device), methods=["POST"]),
    Route("/v1/tokens", with_body(enroll.TokenRequest, create_token), methods=["POST"]),
    Route("/v1/devices", list_devices),
    Route("/v1/devices/{device}", get_device),
    Route("/v1/devices/{device}/tags", with_body(dict, set_tags), methods=["PUT"]),
    Route("/v1/devices/{device}/revoke", revoke_device, methods=["POST"]),
    Route("/v1/releases", list_releases, methods=["GET"]),
    Route("/v1/releases", publish, methods=["POST"]),
    Route("/v1/releases/{reference}", get_release),
    Route("/v1/rollouts", list_rollouts, methods=["GET"]),
    Route("/v1/rollouts", with_body(RolloutRequest, create_rollout), methods=["POST"]),
    Route("/v1/rollouts/{rollout}", get_rollout),
    Route("/v1/rollouts/{rollout}/{verb}", command_rollout, methods=["POST"]),
    Route("/v1/telemetry", list_telemetry),
    Route("/v1/audit", list_audit),
    Route("/v1/trusted", list_trusted, methods=["GET"]),
    Route("/v1/trusted", with_body(dict, add_trusted), methods=["POST"]),
    Route("/v1/logins", new_login, methods=["POST"]),
]
