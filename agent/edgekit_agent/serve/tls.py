"""TLS of the serving endpoint: versions, ciphers, clients' certificates; a certificate that is renewed."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edgekit.errors import ConfigError
from edgekit_agent.serve.safety import Safety

_log = logging.getLogger(__name__)


class Tls:
    """A server's context that follows a renewed certificate. Who signs clients' is read once: OpenSSL only
    ever adds authorities to a context. Connections that are open keep what they began with."""

    def __init__(self, safety: Safety, protocols: Sequence[str] = ("http/1.1",)) -> None:
        """`protocols`: what ALPN offers, best first. Raises ConfigError."""
        self._pair = (safety.tls_cert, safety.tls_key)
        self._seen = self._mark()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        # Of TLS 1.2 only what has forward secrecy and is authenticated; TLS 1.3 has nothing else.
        self.context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
        self.context.set_alpn_protocols(list(protocols))
        self._load_pair(self.context)
        if safety.client_ca:
            with _explained(safety.client_ca):
                self.context.load_verify_locations(safety.client_ca)
            self.context.verify_mode = ssl.CERT_REQUIRED

    def refresh(self) -> None:
        """Take a renewed certificate for the connections that are to come."""
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        try:
            # First into a context of its own: half of a new pair must not replace the old one.
            self._load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load_pair(self.context)
        except ConfigError as exc:
            _log.error("%s; the certificate of before stays in use", exc)

    def _load_pair(self, context: ssl.SSLContext) -> None:
        with _explained(*self._pair):
            context.load_cert_chain(*self._pair, password=_no_password)

    def _mark(self) -> tuple[int, ...]:
        try:
            return tuple(Path(file).stat().st_mtime_ns for file in self._pair)
        except OSError:
            return ()


def _no_password() -> str:
    """Asked for an encrypted key: without this OpenSSL would ask a terminal."""
    raise ConfigError("the TLS key is encrypted", "store it decrypted, readable by the agent's user only")


@contextmanager
def _explained(*files: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as exc:
        why = getattr(exc, "strerror", None) or exc
        hint = "PEM files: a certificate and its own key, or authorities"
        raise ConfigError(f"cannot use {', '.join(files)} for TLS: {why}", hint) from None
