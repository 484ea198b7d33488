"""The agent's configuration file, agent.toml, as frozen dataclasses. Paths are relative to the file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekit import codec, wire
from edgekit.errors import ConfigError
from edgekit_agent.logs import Format, Requests
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.protocols import ALL, chosen
from edgekit_agent.serve.safety import Safety

DEFAULT_PORT = 8000
MAX_PORTS = 16


@dataclass(frozen=True)
class DeviceSection:
    id: str
    profile: str
    """Name of a device profile, or "auto" (the profile that fits this machine best)."""
    emulated: bool = False
    """This machine stands for the profile's hardware: hardware checks are skipped, and it says so."""
    tenant: str = wire.TENANT


@dataclass(frozen=True)
class StateSection:
    dir: str = "."


@dataclass(frozen=True)
class ServeSection:
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0: any free port; it is reported as the endpoint."""
    ports: tuple[int, ...] = ()
    """More TCP ports of `host`, for clients that expect a server of another kind where it usually is; every
    port speaks every protocol. One that is taken is left out, and the log says so."""
    unix: str = ""
    """Path of a Unix socket; empty: none."""
    protocols: tuple[str, ...] = (ALL,)
    """Those of serve/protocols.py that are spoken, or "all"."""
    restart_limit: int = 3
    """Crashes of the serving process during a watch that make the device roll back."""
    hang_s: float = 20.0
    """Serving that answers no ping for this long is restarted; no inference may take longer."""
    stall_s: float = 2.0
    """An inference may take a hundred times what its samples took when the model was loaded, and this long
    in any case; then serving is restarted."""
    crash_limit: int = 5
    """Crashes in a minute that make the device go back to the release before; 0: it never does."""
    spare: Literal["auto", "always", "never"] = "auto"
    """A serving process in reserve. auto: while 512 MiB of memory are available."""
    memory_mib: float = 0.0
    """Most resident memory of the serving process; 0: what the variant declares."""
    swap: Literal["auto", "beside", "replace"] = "auto"
    """replace: the old release ends before the new one is loaded, and requests get 503 meanwhile. auto: where
    memory does not hold both."""
    announce_s: float = 1.0
    """Then readiness is taken back so long before."""
    tls_cert: str = ""
    """PEM file: the agent's certificate; the TCP port then speaks TLS and nothing else."""
    tls_key: str = ""
    client_ca: str = ""
    """PEM file: who signs the certificates that clients must show; empty: they need none."""
    tokens: str = ""
    """File of bearer tokens, see `edgekit-agent token`; every request over TCP needs one then."""
    allow_plaintext: bool = False
    """Off loopback too, listen without TLS: whoever is on the network reads and changes everything."""
    allow_anonymous: bool = False
    """Off loopback too, serve clients that show neither token nor certificate."""

    @property
    def safety(self) -> Safety:
        return Safety(self.tls_cert, self.tls_key, self.client_ca, self.tokens)


@dataclass(frozen=True)
class TelemetrySection:
    interval_s: float = 10.0
    max_windows: int = 500
    """Windows kept while offline; beyond that the oldest are merged."""


@dataclass(frozen=True)
class LogSection:
    format: Format = "text"
    """text: lines for people; json: one object per line."""
    requests: Requests = "none"
    """Requests that are logged, with their ids: none, failed, all."""


@dataclass(frozen=True)
class FleetSection:
    broker_host: str
    broker_port: int
    device_url: str
    """https://HOST:PORT of the fleet's device endpoint."""
    ca: str = "ca.pem"
    cert: str = "device.pem"
    key: str = "device.key"
    sealing_key: str = "sealing.key"
    assignment_key: str = "assignment.pub"
    builder_keys: tuple[str, ...] = ("builder.pub",)


@dataclass(frozen=True)
class AgentConfig:
    device: DeviceSection
    state: StateSection = field(default_factory=StateSection)
    serve: ServeSection = field(default_factory=ServeSection)
    limits: Limits = field(default_factory=Limits)
    """What one client, and all together, may ask of serving; see serve/limits.py."""
    telemetry: TelemetrySection = field(default_factory=TelemetrySection)
    log: LogSection = field(default_factory=LogSection)
    fleet: FleetSection | None = None


def load(path: Path) -> AgentConfig:
    """Read agent.toml and make its paths absolute. Raises ConfigError naming file and field."""
    config = codec.from_toml(AgentConfig, path)
    for problem in _problems(config):
        raise ConfigError(f"{path}: {problem}", "see docs/agent.md")
    return absolute(config, path.resolve().parent)


def absolute(config: AgentConfig, base: Path) -> AgentConfig:
    """Every path of the configuration, relative ones resolved against `base`."""
    fleet = config.fleet
    if fleet is not None:
        fleet = dataclasses.replace(
            fleet,
            ca=str(base / fleet.ca),
            cert=str(base / fleet.cert),
            key=str(base / fleet.key),
            sealing_key=str(base / fleet.sealing_key),
            assignment_key=str(base / fleet.assignment_key),
            builder_keys=tuple(str(base / key) for key in fleet.builder_keys),
        )
    serve = config.serve
    serve = dataclasses.replace(
        serve,
        unix=_under(base, serve.unix),
        tls_cert=_under(base, serve.tls_cert),
        tls_key=_under(base, serve.tls_key),
        client_ca=_under(base, serve.client_ca),
        tokens=_under(base, serve.tokens),
    )
    return dataclasses.replace(
        config, fleet=fleet, serve=serve, state=StateSection(str(base / config.state.dir))
    )


def _under(base: Path, path: str) -> str:
    """Empty stays empty."""
    return str(base / path) if path else ""


def to_toml(config: AgentConfig) -> str:
    """The configuration as TOML text that `load` reads back."""
    plain = codec.to_plain(config)
    parts = []
    for section, values in plain.items():
        lines = [f"{key} = {_value(value)}" for key, value in values.items()]
        parts.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _value(value: object) -> str:
    # JSON's strings, numbers, booleans and flat lists are TOML's too; TOML alone forbids a bare DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _problems(config: AgentConfig) -> list[str]:
    serve, telemetry = config.serve, config.telemetry
    checks = [
        (0 <= serve.port <= 65535, f"serve.port {serve.port} is not a port"),
        *((0 < port <= 65535, f"serve.ports: {port} is not a port") for port in serve.ports),
        (
            len({serve.port, *serve.ports}) == 1 + len(serve.ports) <= MAX_PORTS,
            f"serve.ports must be up to {MAX_PORTS - 1} ports that differ, from serve.port as well",
        ),
        (serve.restart_limit >= 1, "serve.restart_limit must be at least 1"),
        (serve.hang_s > 0, "serve.hang_s must be positive"),
        (bool(serve.tls_cert) == bool(serve.tls_key), "serve.tls_cert and serve.tls_key go together"),
        (
            bool(serve.tls_cert) or not serve.client_ca,
            "serve.client_ca needs serve.tls_cert and serve.tls_key",
        ),
        (0 < serve.stall_s <= serve.hang_s, "serve.stall_s must be positive and at most serve.hang_s"),
        (serve.crash_limit >= 0, "serve.crash_limit must not be negative"),
        (0 <= serve.announce_s <= 60, "serve.announce_s must be 0 to 60"),
        (serve.memory_mib >= 0, "serve.memory_mib must not be negative"),
        (telemetry.interval_s > 0, "telemetry.interval_s must be positive"),
        (telemetry.max_windows >= 2, "telemetry.max_windows must be at least 2"),
        (bool(config.device.id), "device.id is empty"),
        (bool(serve.protocols), "serve.protocols is empty"),
        *((False, f"serve.protocols: {text}") for text in _unknown(serve.protocols)),
    ]
    if config.fleet is not None:
        port, url = config.fleet.broker_port, config.fleet.device_url
        checks.append((0 < port <= 65535, f"fleet.broker_port {port} is not a port"))
        checks.append((url.startswith("https://"), "fleet.device_url must be an https address"))
        checks.append((bool(config.fleet.builder_keys), "fleet.builder_keys is empty"))
    return [problem for fine, problem in checks if not fine]


def _unknown(names: Sequence[str]) -> list[str]:
    try:
        chosen(names)
    except ConfigError as exc:
        return [str(exc)]
    return []
