"""The protocol "triton": what Triton has over HTTP beyond the Open Inference Protocol of oip_http.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgekit.errors import InputError
from edgekit_agent.serve import generate, triton_settings
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve.core import Core, NotServed
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.message import Request, Response, error, ok

_FLEET = "releases come from the fleet: clients do not load or unload models"
_NO_CUDA = "CUDA shared memory is not supported"

Action = Callable[[], Any]
"""Gives the document of a 200, or None for an empty body. Raises InputError or NotServed."""


class Protocol:
    """See router.Protocol."""

    name = "triton"

    def __init__(self, core: Core) -> None:
        self._core = core

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        if parts[0] != "v2":
            return False
        match parts[1:]:
            case ["models", name, ("generate" | "generate_stream") as how]:
                self._generate(name, "", how, request, respond)
            case ["models", name, "versions", version, ("generate" | "generate_stream") as how]:
                self._generate(name, version, how, request, respond)
            case rest:
                actions = self._actions(rest, request)
                if actions is None:
                    return False
                action = actions.get(request.method)
                if action is None:
                    allowed = ", ".join(method.decode() for method in actions)
                    respond(error(405, "Method Not Allowed", f"Allow: {allowed}\r\n"))
                else:
                    respond(_answer(action))
        return True

    def _generate(self, name: str, version: str, how: str, request: Request, respond: Respond) -> None:
        if http.allowed(b"POST", request, respond):
            codec = generate.Codec(request, stream=how == "generate_stream")
            self._core.infer(
                name, version, codec, respond, received_ns=request.received_ns, heavy=http.heavy(request)
            )

    def _actions(self, parts: list[str], request: Request) -> dict[bytes, Action] | None:
        """What each method does; None when there is no such path."""
        match parts:
            case ["repository", "models", _, "load" | "unload"]:
                return {b"POST": lambda: _refuse(_FLEET)}
            case ["trace", "setting"]:
                return self._trace(request, "")
            case ["models", name, "trace", "setting"]:
                return self._trace(request, name)
            case ["logging"]:
                return {
                    b"GET": triton_settings.log,
                    b"POST": lambda: triton_settings.change_log(self._settings(request)),
                }
            case ["systemsharedmemory", *rest]:
                return self._system_memory(rest, request)
            case ["cudasharedmemory", *rest]:
                return _cuda_memory(rest)
        return None

    def _trace(self, request: Request, name: str) -> dict[bytes, Action]:
        def get() -> Any:
            if name:
                self._core.find(name)
            return triton_settings.trace()

        def change() -> Any:
            get()
            return triton_settings.change_trace(self._settings(request))

        return {b"GET": get, b"POST": change}

    def _system_memory(self, parts: list[str], request: Request) -> dict[bytes, Action] | None:
        regions, peer = self._core.regions, request.peer
        match parts:
            case ["status"]:
                return {b"GET": lambda: regions.status(peer)}
            case ["region", name, "status"]:
                return {b"GET": lambda: regions.status(peer, name)}
            case ["unregister"]:
                return {b"POST": lambda: regions.unregister(peer)}
            case ["region", name, "unregister"]:
                return {b"POST": lambda: regions.unregister(peer, name)}
            case ["region", name, "register"]:
                return {b"POST": lambda: self._register(name, request)}
        return None

    def _register(self, name: str, request: Request) -> None:
        document = self._json(request)
        key, offset, size = document.get("key"), document.get("offset", 0), document.get("byte_size")
        if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
            raise InputError("a region needs key (text), byte_size and perhaps offset (integers)")
        self._core.regions.register(request.peer, name, key, offset, size)

    def _settings(self, request: Request) -> dict[str, Any]:
        """Who may reach the agent from elsewhere may not change what it writes about them."""
        if not request.peer.local:
            raise InputError("settings are changed from this machine only")
        return self._json(request) if request.body else {}

    def _json(self, request: Request) -> dict[str, Any]:
        return http.json_object(http.small(request))


def _cuda_memory(parts: list[str]) -> dict[bytes, Action] | None:
    match parts:
        case ["status"]:
            return {b"GET": list}
        case ["region", _, "status"]:
            return {b"GET": lambda: _refuse(_NO_CUDA)}
        case ["unregister"] | ["region", _, "unregister"]:
            return {b"POST": lambda: None}
        case ["region", _, "register"]:
            return {b"POST": lambda: _refuse(_NO_CUDA)}
    return None


def _refuse(text: str) -> None:
    raise InputError(text)


def _answer(action: Action) -> Response:
    try:
        document = action()
    except (InputError, NotServed) as exc:
        return http.refusal(exc.http_status, str(exc))
    return Response(200) if document is None else ok(document)
