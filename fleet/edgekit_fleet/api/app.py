"""The two ASGI applications: one for people and their programs, one for devices."""

from __future__ import annotations

from sqlalchemy import select
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from edgekit.errors import AuthError
from edgekit_fleet import devices, releases, web
from edgekit_fleet.api import login, routes
from edgekit_fleet.api.body import fleet_of
from edgekit_fleet.api.errors import HANDLERS
from edgekit_fleet.api.guard import Guard, cookie_name
from edgekit_fleet.api.metrics import metrics
from edgekit_fleet.api.stream import stream
from edgekit_fleet.auth import Forbidden
from edgekit_fleet.db import jobs
from edgekit_fleet.fleet import Fleet
from edgekit_fleet.tls import Peer


def admin_app(fleet: Fleet, port: int) -> Starlette:
    """API and dashboard; everything but the public paths is behind `Guard`."""
    cookie = cookie_name(port)
    app = Starlette(
        routes=[
            *routes.ROUTES,
            *login.ROUTES,
            Route("/v1/events", stream),
            Route("/metrics", metrics),
            *web.ROUTES,
        ],
        middleware=[Middleware(Guard, gate=fleet.gate, cookie=cookie)],
        exception_handlers=HANDLERS,
    )
    app.state.fleet, app.state.cookie = fleet, cookie
    return app


def device_app(fleet: Fleet) -> Starlette:
    """What a device may fetch, over mutual TLS."""
    app = Starlette(routes=[Route("/v1/bundles/{digest}", bundle)], exception_handlers=HANDLERS)
    app.state.fleet = fleet
    return app


def bundle(request: Request) -> Response:
    """The bytes of a bundle that the device was ever assigned; Range is supported."""
    fleet = fleet_of(request)
    digest = request.path_params["digest"]
    peer: Peer | None = request.state.peer
    with fleet.db.read() as connection:
        if peer is None or not devices.may_connect(connection, peer.device, peer.serial):
            raise AuthError("this device certificate is not valid any more", "enrol the device again")
        path = releases.bundle_path(connection, fleet.state, digest)
        mine = select(jobs.c.id).where(
            jobs.c.device == peer.device, jobs.c.digest == digest, jobs.c.notified_at.is_not(None)
        )
        if connection.scalar(mine.limit(1)) is None:
            raise Forbidden(f"{peer.device} was not assigned this bundle", "a rollout assigns it")
    # The bytes of a digest never change: no validation by date is needed.
    return FileResponse(path, media_type="application/octet-stream", headers={"etag": f'"{digest}"'})
