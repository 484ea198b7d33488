"""Credentials, and the middleware that asks for them: every route without, with wrong, with right ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from edgekit_fleet import auth
from edgekit_fleet.api import login
from edgekit_fleet.api.app import admin_app
from edgekit_fleet.api.guard import PUBLIC, Guard, cookie_name
from edgekit_fleet.auth import Gatekeeper
from edgekit_fleet.db import Database

TOKEN = "t" * 43
COOKIE = cookie_name(8440)


@pytest.fixture
def gate() -> Gatekeeper:
    return Gatekeeper(TOKEN, b"k" * 32)


class Answer:
    def __init__(self) -> None:
        self.status, self.body = 0, b""
        self.headers: dict[str, str] = {}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.body += message.get("body", b"")


def ask(app: Any, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b"") -> Answer:
    """One request straight into the ASGI application."""
    path, _, query = path.partition("?")
    fields = {"host": "h:8440", **(headers or {})}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": query.encode(), "scheme": "https", "root_path": "",
        "headers": [(k.lower().encode(), v.encode()) for k, v in fields.items()],
        "server": ("h", 8440), "client": ("c", 1),
    }  # fmt: skip
    half = len(body) // 2
    parts = iter(
        [
            {"type": "http.request", "body": body[:half], "more_body": True},
            {"type": "http.request", "body": body[half:], "more_body": False},
        ]
    )

    async def receive() -> Any:
        return next(parts, {"type": "http.disconnect"})

    answer = Answer()
    asyncio.run(app(scope, receive, answer.send))
    return answer


async def echo(request: Request) -> Response:
    body = await request.body()
    return PlainTextResponse(f"{request.state.actor}|{request.state.csrf}|{body.decode()}")


@pytest.fixture
def app(gate: Gatekeeper) -> Starlette:
    routes = [Route("/{path:path}", echo, methods=["GET", "POST"])]
    return Starlette(routes=routes, middleware=[Middleware(Guard, gate=gate, cookie=COOKIE)])


def person(gate: Gatekeeper) -> tuple[dict[str, str], str]:
    """(headers, CSRF token) of somebody who is logged in."""
    session, cookie = gate.new_session()
    return {"cookie": f"{COOKIE}={cookie}"}, gate.csrf(session)


def test_tokens_codes_and_sessions(gate: Gatekeeper, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.is_token(TOKEN)
    assert not any(gate.is_token(wrong) for wrong in ("", TOKEN[:-1], TOKEN + "x", "ü" * 43))
    code = gate.new_code()
    assert not gate.use_code(code + "x")
    assert gate.use_code(code)
    assert not gate.use_code(code)
    session, cookie = gate.new_session()
    assert gate.session(cookie) == session
    stranger = Gatekeeper(TOKEN, b"j" * 32)
    assert stranger.session(cookie) is None
    assert not stranger.is_csrf(session, gate.csrf(session))
    body, _, mac = cookie.partition(".")
    for forged in ("", ".", body, f"{body}.", f"{body}x.{mac}", f".{mac}", "x" * 10_000, f"{body}.{mac}é"):
        assert gate.session(forged) is None
    monkeypatch.setattr(auth, "SESSION_S", -1.0)
    assert gate.session(gate.new_session()[1]) is None


def test_nobody_passes_without_credentials(app: Starlette) -> None:
    answer = ask(app, "GET", "/v1/devices")
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(app, "POST", "/v1/tokens", {"authorization": "Bearer wrong"}).status == 401
    assert ask(app, "POST", "/v1/tokens", {"authorization": f"Basic {TOKEN}"}).status == 401
    page = ask(app, "GET", "/devices?x=1&y=2")
    assert (page.status, page.headers["location"]) == (303, "/login?next=%2Fdevices%3Fx%3D1%26y%3D2")
    assert ask(app, "POST", "/devices").status == 401


@pytest.mark.parametrize("path", sorted(PUBLIC))
def test_public_paths_are_open_and_only_exactly_they(app: Starlette, path: str) -> None:
    assert ask(app, "GET", path).status == 200
    assert ask(app, "GET", path + "/").status != 200
    assert ask(app, "GET", "/x/.." + path).status != 200


def test_a_bearer_token_needs_no_csrf(app: Starlette) -> None:
    answer = ask(app, "POST", "/v1/x", {"authorization": f"Bearer {TOKEN}"}, b"body")
    assert (answer.status, answer.body) == (200, b"admin||body")


def test_a_session_reads_and_changes_only_with_its_csrf_token(app: Starlette, gate: Gatekeeper) -> None:
    headers, csrf = person(gate)
    assert ask(app, "GET", "/", headers).body == f"admin|{csrf}|".encode()
    assert ask(app, "POST", "/v1/x", headers).status == 403
    assert ask(app, "POST", "/v1/x", {**headers, "x-csrf-token": csrf + "x"}).status == 403
    _, another = person(gate)
    assert ask(app, "POST", "/v1/x", {**headers, "x-csrf-token": another}).status == 403
    assert ask(app, "POST", "/v1/x", {**headers, "x-csrf-token": csrf}).status == 200


def test_a_form_carries_the_csrf_token_and_arrives_whole(app: Starlette, gate: Gatekeeper) -> None:
    headers, csrf = person(gate)
    headers["content-type"] = "application/x-www-form-urlencoded"
    body = urlencode({"name": "ä b", "csrf": csrf}).encode()
    answer = ask(app, "POST", "/form", headers, body)
    assert (answer.status, answer.body) == (200, b"admin|" + csrf.encode() + b"|" + body)
    assert ask(app, "POST", "/form", headers, b"csrf=wrong").status == 403
    assert ask(app, "POST", "/form", headers, b"csrf=" + b"x" * 100_000).status == 403
    assert ask(app, "POST", "/form", headers, b"csrf=x" + b"&a=1" * 300).status == 403


@pytest.mark.parametrize(
    "extra",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "https://h:8441"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_sites_cannot_use_a_session(app: Starlette, gate: Gatekeeper, extra: dict[str, str]) -> None:
    headers, csrf = person(gate)
    assert ask(app, "POST", "/v1/x", {**headers, "x-csrf-token": csrf, **extra}).status == 403


def test_answers_carry_security_headers(app: Starlette) -> None:
    for path in ("/healthz", "/v1/devices", "/"):
        headers = ask(app, "GET", path).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


@pytest.fixture
def real(gate: Gatekeeper, tmp_path: Path) -> Any:
    """The whole admin application; only its gate and database are there."""
    db = Database.file(tmp_path / "fleet.db")
    db.create()
    fleet: Any = SimpleNamespace(gate=gate, db=db)
    yield admin_app(fleet, 8440)
    db.close()


def test_every_route_but_the_public_ones_is_closed(real: Starlette) -> None:
    checked = 0
    for route in real.routes:
        path = getattr(route, "path", "")
        if path in PUBLIC or path.startswith("/static"):
            continue
        for method in getattr(route, "methods", None) or {"GET"}:
            answer = ask(real, method, path.replace("{", "").replace("}", ""))
            assert answer.status in (401, 303), (method, path, answer.status)
            checked += 1
    assert checked > 25


def test_logging_in_with_a_code_works_once(real: Starlette, gate: Gatekeeper) -> None:
    code = gate.new_code()
    answer = ask(real, "GET", f"/login?code={code}&next=/devices")
    assert (answer.status, answer.headers["location"]) == (303, "/devices")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(COOKIE + "=")
    for word in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert word in cookie
    assert ask(real, "GET", f"/login?code={code}").status == 401
    logged_in = {"cookie": cookie.partition(";")[0]}
    assert ask(real, "GET", f"/login?code={code}", logged_in).status == 303
    assert ask(real, "GET", "/v1/events?follow=0", logged_in).status == 200


def test_logging_in_with_the_token(real: Starlette) -> None:
    assert ask(real, "GET", "/login").status == 200
    assert ask(real, "POST", "/login", body=b"token=wrong").status == 401
    assert ask(real, "POST", "/login", body=b"&".join([b"token=wrong"] * 50)).status == 400
    answer = ask(real, "POST", "/login", body=f"token={TOKEN}&next=/releases".encode())
    assert (answer.status, answer.headers["location"]) == (303, "/releases")


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil", "x", "/a\r\nb: c"])
def test_login_leads_nowhere_else(target: str) -> None:
    assert login._local(target) == "/"


@pytest.mark.parametrize(
    "number", ["9" * 11, "1" + "0" * 30, "000000000001" + "9" * 20, "7" * 5000, "x", "²"]
)
def test_a_rollout_that_cannot_be_is_not_found(real: Starlette, number: str) -> None:
    """Not even one whose number no integer column, or no int(), can take."""
    answer = ask(real, "GET", f"/v1/rollouts/{number}", {"authorization": f"Bearer {TOKEN}"})
    assert answer.status == 404
