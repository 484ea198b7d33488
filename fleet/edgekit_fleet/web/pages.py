"""The dashboard's pages. `api.guard` has let the person in; handlers run in threads.

A page is built from one database transaction. Buttons are POST forms that carry the session's CSRF
token, which the guard checks before a handler here sees them.
"""

from __future__ import annotations

import time

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from edgekit.errors import EdgekitError
from edgekit_fleet import audit, config, releases
from edgekit_fleet import devices as devices_
from edgekit_fleet.db import audit as audit_table
from edgekit_fleet.devices import Unknown
from edgekit_fleet.fleet import Fleet
from edgekit_fleet.rollout import view
from edgekit_fleet.rollout.create import load_targets
from edgekit_fleet.rollout.query import QueryError
from edgekit_fleet.rollout.query import select as select_targets
from edgekit_fleet.web import data
from edgekit_fleet.web.certificate import certificates
from edgekit_fleet.web.render import HERE, page

PER_PAGE = 200
_AUDIT_PER_PAGE = 200

_BUTTONS = {
    "DRAFT": (("start", "Start", False), ("abort", "Abort", True)),
    "WAITING_FOR_APPROVAL": (("approve", "Approve", False), ("abort", "Abort", True)),
    "SCHEDULED": (("abort", "Abort", True),),
    "READY": (("abort", "Abort", True),),
    "RUNNING": (("pause", "Pause", False), ("abort", "Abort", True), ("rollback", "Roll back", True)),
    "PAUSED": (("resume", "Resume", False), ("abort", "Abort", True), ("rollback", "Roll back", True)),
    "STOPPING": (("rollback", "Roll back", True),),
}


def _fleet(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


def overview(request: Request) -> Response:
    with _fleet(request).db.read() as connection:
        profiles = data.profiles(connection)
        rate, error_rate = data.traffic(connection)
        rollouts = view.list_rollouts(connection)
        found = data.list_releases(connection)
        events = data.latest_events(connection, 30)
    totals = {
        "devices": sum(item["all"] for item in profiles),
        "online": sum(item["online"] for item in profiles),
        "rate": rate,
        "error_rate": error_rate,
    }
    active = [item for item in rollouts if not item["ended"]]
    return page(
        "overview.html",
        section="/",
        live=True,
        totals=totals,
        profiles=profiles,
        active=active,
        releases=found,
        events=events,
    )


def device_list(request: Request) -> Response:
    q = request.query_params.get("q", "").strip()
    problem: QueryError | None = None
    with _fleet(request).db.read() as connection:
        found = devices_.list_devices(connection)
        if q:
            try:
                ids = {target.id for target in select_targets(q, load_targets(connection))}
                found = [item for item in found if item["id"] in ids]
            except QueryError as exc:
                problem, found = exc, []
    pages = max(1, -(-len(found) // PER_PAGE))
    number = min(_positive(request.query_params.get("page", "1")), pages)
    first = (number - 1) * PER_PAGE
    return page(
        "devices.html",
        status=400 if problem else 200,
        section="/devices",
        live=True,
        q=q,
        problem=problem,
        total=len(found),
        devices=found[first : first + PER_PAGE],
        first=first,
        pages=pages,
        number=number,
    )


def device(request: Request) -> Response:
    name = request.path_params["device"]
    with _fleet(request).db.read() as connection:
        found = devices_.get_device(connection, name)
        charts, windows = data.device_charts(connection, name)
        jobs = data.device_jobs(connection, name)
        events = data.latest_events(connection, 50, name)
    return page(
        "device.html",
        section="/devices",
        live=True,
        device=found,
        charts=charts,
        windows=windows,
        jobs=jobs,
        events=events,
    )


def release_list(request: Request) -> Response:
    with _fleet(request).db.read() as connection:
        found = data.list_releases(connection)
    return page("releases.html", section="/releases", live=True, releases=found)


def release(request: Request) -> Response:
    fleet = _fleet(request)
    problem = ""
    with fleet.db.read() as connection:
        digest = request.path_params["digest"]
        found = data.with_running(connection, [releases.get(connection, digest)])[0]
        path = releases.bundle_path(connection, fleet.state, found["digest"])
    try:
        shown = certificates(path, config.trusted_keys(fleet.state))
    except (EdgekitError, OSError) as exc:
        shown, problem = {}, str(exc)
    return page(
        "release.html",
        section="/releases",
        live=False,
        release=found,
        certificates=shown,
        problem=problem,
    )


def rollout_list(request: Request) -> Response:
    with _fleet(request).db.read() as connection:
        found = view.list_rollouts(connection)
    return page("rollouts.html", section="/rollouts", live=True, rollouts=found)


def rollout(request: Request) -> Response:
    with _fleet(request).db.read() as connection:
        found = view.describe(connection, _rollout_id(request))
    csrf = str(request.state.csrf)
    # Buttons need a session; who came with the bearer token has the API.
    verbs = _BUTTONS.get(found["state"], ()) if csrf else ()
    return page(
        "rollout.html",
        section="/rollouts",
        live=True,
        rollout=found,
        csrf=csrf,
        verbs=verbs,
    )


def rollout_command(request: Request) -> Response:
    number = _rollout_id(request)
    fleet = _fleet(request)
    with fleet.db.read() as connection:
        view.describe(connection, number)  # 404 when there is none
    fleet.engine.command(number, request.path_params["verb"], time.time(), str(request.state.actor))
    return RedirectResponse(f"/rollouts/{number}", 303)


def audit_log(request: Request) -> Response:
    before = _positive(request.query_params.get("before", str(2**31)))
    query = select(audit_table).where(audit_table.c.id < before).order_by(audit_table.c.id.desc())
    with _fleet(request).db.read() as connection:
        entries = connection.execute(query.limit(_AUDIT_PER_PAGE)).mappings().all()
        verdict = audit.verify(connection)
    older = entries[-1]["id"] if len(entries) == _AUDIT_PER_PAGE and entries[-1]["id"] > 1 else 0
    return page("audit.html", section="/audit", live=False, entries=entries, verdict=verdict, older=older)


def _positive(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 11 else 1


def _rollout_id(request: Request) -> int:
    text = request.path_params["rollout"]
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise Unknown(f"no rollout {text[:40]!r}", "look at the list of rollouts")
    return int(text)


ROUTES: list[BaseRoute] = [
    Route("/", overview),
    Route("/devices", device_list),
    Route("/devices/{device}", device),
    Route("/releases", release_list),
    Route("/releases/{digest}", release),
    Route("/rollouts", rollout_list),
    Route("/rollouts/{rollout}", rollout),
    Route("/rollouts/{rollout}/{verb}", rollout_command, methods=["POST"]),
    Route("/audit", audit_log),
    Mount("/static", StaticFiles(directory=HERE / "static")),
]
