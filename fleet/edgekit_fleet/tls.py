"""TLS of the listeners: server certificate, device certificates, revocation list."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edgekit.crypto import x509
from edgekit.files import write_bytes
from edgekit_fleet.broker import WORKER
from edgekit_fleet.config import Keys, State


@dataclass(frozen=True)
class TlsFiles:
    """Paths in STATE/tls; private keys are 0600."""

    ca: Path
    server_certificate: Path
    server_key: Path
    worker_certificate: Path
    worker_key: Path
    crl: Path


def write_files(state: State, keys: Keys, names: Sequence[str], crl: bytes) -> TlsFiles:
    """Fresh server and worker certificates for this run; `names` are host names and addresses."""
    folder = state.tls
    files = TlsFiles(
        state.ca_pem,
        folder / "server.pem",
        folder / "server.key",
        folder / "worker.pem",
        folder / "worker.key",
        folder / "crl.pem",
    )
    hosts, addresses = _split(names)
    key, certificate = keys.ca.issue_server(hosts, addresses)
    write_bytes(files.server_key, key, mode=0o600)
    write_bytes(files.server_certificate, certificate)
    write_identity(keys, WORKER, files.worker_key, files.worker_certificate)
    write_bytes(files.crl, crl)
    return files


def write_identity(keys: Keys, name: str, key_path: Path, certificate_path: Path) -> None:
    """A fresh client certificate for `name`."""
    key = x509.new_device_key()
    write_bytes(key_path, key, mode=0o600)
    write_bytes(certificate_path, keys.ca.sign_csr(x509.make_csr(key, name), name))


def admin_context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(files.server_certificate, files.server_key)
    return context


def device_context(files: TlsFiles) -> ssl.SSLContext:
    """Client certificates of our CA are required, revoked ones refused."""
    context = admin_context(files)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cafile=str(files.ca))
    context.load_verify_locations(cafile=str(files.crl))
    context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    return context


@dataclass(frozen=True)
class Peer:
    """Whom a TLS handshake has proven; the device's row decides whether that still counts."""

    device: str
    serial: str
    """Hex, as in the database."""


class PeerProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with the client certificate's subject as `request.state.peer`."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        peer = _peer(tls.getpeercert()) if tls is not None else None
        self.app_state = {**self.app_state, "peer": peer}


def _peer(certificate: Any) -> Peer | None:
    if not certificate:
        return None
    names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    # Python prints the serial with leading zeros and in capitals.
    return Peer(names[0], f"{int(certificate['serialNumber'], 16):x}") if len(names) == 1 else None


def _split(names: Sequence[str]) -> tuple[list[str], list[str]]:
    hosts: list[str] = []
    addresses: list[str] = []
    for name in dict.fromkeys(names):
        try:
            addresses.append(str(ip_address(name)))
        except ValueError:
            hosts.append(name)
    return hosts, addresses
