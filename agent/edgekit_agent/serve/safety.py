"""What guards the listening sockets: names of files only, so that a supervisor may pass them on."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import codec


@dataclass(frozen=True)
class Safety:
    """Absolute paths; empty: none. Unix sockets are guarded by their file permissions and by nothing here."""

    tls_cert: str = ""
    """PEM: the agent's certificate and what leads to its root. Every TCP socket speaks TLS then."""
    tls_key: str = ""
    client_ca: str = ""
    """PEM: who signs the certificates that clients must show."""
    tokens: str = ""
    """Bearer tokens (tokens.py); every request over TCP needs one then."""

    def to_argument(self) -> str:
        """One command-line word."""
        return codec.to_json(self).decode()

    @staticmethod
    def from_argument(text: str) -> Safety:
        """Reverse of `to_argument`. Raises ConfigError."""
        return codec.from_json(Safety, text.encode(), what="--safety")
