"""The gRPC services of the protocols that are spoken, by the names that serve/protocols.py has for them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from edgekit_agent.logs import Requests
from edgekit_agent.serve import protocols
from edgekit_agent.serve.core import Core
from edgekit_agent.serve.grpc import health
from edgekit_agent.serve.grpc.service import Registry, Service


def registry(core: Core, names: Sequence[str] = (protocols.ALL,), log: Requests = "none") -> Registry:
    """`names`, `log`: as in the configuration. Raises ConfigError for a name that is unknown."""
    services: list[Service] = []
    for name in protocols.chosen(names):
        if name in protocols.GRPC:
            services += importlib.import_module(protocols.GRPC[name]).services(core)
    services.append(health.Service(core, [service.name for service in services]))
    return Registry(services, core.complain, log)
