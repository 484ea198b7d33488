"""Who may ask what: the role that a request needs, and whether its bearer token carries it.

The file of tokens is read again when it changes, so that a revoked token ends within a second; a file
that cannot be read lets nobody in.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit_agent import tokens
from edgekit_agent.tokens import Token

_log = logging.getLogger(__name__)

OPEN, ANY, INFER, OBSERVE = "", "any", "infer", "observe"
"""What a request needs: no token at all, a token of any role, or one with this role."""

_READS = (b"GET", b"HEAD", b"OPTIONS")
_OBSERVED = {"stats", "metrics", "logging", "trace"}
_GRPC_OPEN = {"ServerLive", "ServerReady", "Check", "Watch", "Ping"}
_GRPC_ANY = {
    "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig", "RepositoryIndex",
    "GetModelMetadata", "GetModelStatus", "ServerReflectionInfo", "SystemSharedMemoryStatus",
    "CudaSharedMemoryStatus", "DescribeModel", "ListModels",
}  # fmt: skip
_GRPC_OBSERVED = {"ModelStatistics", "TraceSetting", "LogSettings"}


@dataclass(frozen=True, slots=True)
class Refused:
    status: int
    text: str
    extra: str = ""
    """Header fields, each ended by CRLF."""


_NO_TOKEN = Refused(401, "a bearer token is needed", "WWW-Authenticate: Bearer\r\n")
_BAD_TOKEN = Refused(
    401, "the token is unknown, revoked or expired", 'WWW-Authenticate: Bearer error="invalid_token"\r\n'
)


def wanted(method: bytes, parts: list[str]) -> str:
    """The role that an HTTP request needs; `parts` as the router has them (unquoted)."""
    if parts == ["ping"] or (parts[:2] == ["v2", "health"] and len(parts) == 3):
        return OPEN
    if parts in (["metrics"], ["v2", "models", "stats"]) or _OBSERVED.intersection(parts[1:2] + parts[3:]):
        return OBSERVE
    if method in _READS or parts == ["v2", "repository", "index"]:
        return ANY
    return INFER


def wanted_grpc(path: str) -> str:
    """The role that a gRPC method ("/package.Service/Method") needs."""
    method = path.rpartition("/")[2]
    if method in _GRPC_OPEN:
        return OPEN
    if method in _GRPC_OBSERVED:
        return OBSERVE
    return ANY if method in _GRPC_ANY else INFER


class Access:
    """On the event loop; `refresh` now and then."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: a file that is missing, open to others or not of tokens."""
        self._path = path
        self._seen: tuple[int, ...] = self._mark()
        self._known = tokens.read(path)
        self.generation = 0
        """Grows when what was granted may be so no longer."""

    def refresh(self) -> None:
        """Read the file again when it is another one."""
        mark = self._mark()
        if mark == self._seen:
            return
        self._seen = mark
        self.generation += 1
        try:
            self._known = tokens.read(self._path)
        except EdgekitError as exc:
            self._known = {}
            _log.error("%s; nobody is let in by token until it is mended", exc)

    def check(self, need: str, authorization: bytes | None) -> Token | Refused | None:
        """The caller's token, why the request is refused, or None where no token is needed."""
        if need == OPEN:
            return None
        if authorization is None:
            return _NO_TOKEN
        scheme, _, text = authorization.decode("latin-1").partition(" ")
        token = tokens.find(self._known, text.strip(), time.time())
        if token is None or scheme.lower() != "bearer":
            return _BAD_TOKEN
        if need != ANY and need not in token.roles:
            return Refused(403, f"the token does not carry the role {need}")
        return token

    def _mark(self) -> tuple[int, ...]:
        try:
            about = self._path.lstat()
        except OSError:
            return ()
        return about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode
