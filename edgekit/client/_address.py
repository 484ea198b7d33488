"""Where an agent listens: a Unix socket, or HTTP(S) on a host and port."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import InputError

ENVIRONMENT = "EDGEKIT_ENDPOINT"
DEFAULT = ("unix:/run/edgekit-agent.sock", "http://127.0.0.1:8000")
"""In this order: permissions guard a Unix socket, anybody on the machine may use a port."""

_URL = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?/?")


@dataclass(frozen=True, slots=True)
class Address:
    path: str = ""
    """Of the Unix socket; empty: TCP."""
    host: str = ""
    port: int = 0
    tls: bool = False

    @property
    def authority(self) -> str:
        """For the Host header."""
        if self.path:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether it can only be this machine."""
        return bool(self.path) or _is_loopback(self.host)

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"{'https' if self.tls else 'http'}://{self.authority}"


def parse(text: str) -> Address:
    """ "unix:/path", "http://host:port", "https://host:port" or "host:port". Raises InputError."""
    if text.startswith(("unix:", "/")):
        path = text.removeprefix("unix:")
        path = "/" + path.lstrip("/") if path.startswith("/") else path
        if not path or "\0" in path:
            raise InputError(f"{text!r} names no socket", "write unix:/path/of/the/socket")
        return Address(path=path)
    match = _URL.fullmatch(text)
    if match is None:
        raise InputError(
            f"{text!r} is not an agent's address", "write http://HOST:PORT, https://HOST:PORT or unix:/PATH"
        )
    scheme, host, port = match.groups()
    if port is None or not 0 < int(port) <= 65535:
        raise InputError(f"{text!r} names no port", "an agent's own default is 8000: http://HOST:8000")
    return Address(host=host.strip("[]"), port=int(port), tls=scheme == "https")


def choose(given: str | Path | Sequence[str | Path] | None) -> tuple[Address, ...]:
    """The addresses to try, best first: `given`, else $EDGEKIT_ENDPOINT (separated by commas), else DEFAULT.

    Raises InputError.
    """
    if given is None:
        words: Sequence[str | Path] = [
            word.strip() for word in os.environ.get(ENVIRONMENT, "").split(",") if word.strip()
        ]
        words = words or DEFAULT
    else:
        words = [given] if isinstance(given, str | Path) else given
    if not words:
        raise InputError("no address is given", f"leave it out for {' or '.join(DEFAULT)}")
    return tuple(parse(f"unix:{word}" if isinstance(word, Path) else word) for word in words)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, host)
        except OSError:
            continue
        return packed[0] == 127 if len(packed) == 4 else packed == bytes(15) + b"\x01"
    return False
