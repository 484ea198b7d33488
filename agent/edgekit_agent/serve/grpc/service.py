"""What a gRPC service is to the connections: paths with handlers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edgekit.errors import EdgekitError
from edgekit_agent.logs import Requests
from edgekit_agent.serve.grpc import status, wire
from edgekit_agent.serve.grpc.framing import Buffer, Compressed
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.grpc.wire import Message, Values
from edgekit_agent.serve.peer import NOBODY, Peer

_MAX_SIMPLE_BYTES = 256 * 1024  # requests without tensors


@dataclass(slots=True)
class Reply:
    """The answer to one message: its octets in order, or (code other than OK) why there is none."""

    parts: list[Buffer] = field(default_factory=list)
    code: int = status.OK
    text: str = ""


Respond = Callable[[Reply], None]
"""Takes the answer, now or later, exactly once, on the event loop."""


class Incoming(Protocol):
    """One message of a call."""

    message: Buffer | Compressed
    received_ns: int
    """time.perf_counter_ns() when its last octet was read."""
    deadline_ns: int
    """By the same clock, from grpc-timeout; 0: none."""
    headers: Mapping[bytes, bytes]
    peer: Peer


@dataclass(slots=True)
class Arrived:
    """An `Incoming` by itself."""

    message: Buffer | Compressed
    received_ns: int
    deadline_ns: int
    headers: Mapping[bytes, bytes]
    peer: Peer = NOBODY


Handler = Callable[[Incoming, Respond], None]


@dataclass(frozen=True, slots=True)
class Method:
    handler: Handler
    streams: bool = False
    """Many requests and many answers in one call, answered in order; a refused one ends the call."""
    counted: bool = True
    """Whether it may have to wait for the engine, and so counts in its client's share."""


class Service(Protocol):
    """A package's service: the class `Service` of a module, made with the core."""

    name: str
    """With its package, as in the path of its calls."""

    def methods(self) -> dict[str, Method]: ...


def simple(request: Message, response: Message, function: Callable[[Values], Values]) -> Method:
    """A method that answers at once, from decoded request to values of the response."""
    return personal(request, response, lambda values, _: function(values))


def personal(request: Message, response: Message, function: Callable[[Values, Peer], Values]) -> Method:
    """The same for a function to which it matters who asks."""

    def handler(incoming: Incoming, respond: Respond) -> None:
        message = incoming.message
        plain = message.whole(_MAX_SIMPLE_BYTES) if isinstance(message, Compressed) else message
        values = wire.decode(request, plain, max_items=4096)
        respond(Reply([wire.encode(response, function(values, incoming.peer))]))

    return Method(handler, counted=False)


def refusal(exc: BaseException) -> Reply:
    """The answer to a call that failed; what nobody expected says nothing of itself."""
    if isinstance(exc, RpcError):
        return Reply(code=exc.code, text=exc.text)
    if isinstance(exc, EdgekitError):
        return Reply(code=status.from_http(exc.http_status), text=str(exc))
    return Reply(code=status.INTERNAL, text="internal error; see the agent's log")


class Registry:
    """All methods of all services by their path."""

    def __init__(
        self,
        services: Iterable[Service],
        complain: Callable[[str, BaseException], None],
        log: Requests = "none",
    ) -> None:
        """`complain`: gets what nobody expected, for the log. `log`: calls that have a line there."""
        self.complain = complain
        self.log = log
        self._methods = {
            f"/{service.name}/{name}".encode(): method
            for service in services
            for name, method in service.methods().items()
        }

    def find(self, path: bytes) -> Method:
        """Raises RpcError."""
        method = self._methods.get(path)
        if method is None:
            raise RpcError(status.UNIMPLEMENTED, f"unknown method {path[:100].decode('latin-1')}")
        return method

    def call(self, method: Method, incoming: Incoming, respond: Respond) -> None:
        """Never raises."""
        try:
            method.handler(incoming, respond)
        except Exception as exc:
            self.failed(exc, respond)

    def failed(self, exc: Exception, respond: Respond) -> None:
        """A handler has raised."""
        if not isinstance(exc, RpcError | EdgekitError):
            self.complain("a call", exc)
        respond(refusal(exc))
