"""What guards a fuzzed agent's port: TLS, or tokens; and tokens that must open nothing."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from edgekit import codec, files
from edgekit.crypto.x509 import CertificateAuthority
from edgekit_agent.tokens import Token, TokenFile
from tests.fuzz.mutate import garble
from tests.support.started import Started

TLS, TOKENS = "tls", "tokens"


@dataclass(frozen=True)
class Door:
    """A way to an agent."""

    address: str
    """`host:port`, or the path of a Unix socket."""
    ca: str = ""
    """PEM file: TLS is spoken, and this signed the agent's certificate."""


def options(folder: Path, guard: str) -> list[str]:
    """Of `edgekit-agent serve`; what they name is written into `folder`."""
    if guard == TOKENS:
        write_tokens(folder / "tokens.json")
        return ["--tokens", str(folder / "tokens.json")]
    if guard != TLS:
        return []
    authority = CertificateAuthority.create("fuzz")
    authority.save(folder)
    key, certificate = authority.issue_server(["localhost"], ["127.0.0.1"])
    (folder / "server.key").write_bytes(key)
    (folder / "server.pem").write_bytes(certificate)
    return ["--tls-cert", str(folder / "server.pem"), "--tls-key", str(folder / "server.key")]


def doors(agent: Started, folder: Path, guard: str) -> list[Door]:
    """The guarded one only, where there is a guard."""
    if guard == TLS:
        return [Door(agent.address, str(folder / "ca.pem"))]
    return [Door(agent.address)] if guard == TOKENS else [Door(agent.address), Door(str(agent.unix))]


# --- tokens: always the same ones, so that a case's bytes are, too


def _text(number: int) -> bytes:
    secret = base64.urlsafe_b64encode(hashlib.sha256(b"fuzzed %d" % number).digest()).rstrip(b"=")
    return b"ekt_%08x_" % number + secret


GOOD, INFER, OBSERVE, EXPIRED, UNKNOWN = map(_text, range(5))
_ROLES = {GOOD: ("infer", "observe"), INFER: ("infer",), OBSERVE: ("observe",), EXPIRED: ("infer", "observe")}
AUTHORIZATION = (b"Authorization", b"Bearer " + GOOD)


def write_tokens(path: Path) -> None:
    made = tuple(
        Token(
            text[4:12].decode(), "fuzz", roles, hashlib.sha256(text).hexdigest(), 1, int(text == EXPIRED) * 2
        )
        for text, roles in _ROLES.items()
    )
    files.write_bytes(path, codec.to_json(TokenFile(tokens=tuple(made))), mode=0o600)


def need(method: bytes, path: bytes) -> str:
    """What a valid request over HTTP needs by docs/serving.md: a role, "any" of them, or nothing."""
    words = set(path.split(b"/"))
    if path == b"/ping" or path.startswith(b"/v2/health/"):
        return ""
    if words & {b"metrics", b"stats", b"logging", b"trace"}:
        return "observe"
    return "any" if method in (b"GET", b"OPTIONS") or path == b"/v2/repository/index" else "infer"


_CALLS = {
    b"ServerLive": "", b"ServerReady": "", b"Check": "", b"ModelStatistics": "observe",
    b"TraceSetting": "observe", b"LogSettings": "observe",
} | dict.fromkeys(
    (b"ServerMetadata", b"ModelReady", b"ModelMetadata", b"ModelConfig", b"RepositoryIndex",
     b"GetModelMetadata", b"GetModelStatus", b"SystemSharedMemoryStatus", b"CudaSharedMemoryStatus"), "any",
)  # fmt: skip


def need_of_call(path: bytes) -> str:
    """The same for a call of gRPC."""
    return _CALLS.get(path.rpartition(b"/")[2], "infer")


def refused(chance: Random, wanted: str) -> tuple[bytes | None, int]:
    """An Authorization, None for none, that must not open what needs `wanted`; the status that says so."""
    match chance.randrange(9):
        case 0:
            return None, 401
        case 1 | 2 if wanted != "any":
            return b"Bearer " + (OBSERVE if wanted == "infer" else INFER), 403
        case 3:
            return b"Bearer " + EXPIRED, 401
        case 4:
            return b"Bearer " + UNKNOWN, 401
        case 5:
            scheme = chance.choice((b"Basic ", b"", b"Bearer\t", b"Bearer=", b"Token ", b"Bearer Bearer "))
            return scheme + GOOD, 401
        case 6:
            return b"Bearer " + GOOD[:12] + chance.choice((EXPIRED, INFER, UNKNOWN))[12:], 401
    mutated = garble(chance, GOOD, most=2).translate(None, bytes((*range(32), 127))).strip()
    right = any(mutated.decode("latin-1").strip().encode("latin-1") == one for one in _ROLES)
    # HTTP/2 does not take a value that ends with a space.
    return b"Bearer" if right else (b"Bearer " + mutated).rstrip(), 401
