"""Bearer tokens of the serving endpoint: who may ask what. The file holds hashes, never a token.

A token is `ekt_ID_SECRET`; its secret has 256 random bits, so that one SHA-256 is hash enough (slow hashes
are for passwords that people choose). The file belongs to the agent's user and is mode 0600.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgekit import codec
from edgekit.errors import AuthError, ConfigError, InputError
from edgekit.files import storage_fault, write_bytes

ROLES = ("infer", "observe")
"""infer: run models and read what they take; observe: metrics and statistics."""
MAX_FILE_BYTES = 1 << 20
MAX_TOKENS = 1000
_DAY_S = 86_400
_TOKEN = re.compile(r"ekt_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")


@dataclass(frozen=True)
class Token:
    id: str
    name: str
    """Whose it is, for people."""
    roles: tuple[str, ...]
    sha256: str
    """Hex, of the whole token."""
    created_s: int
    """Unix time."""
    expires_s: int = 0
    """Unix time; 0: never."""


@dataclass(frozen=True)
class TokenFile:
    version: int = 1
    tokens: tuple[Token, ...] = ()


Known = Mapping[str, Token]
"""By id."""


def read(path: Path) -> Known:
    """The tokens of a file. Raises ConfigError: not there, open to others, or not such a file."""
    data = _private_bytes(path)
    document = codec.from_json(TokenFile, data, what=str(path), max_bytes=MAX_FILE_BYTES)
    known = {token.id: token for token in document.tokens}
    wrong = document.version != 1 or len(known) != len(document.tokens)
    if wrong or not all(set(token.roles) <= set(ROLES) for token in document.tokens):
        raise ConfigError(f"{path}: not a file of tokens that this agent knows", "see `edgekit-agent token`")
    return known


def find(known: Known, text: str, now_s: float) -> Token | None:
    """The token that `text` is, unless it is unknown or expired. Compares in constant time."""
    match = _TOKEN.fullmatch(text)
    token = known.get(match[1]) if match else None
    right = hmac.compare_digest(_digest(text), token.sha256 if token else "0" * 64)
    if token is None or not right or (token.expires_s and now_s >= token.expires_s):
        return None
    return token


def create(path: Path, name: str, roles: tuple[str, ...], days: int = 0) -> tuple[str, Token]:
    """Add a token to the file, which is made when it is missing. The text is shown once, here.

    Raises InputError (name, roles), ConfigError (the file), SystemFault (the disk).
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"bad name {name!r}", "up to 64 letters, digits, spaces and . _ @ -")
    if not roles or not set(roles) <= set(ROLES):
        raise InputError(f"bad roles {', '.join(roles) or '(none)'}", f"choose from {', '.join(ROLES)}")
    if days < 0:
        raise InputError(f"--days {days}: not a number of days", "0 is for ever")
    with _changing(path) as known:
        if len(known) >= MAX_TOKENS:
            raise InputError(f"{path} holds {MAX_TOKENS} tokens already", "revoke some")
        number = next(one for one in iter(lambda: secrets.token_hex(4), "") if one not in known)
        text = f"ekt_{number}_{secrets.token_urlsafe(32)}"
        now = int(time.time())
        ordered = tuple(role for role in ROLES if role in roles)
        token = Token(number, name, ordered, _digest(text), now, now + days * _DAY_S if days else 0)
        known[number] = token
    return text, token


def revoke(path: Path, number: str) -> Token:
    """Remove the token with this id. Raises AuthError when there is none."""
    with _changing(path) as known:
        token = known.pop(number, None)
        if token is None:
            raise AuthError(f"{path} has no token {number!r}", "`edgekit-agent token list` shows their ids")
    return token


def public(token: Token) -> dict[str, object]:
    """What `list` shows: everything but the hash."""
    shown = dataclasses.asdict(token)
    del shown["sha256"]
    return shown


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Token]]:
    """Read, let the caller change, write back, while nobody else does."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise storage_fault(path, exc) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        known = dict(read(path)) if path.exists() else {}
        yield known
        document = TokenFile(tokens=tuple(known.values()))
        write_bytes(path, codec.to_json(document), mode=0o600)
    finally:
        os.close(folder)


def _private_bytes(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        hint = "make it: edgekit-agent token create --help"
        raise ConfigError(f"cannot read tokens from {path}: {exc.strerror}", hint) from None
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode) or about.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path}: not a file of this user", "make it with `edgekit-agent token create`")
        if about.st_mode & 0o077:
            raise ConfigError(f"{path}: others may read it", f"chmod 600 {path}, and make new tokens")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(descriptor)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
