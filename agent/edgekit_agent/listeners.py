"""The listening sockets. The supervisor owns them, so connections wait while serving is started again."""

from __future__ import annotations

import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import ConfigError, InputError, SystemFault
from edgekit_agent import tokens
from edgekit_agent.config import ServeSection

_log = logging.getLogger(__name__)

BACKLOG = 512
MAX_UNIX_PATH = 107


@dataclass(frozen=True)
class Listeners:
    sockets: tuple[socket.socket, ...]
    endpoint: str
    """For people: http://HOST:PORT of each port, and the Unix socket's path."""
    unix: Path | None
    ours: bool = True
    """Nobody else listens on them, as systemd does on those that it hands out."""

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        if self.unix is not None:
            with suppress(OSError):
                self.unix.unlink()


def bind(serve: ServeSection, given: Sequence[socket.socket] = ()) -> Listeners:
    """Bind TCP ports and, when named, the Unix socket; or take the listening sockets that are `given`.

    Raises SystemFault (busy or not allowed) and ConfigError: off loopback without TLS or without knowing who
    asks, unless the configuration says that this is meant; files for TLS or tokens that cannot be used.
    """
    check_files(serve)
    if given:
        for sock in given:
            if sock.family != socket.AF_UNIX:
                check_exposure(serve, *sock.getsockname()[:2])
        return Listeners(tuple(given), " ".join(_address(sock, serve) for sock in given), None, ours=False)
    tcp = [_tcp(serve, serve.port)]
    try:
        tcp += _more(serve)
        endpoint = " ".join(_address(sock, serve) for sock in tcp)
        if not serve.unix:
            return Listeners(tuple(tcp), endpoint, None)
        path = Path(serve.unix)
        local = _unix(path)
    except BaseException:
        for sock in tcp:
            sock.close()
        raise
    return Listeners((*tcp, local), f"{endpoint} unix:{path}", path)


def _address(sock: socket.socket, serve: ServeSection) -> str:
    """For people."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(name)}"
    host, port = name[:2]
    scheme = "https" if serve.tls_cert else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_files(serve: ServeSection) -> None:
    """Raise ConfigError when what guards the endpoint cannot be used."""
    if serve.tls_cert:
        from edgekit_agent.serve.tls import Tls

        Tls(serve.safety)
    if serve.tokens:
        tokens.read(Path(serve.tokens))


def check_exposure(serve: ServeSection, host: str, port: int) -> None:
    """Raise ConfigError when the address `host` is of a network and nothing guards it."""
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    if not (serve.tls_cert or serve.allow_plaintext):
        raise ConfigError(
            f"refusing to listen on {host} port {port} without TLS",
            "give serve.tls_cert and serve.tls_key (--tls-cert, --tls-key); to do it all the same, say "
            "allow_plaintext (--allow-plaintext)",
        )
    if not (serve.tokens or serve.client_ca or serve.allow_anonymous):
        raise ConfigError(
            f"refusing to listen on {host} port {port} for everybody",
            "give serve.tokens (--tokens) or serve.client_ca (--client-ca); to do it all the same, say "
            "allow_anonymous (--allow-anonymous)",
        )


def _more(serve: ServeSection) -> list[socket.socket]:
    """The other ports, as far as they are free: what asks there is not worth going without the first one."""
    found = []
    for port in serve.ports:
        try:
            found.append(_tcp(serve, port))
        except SystemFault as exc:
            _log.warning("%s; serving without this port", exc)
    return found


def _tcp(serve: ServeSection, port: int) -> socket.socket:
    host = serve.host
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror:
        raise InputError(f"cannot listen on {host!r}: unknown address", "try 127.0.0.1") from None
    check_exposure(serve, str(address[0]), port)
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        hint = "stop what uses it, or choose another port" if exc.errno == errno.EADDRINUSE else ""
        raise SystemFault(f"cannot listen on {host}:{port}: {exc.strerror}", hint) from None
    return sock


def _unix(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_UNIX_PATH:
        raise InputError(f"{path}: longer than a Unix socket's path may be", "choose a shorter path")
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o117)  # 0660 from its first moment; nothing else runs yet
    try:
        sock.bind(str(path))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise SystemFault(f"cannot listen on {path}: {exc.strerror}", "does its folder exist?") from None
    finally:
        os.umask(before)
    return sock


def _remove_stale(path: Path) -> None:
    """A socket that nobody listens on is left over from a crash; anything else is not ours to remove."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise SystemFault(f"{path} exists and is not a socket", "choose another path")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise SystemFault(f"{path} is in use", "stop what listens there, or choose another path")
