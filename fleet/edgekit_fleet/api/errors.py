"""Every error as JSON {"error", "hint"}, or as a small page for a person's browser."""

from __future__ import annotations

import html
import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from edgekit.errors import EdgekitError

log = logging.getLogger(__name__)

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<link rel="stylesheet" href="/static/style.css"><main><h1>{title}</h1><p>{hint}</p>
<p><a href="/">Back to the fleet</a></p></main></html>"""


def respond(
    request: Request, status: int, error: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> Response:
    if not request.url.path.startswith("/v1/") and "text/html" in request.headers.get("accept", ""):
        page = _PAGE.format(title=html.escape(error), hint=html.escape(hint))
        return HTMLResponse(page, status, headers)
    return JSONResponse({"error": error, "hint": hint}, status, headers)


async def on_edgekit_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, EdgekitError)  # noqa: S101 - registered for this class only
    return respond(request, exc.http_status, exc.message, exc.hint)


async def on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this class only
    hints = {404: "see docs/fleet.md for the addresses", 405: "see docs/fleet.md for the methods"}
    return respond(request, exc.status_code, exc.detail, hints.get(exc.status_code, ""), exc.headers)


async def on_bug(request: Request, exc: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    return respond(request, 500, "internal error", "the fleet's log has the details")


HANDLERS: dict[Any, Any] = {
    EdgekitError: on_edgekit_error,
    HTTPException: on_http_exception,
    Exception: on_bug,
}
