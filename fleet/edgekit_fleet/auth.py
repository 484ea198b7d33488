"""Who is asking the admin listener: a program with the bearer token or a person with a session cookie.

A session cookie is `base64url(JSON {id, expires}).HMAC-SHA256`, signed with the folder's cookie key.
Changes that come with a cookie also need the session's CSRF token; a bearer token is never sent by a
browser on its own, so it needs none. A login code is a secret that is good for one login.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import threading
import time
from dataclasses import dataclass

from edgekit.codec import to_json
from edgekit.errors import AuthError

SESSION_S = 12 * 3600.0
LOGIN_CODE_S = 3600.0
_MAX_COOKIE = 512


class Forbidden(AuthError):
    """Known, but not allowed to do this."""

    http_status = 403


@dataclass(frozen=True)
class Session:
    id: str
    expires: float


class Gatekeeper:
    """Checks and makes the admin's credentials. Thread-safe."""

    def __init__(self, admin_token: str, cookie_key: bytes) -> None:
        self._token = hashlib.sha256(admin_token.encode()).digest()
        self._key = cookie_key
        self._codes: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def is_token(self, presented: str) -> bool:
        """Constant time: digests of equal length are compared."""
        return hmac.compare_digest(hashlib.sha256(presented.encode()).digest(), self._token)

    def new_code(self) -> str:
        """A one-time login code, good for LOGIN_CODE_S seconds."""
        code = secrets.token_urlsafe(24)
        with self._lock:
            now = time.monotonic()
            self._codes = {digest: until for digest, until in self._codes.items() if until > now}
            self._codes[hashlib.sha256(code.encode()).digest()] = now + LOGIN_CODE_S
        return code

    def use_code(self, code: str) -> bool:
        """Whether `code` was good; it no longer is."""
        with self._lock:
            until = self._codes.pop(hashlib.sha256(code.encode()).digest(), 0.0)
        return until > time.monotonic()

    def new_session(self) -> tuple[Session, str]:
        """A session and its cookie value."""
        session = Session(secrets.token_urlsafe(12), time.time() + SESSION_S)
        body = _encode(to_json(session))
        return session, f"{body}.{_encode(self._mac(b'session', body.encode()))}"

    def session(self, cookie: str) -> Session | None:
        """The session of a cookie that we signed and that has not expired."""
        body, _, mac = cookie.partition(".")
        if len(cookie) > _MAX_COOKIE or not hmac.compare_digest(
            _encode(self._mac(b"session", body.encode())).encode(), mac.encode()
        ):
            return None
        try:
            found = json.loads(_decode(body))
            session = Session(str(found["id"]), float(found["expires"]))
        except (ValueError, KeyError, TypeError, binascii.Error):
            return None
        return session if session.expires > time.time() else None

    def csrf(self, session: Session) -> str:
        return _encode(self._mac(b"csrf", session.id.encode()))

    def is_csrf(self, session: Session, presented: str) -> bool:
        return hmac.compare_digest(self.csrf(session).encode(), presented.encode())

    def _mac(self, purpose: bytes, message: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + message, "sha256")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
