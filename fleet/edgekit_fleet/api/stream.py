"""GET /v1/events: what happens, as Server-Sent Events; `?after=` or Last-Event-ID continues a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from edgekit_fleet.api.body import fleet_of, integer
from edgekit_fleet.db import Database, events
from edgekit_fleet.fleet import Fleet

POLL_S = 0.25
HEARTBEAT_S = 15.0
BATCH = 200
_COLUMNS = ("id", "at", "kind", "device", "rollout", "text", "data")


async def stream(request: Request) -> Response:
    """`?follow=0`: the newest events as JSON instead, oldest first (`limit`, at most 1000)."""
    fleet = fleet_of(request)
    if request.query_params.get("follow") == "0":
        limit = integer(request, "limit", 100, 1000)
        found = await run_in_threadpool(_newest, fleet.db, limit)
        return JSONResponse({"events": found})
    last = request.headers.get("last-event-id", "")
    if last.isascii() and last.isdecimal() and len(last) <= 15:
        after = int(last)
    elif "after" in request.query_params:
        after = integer(request, "after", 0, 10**15)
    else:
        after = await run_in_threadpool(_latest, fleet.db)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_lines(fleet, request, after), media_type="text/event-stream", headers=headers)


async def _lines(fleet: Fleet, request: Request, after: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    quiet_since = time.monotonic()
    while not fleet.stopping.is_set() and not await request.is_disconnected():
        found = await run_in_threadpool(_after, fleet.db, after)
        for item in found:
            after = item["id"]
            yield f"id: {after}\nevent: {item['kind']}\ndata: {json.dumps(item)}\n\n"
        if found:
            quiet_since = time.monotonic()
        elif time.monotonic() - quiet_since > HEARTBEAT_S:
            quiet_since = time.monotonic()
            yield ": still here\n\n"
        if len(found) < BATCH:
            await asyncio.sleep(POLL_S)


def _latest(db: Database) -> int:
    with db.read() as connection:
        return connection.scalar(select(func.max(events.c.id))) or 0


def _after(db: Database, after: int) -> list[dict[str, Any]]:
    columns = [events.c[name] for name in _COLUMNS]
    with db.read() as connection:
        rows = connection.execute(
            select(*columns).where(events.c.id > after).order_by(events.c.id).limit(BATCH)
        )
        return [dict(row) for row in rows.mappings()]


def _newest(db: Database, limit: int) -> list[dict[str, Any]]:
    columns = [events.c[name] for name in _COLUMNS]
    with db.read() as connection:
        rows = connection.execute(select(*columns).order_by(events.c.id.desc()).limit(limit)).mappings()
        return [dict(row) for row in rows][::-1]
