"""GET and POST /login, POST /logout: the admin token or a one-time code becomes a session cookie."""

from __future__ import annotations

import html
from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from edgekit_fleet import audit
from edgekit_fleet.api.body import fleet_of, read_body
from edgekit_fleet.auth import SESSION_S

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Log in · edgekit fleet</title><link rel="stylesheet" href="/static/style.css"></head>
<body><main><h1>edgekit fleet</h1>{problem}
<form method="post" action="/login"><input type="hidden" name="next" value="{next}">
<p><label for="token">Admin token</label><br>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus></p>
<p><button>Log in</button></p></form>
<p>The token is in <code>admin.token</code> of the state folder; <code>edgekit-fleet login</code> prints a
link that logs in once.</p></main></body></html>"""


def page(request: Request) -> Response:
    """With `?code=` log in at once; else the form."""
    target = _local(request.query_params.get("next", "/"))
    code = request.query_params.get("code")
    if code is None:
        return _form(target)
    if fleet_of(request).gate.use_code(code):
        return _admit(request, target, "code")
    if fleet_of(request).gate.session(request.cookies.get(_cookie(request), "")):
        return RedirectResponse(target, 303)  # the link was followed twice
    return _form(target, "This link was used already or is too old.", 401)


async def submit(request: Request) -> Response:
    body = (await read_body(request)).decode("utf-8", "replace")
    try:
        fields = parse_qs(body, max_num_fields=10)
    except ValueError:
        return _form("/", "The form has too many fields.", 400)
    target = _local(fields.get("next", ["/"])[0])
    if not fleet_of(request).gate.is_token(fields.get("token", [""])[0].strip()):
        return _form(target, "That is not the admin token.", 401)
    return _admit(request, target, "token")


def logout(request: Request) -> Response:
    response = RedirectResponse("/login", 303)
    response.delete_cookie(_cookie(request), path="/", secure=True, httponly=True, samesite="strict")
    return response


def _admit(request: Request, target: str, how: str) -> Response:
    fleet = fleet_of(request)
    _, cookie = fleet.gate.new_session()
    with fleet.db.write() as connection:
        audit.record(connection, "admin", "login", detail={"how": how})
    response = RedirectResponse(target, 303)
    response.set_cookie(
        _cookie(request),
        cookie,
        max_age=int(SESSION_S),
        path="/",
        secure=True,
        httponly=True,
        samesite="strict",
    )
    return response


def _form(target: str, problem: str = "", status: int = 200) -> Response:
    shown = f'<p role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(_PAGE.format(problem=shown, next=html.escape(target, quote=True)), status)


def _cookie(request: Request) -> str:
    return str(request.app.state.cookie)


def _local(target: str) -> str:
    """A path on this server, never another site."""
    plain = target.isprintable() and "\\" not in target
    return target if plain and target.startswith("/") and not target.startswith("//") else "/"


ROUTES = [
    Route("/login", page, methods=["GET"]),
    Route("/login", submit, methods=["POST"]),
    Route("/logout", logout, methods=["POST"]),
]
