"""Request bodies: bounded, parsed strictly, handed to a synchronous handler in a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from edgekit.codec import from_json, parse_json
from edgekit.errors import ConfigError
from edgekit_fleet.fleet import Fleet
from edgekit_fleet.releases import TooLarge

T = TypeVar("T")
MAX_BODY_BYTES = 1 << 20


def fleet_of(request: Request) -> Fleet:
    found: Fleet = request.app.state.fleet
    return found


def with_body(
    kind: type[T], handler: Callable[[Request, T], Response]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that parses its JSON body as `kind` (a dataclass, or dict) and calls `handler`."""

    async def endpoint(request: Request) -> Response:
        data = await read_body(request)
        what = "request body"
        parsed = parse_json(data, what=what) if kind is dict else from_json(kind, data, what=what)
        if not isinstance(parsed, kind):
            raise ConfigError("request body: expected an object")
        return await run_in_threadpool(handler, request, parsed)

    return endpoint


async def read_body(request: Request) -> bytes:
    """Raises TooLarge."""
    data = b""
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BODY_BYTES:
            raise TooLarge(f"the request body has more than {MAX_BODY_BYTES} bytes")
    return data


def integer(request: Request, name: str, default: int, top: int) -> int:
    """A query parameter between 0 and `top`. Raises ConfigError."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdecimal() or len(text) > 15 or int(text) > top:
        raise ConfigError(f"{name}: {text[:40]!r} is not a number from 0 to {top}")
    return int(text)
