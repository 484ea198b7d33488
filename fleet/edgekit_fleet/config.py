"""The state folder: paths, keys, trusted builders, ports, and what `up` tells about itself.

STATE/ca/{ca.key,ca.pem}      the fleet's certificate authority
STATE/keys/{assignment.pem,recipient.pem,cookie.key}
STATE/recipient.pub           for builders: `edgekit build --recipient STATE/recipient.pub`
STATE/admin.token             bearer token of the admin API (0600)
STATE/trusted/*.pub           builder keys whose bundles are accepted
STATE/fleet.db                SQLite
STATE/releases/<sha256>.edgekit
STATE/tls/                    server certificate, worker certificate, CRL: made anew by `up`
STATE/broker/                 mosquitto's configuration, ACLs and persistence
STATE/ports.json              ports once chosen, so that enrolled devices find us again
STATE/fleet.json              addresses of the running fleet (written when ready, removed at the end)
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit.codec import from_json, to_json
from edgekit.crypto.keys import RecipientKey, SealingKey, SigningKey, VerifyKey
from edgekit.crypto.x509 import CertificateAuthority
from edgekit.errors import ConfigError, InputError, SystemFault
from edgekit.files import storage_fault, write_bytes

DEFAULT_PORT, DEFAULT_DEVICE_PORT, DEFAULT_MQTT_PORT = 8440, 8441, 8883
_FOLDERS = ("ca", "keys", "trusted", "releases", "tls", "broker")


@dataclass(frozen=True)
class Ports:
    """TCP ports; 0 means: choose."""

    admin: int = DEFAULT_PORT
    device: int = DEFAULT_DEVICE_PORT
    mqtt: int = DEFAULT_MQTT_PORT


@dataclass(frozen=True)
class FleetInfo:
    """fleet.json: where a running fleet listens."""

    pid: int
    url: str
    device_url: str
    mqtt_host: str
    mqtt_port: int
    dashboard: str
    """URL with a one-time login code."""
    ca_pem: str
    """Path."""
    admin_token: str
    """Path."""


@dataclass(frozen=True)
class State:
    """Paths inside one state folder."""

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "fleet.db"

    @property
    def admin_token(self) -> Path:
        return self.folder / "admin.token"

    @property
    def ca_pem(self) -> Path:
        return self.folder / "ca" / "ca.pem"

    @property
    def trusted(self) -> Path:
        return self.folder / "trusted"

    @property
    def releases(self) -> Path:
        return self.folder / "releases"

    @property
    def tls(self) -> Path:
        return self.folder / "tls"

    @property
    def broker(self) -> Path:
        return self.folder / "broker"

    @property
    def info(self) -> Path:
        return self.folder / "fleet.json"

    @property
    def initialised(self) -> bool:
        """`init` went to its end: the admin token is the last thing that it writes."""
        return self.admin_token.exists()

    def read_info(self) -> FleetInfo:
        """Where the fleet of this folder listens. Raises SystemFault when it is not running."""
        try:
            return from_json(FleetInfo, self.info.read_bytes(), what=str(self.info))
        except OSError:
            raise SystemFault(
                f"no running fleet in {self.folder}", f"start it: edgekit-fleet up --state {self.folder}"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one fleet per folder. The kernel releases the lock however the process ends."""
        path = self.folder / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise storage_fault(path, exc) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise SystemFault(
                f"{self.folder} is used by another edgekit-fleet", "stop it, or choose another --state"
            ) from None
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Keys:
    """The fleet's secrets, in memory."""

    ca: CertificateAuthority
    assignment: SigningKey
    sealing: SealingKey
    admin_token: str
    cookie: bytes

    @property
    def recipient(self) -> RecipientKey:
        return self.sealing.public()


def init(state: State) -> Keys:
    """Make what is missing, keep what is there (also after an interrupted first run); all keys loaded."""
    try:
        state.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _FOLDERS:
            (state.folder / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as exc:
        raise storage_fault(state.folder, exc) from None
    keys = state.folder / "keys"
    if not state.ca_pem.exists():
        CertificateAuthority.create("edgekit fleet CA").save(state.folder / "ca")
    if not (keys / "assignment.pem").exists():
        SigningKey.generate().save(keys / "assignment.pem")
    if not (keys / "recipient.pem").exists():
        SealingKey.generate().save(keys / "recipient.pem")
    if not (keys / "cookie.key").exists():
        write_bytes(keys / "cookie.key", secrets.token_bytes(32), mode=0o600)
    public = SealingKey.load(keys / "recipient.pem").public().to_pem()
    write_bytes(state.folder / "recipient.pub", public)
    if not state.admin_token.exists():
        write_bytes(state.admin_token, secrets.token_urlsafe(32).encode() + b"\n", mode=0o600)
    return load(state)


def load(state: State) -> Keys:
    """Raises InputError when the folder was never initialised or a key file is damaged."""
    if not state.initialised:
        raise InputError(
            f"{state.folder} is not a fleet's state folder", f"run: edgekit-fleet init --state {state.folder}"
        )
    keys = state.folder / "keys"
    try:
        cookie = (keys / "cookie.key").read_bytes()
        token = state.admin_token.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"cannot read the keys in {state.folder}: {exc}", "restore the folder") from None
    if len(cookie) < 32 or len(token) < 32:
        raise InputError(f"a key in {state.folder} is too short", "remove admin.token or keys/cookie.key")
    return Keys(
        CertificateAuthority.load(state.folder / "ca"),
        SigningKey.load(keys / "assignment.pem"),
        SealingKey.load(keys / "recipient.pem"),
        token,
        cookie,
    )


def trusted_keys(state: State) -> list[VerifyKey]:
    """Builder keys that this fleet accepts, read anew each time so that additions count at once."""
    return [VerifyKey.load(path) for path in sorted(state.trusted.glob("*.pub"))]


def trust(state: State, key: VerifyKey) -> VerifyKey:
    """Accept bundles signed by this key; idempotent."""
    write_bytes(state.trusted / f"{key.key_id[:16]}.pub", key.to_pem())
    return key


def trust_file(state: State, path: Path) -> VerifyKey:
    """`trust` for the public key in a file. Raises InputError."""
    return trust(state, VerifyKey.load(path))


def remembered_ports(state: State, wanted: Ports) -> Ports:
    """`wanted` with each 0 replaced by the port that was chosen for it on an earlier start, if any."""
    path = state.folder / "ports.json"
    if not path.exists():
        return wanted
    try:
        known = from_json(Ports, path.read_bytes(), what=str(path))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}", "remove it to choose new ports") from None
    return Ports(wanted.admin or known.admin, wanted.device or known.device, wanted.mqtt or known.mqtt)


def remember_ports(state: State, ports: Ports) -> None:
    write_bytes(state.folder / "ports.json", to_json(ports))
