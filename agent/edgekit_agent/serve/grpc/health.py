"""grpc.health.v1.Health: what Kubernetes, load balancers and grpcurl ask (grpc doc/health-checking.md)."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit_agent.serve.core import Core
from edgekit_agent.serve.grpc import status
from edgekit_agent.serve.grpc.service import Method, simple
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.grpc.wire import Message, Values, one

REQUEST = Message("HealthCheckRequest", one(1, "service"))
RESPONSE = Message("HealthCheckResponse", one(1, "status", "enum"))
SERVING, NOT_SERVING = 1, 2


class Service:
    """See service.Service."""

    name = "grpc.health.v1.Health"

    def __init__(self, core: Core, services: Iterable[str]) -> None:
        """`services`: names of the others, each of which serves when a release is loaded."""
        self._core = core
        self._known = {"", *services}

    def methods(self) -> dict[str, Method]:
        return {"Check": simple(REQUEST, RESPONSE, self._check)}

    def _check(self, asked: Values) -> Values:
        name = asked.get("service", "")
        if name not in self._known:
            raise RpcError(status.NOT_FOUND, f"unknown service {name[:100]!r}")
        return {"status": SERVING if self._core.model is not None else NOT_SERVING}
