"""Which protocols there are. Imports none of them: the supervisor checks names and needs no NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.errors import ConfigError

HTTP = {
    "oip": "edgekit_agent.serve.oip_http",
    "triton": "edgekit_agent.serve.triton_http",
    "tfs": "edgekit_agent.serve.tfs_http",
    "kserve": "edgekit_agent.serve.kserve_v1",
    "torchserve": "edgekit_agent.serve.torchserve",
}
"""Name in the configuration to the module that has the class `Protocol`; asked in this order."""
GRPC = {
    "oip": "edgekit_agent.serve.grpc.oip",
    "tfs": "edgekit_agent.serve.grpc.tfs",
}
"""Name in the configuration to the module whose `services` makes the protocol's gRPC services."""
ALL = "all"


def chosen(names: Sequence[str]) -> tuple[str, ...]:
    """The protocols that a configuration means, in the order of HTTP. Raises ConfigError."""
    for name in names:
        if name != ALL and name not in HTTP:
            raise ConfigError(f"unknown protocol {name!r}", f"known: {', '.join((ALL, *HTTP))}")
    return tuple(name for name in HTTP if ALL in names or name in names)
