"""Who may pass: ASGI middleware in front of everything on the admin listener.

    public          /healthz, /v1/ca, /v1/enroll, /v1/recipient, /login, /static/
    bearer token    everything (Prometheus can send one, too)
    session cookie  everything; changes also need Origin and the CSRF token (header or form field `csrf`)

Handlers find `request.state.actor` and `request.state.csrf` ("" with a bearer token).
"""

from __future__ import annotations

from urllib.parse import parse_qs, quote, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgekit.errors import AuthError
from edgekit_fleet.api.errors import respond
from edgekit_fleet.auth import Forbidden, Gatekeeper, Session

PUBLIC = frozenset({"/healthz", "/v1/ca", "/v1/enroll", "/v1/recipient", "/login"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_FORM_BYTES = 64 * 1024
FORM = "application/x-www-form-urlencoded"
SECURITY_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; base-uri 'none'; "
     b"form-action 'self'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)  # fmt: skip


def cookie_name(port: int) -> str:
    """Cookies do not know ports: two fleets on one host need two names."""
    return f"__Host-edgekit-{port}"


class Guard:
    def __init__(self, app: ASGIApp, gate: Gatekeeper, cookie: str) -> None:
        self._app = app
        self._gate = gate
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        send = _with_headers(send)
        request = Request(scope, receive)
        scope.setdefault("state", {}).update(actor="", csrf="")
        path = scope["path"]
        if path in PUBLIC or path.startswith("/static/"):
            await self._app(scope, receive, send)
            return
        try:
            receive = await self._admit(request, receive)
        except AuthError as exc:
            await _refuse(request, exc)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _admit(self, request: Request, receive: Receive) -> Receive:
        """Raises AuthError. What must be read of a form to decide is read, and given back again."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if not self._gate.is_token(token.strip()):
                raise AuthError("the admin token is wrong", "it is in admin.token of the state folder")
            request.state.actor = "admin"
            return receive
        session = self.session(request.headers)
        if session is None:
            raise AuthError("log in first", "send the admin token: Authorization: Bearer ...")
        request.state.actor = "admin"
        request.state.csrf = self._gate.csrf(session)
        if request.method in SAFE:
            return receive
        _check_origin(request)
        presented = request.headers.get("x-csrf-token", "")
        if not presented and request.headers.get("content-type", "").startswith(FORM):
            body = await _read(receive)
            try:
                fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=200)
            except ValueError:
                raise Forbidden("the form has too many fields") from None
            presented = fields.get("csrf", [""])[0]
            receive = _replay(body, receive)
        if not self._gate.is_csrf(session, presented):
            raise Forbidden("the form is too old or was not ours", "reload the page and try again")
        return receive

    def session(self, headers: Headers) -> Session | None:
        return self._gate.session(cookie_parser(headers.get("cookie", "")).get(self._cookie, ""))


def _check_origin(request: Request) -> None:
    """The browser says where a request comes from; only our own pages may change something."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
        raise Forbidden("the request comes from another site", "use the dashboard's own pages")
    if site is not None and site not in ("same-origin", "none"):
        raise Forbidden("the request comes from another site", "use the dashboard's own pages")


def _refuse(request: Request, exc: AuthError) -> Response:
    wants_page = not request.url.path.startswith(("/v1/", "/metrics"))
    if wants_page and request.method in SAFE and not isinstance(exc, Forbidden):
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(f"/login?next={quote(target, safe='')}", 303)
    challenge = {"www-authenticate": "Bearer"} if exc.http_status == 401 else None
    return respond(request, exc.http_status, exc.message, exc.hint, challenge)


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_FORM_BYTES:
            raise Forbidden(f"the form has more than {MAX_FORM_BYTES} bytes")
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once more for the handler, then whatever comes next (a disconnect)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            extra = [pair for pair in SECURITY_HEADERS if pair[0] not in present]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return wrapped
