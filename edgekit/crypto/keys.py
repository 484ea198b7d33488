"""Signing and sealing keys: PEM files, private ones readable by their owner only.

A key id is the lower-case hex SHA-256 of the public key's SubjectPublicKeyInfo DER. A hybrid key is
two PEM blocks in one file (ML-KEM-768, then X25519); its id hashes both encodings in that order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edgekit.errors import InputError
from edgekit.files import write_bytes

Kem = Literal["X25519", "MLKEM768_X25519"]
HpkePrivate = X25519PrivateKey | hpke.MLKEM768X25519PrivateKey
HpkePublic = X25519PublicKey | hpke.MLKEM768X25519PublicKey

MAX_KEY_FILE = 16 * 1024
_END = b"-----END "


@dataclass(frozen=True)
class VerifyKey:
    """Public half of a `SigningKey`."""

    raw: bytes
    """32 bytes, RFC 8032."""

    @property
    def key_id(self) -> str:
        return hashlib.sha256(_spki(self._key)).hexdigest()

    @property
    def _key(self) -> Ed25519PublicKey:
        return Ed25519PublicKey.from_public_bytes(self.raw)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    def to_pem(self) -> bytes:
        return _public_pem(self._key)

    @classmethod
    def from_pem(cls, pem: bytes, what: str = "public key") -> VerifyKey:
        """Raises InputError when `pem` is not an Ed25519 public key."""
        (key,) = _public_blocks(pem, what, 1)
        if not isinstance(key, Ed25519PublicKey):
            raise InputError(f"{what}: not an Ed25519 public key", "give the builder's public key")
        return cls(key.public_bytes_raw())

    @classmethod
    def load(cls, path: Path) -> VerifyKey:
        return cls.from_pem(read_key(path), str(path))


class SigningKey:
    """Ed25519 private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Raises InputError: no such file, not a private Ed25519 key."""
        (key,) = _private_blocks(read_key(path), str(path), 1)
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path}: not an Ed25519 private key", "give the key that signs bundles")
        return cls(key)

    def save(self, path: Path) -> None:
        write_bytes(path, _private_pem(self._key), mode=0o600)

    def public(self) -> VerifyKey:
        return VerifyKey(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """64 bytes, RFC 8032; deterministic."""
        return self._key.sign(message)


@dataclass(frozen=True)
class RecipientKey:
    """Public half of a `SealingKey`: who may open."""

    kem: Kem
    pem: bytes

    @property
    def key_id(self) -> str:
        blocks = _public_blocks(self.pem, "recipient key", len(_parts(self.kem)))
        return hashlib.sha256(b"".join(_spki(block) for block in blocks)).hexdigest()

    @property
    def hpke_key(self) -> HpkePublic:
        blocks = _public_blocks(self.pem, "recipient key", len(_parts(self.kem)))
        return _hybrid_public(blocks, "recipient key")

    def to_pem(self) -> bytes:
        return self.pem

    @classmethod
    def from_pem(cls, pem: bytes, what: str = "recipient key") -> RecipientKey:
        """Raises InputError when `pem` is not an X25519 key, or an ML-KEM-768 and an X25519 key."""
        blocks = _public_blocks(pem, what, 2)
        kem: Kem = (
            "X25519" if isinstance(_hybrid_public(blocks, what), X25519PublicKey) else "MLKEM768_X25519"
        )
        return cls(kem, b"".join(_public_pem(block) for block in blocks))

    @classmethod
    def load(cls, path: Path) -> RecipientKey:
        return cls.from_pem(read_key(path), str(path))


class SealingKey:
    """HPKE private key: X25519, or the post-quantum hybrid of ML-KEM-768 and X25519."""

    def __init__(self, x25519: X25519PrivateKey, mlkem: MLKEM768PrivateKey | None = None) -> None:
        self._x25519 = x25519
        self._mlkem = mlkem

    @classmethod
    def generate(cls, kem: Kem = "X25519") -> SealingKey:
        mlkem = MLKEM768PrivateKey.generate() if kem == "MLKEM768_X25519" else None
        return cls(X25519PrivateKey.generate(), mlkem)

    @classmethod
    def load(cls, path: Path) -> SealingKey:
        """Raises InputError: no such file, not a sealing key."""
        match _private_blocks(read_key(path), str(path), 2):
            case [X25519PrivateKey() as x25519]:
                return cls(x25519)
            case [MLKEM768PrivateKey() as mlkem, X25519PrivateKey() as x25519]:
                return cls(x25519, mlkem)
        raise InputError(f"{path}: not a sealing key", "give an X25519 or ML-KEM-768 + X25519 private key")

    def save(self, path: Path) -> None:
        blocks = [key for key in (self._mlkem, self._x25519) if key is not None]
        write_bytes(path, b"".join(_private_pem(key) for key in blocks), mode=0o600)

    def public(self) -> RecipientKey:
        blocks = [key.public_key() for key in (self._mlkem, self._x25519) if key is not None]
        return RecipientKey(self.kem, b"".join(_public_pem(block) for block in blocks))

    @property
    def kem(self) -> Kem:
        return "MLKEM768_X25519" if self._mlkem else "X25519"

    @property
    def hpke_key(self) -> HpkePrivate:
        return hpke.MLKEM768X25519PrivateKey(self._mlkem, self._x25519) if self._mlkem else self._x25519


def read_key(path: Path) -> bytes:
    """A key file's bytes, bounded. Raises InputError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as exc:
        raise InputError(
            f"cannot read key {path}: {exc.strerror}", "check the path; `edgekit keys generate` makes keys"
        ) from None
    if len(data) > MAX_KEY_FILE:
        raise InputError(f"{path}: too large for a key", "give a PEM file")
    return data


_Private = Ed25519PrivateKey | X25519PrivateKey | MLKEM768PrivateKey
_Public = Ed25519PublicKey | X25519PublicKey | MLKEM768PublicKey


def _parts(kem: Kem) -> tuple[str, ...]:
    return ("X25519",) if kem == "X25519" else ("ML-KEM-768", "X25519")


def _hybrid_public(blocks: list[_Public], what: str) -> HpkePublic:
    match blocks:
        case [X25519PublicKey() as x25519]:
            return x25519
        case [MLKEM768PublicKey() as mlkem, X25519PublicKey() as x25519]:
            return hpke.MLKEM768X25519PublicKey(mlkem, x25519)
    raise InputError(f"{what}: not a recipient key", "give an X25519 or ML-KEM-768 + X25519 public key")


def _private_blocks(pem: bytes, what: str, most: int) -> list[_Private]:
    keys: list[_Private] = []
    for block in _split(pem, what, most):
        try:
            key = load_pem_private_key(block, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError(f"{what}: not a private key in PEM form", "give the private half") from None
        if not isinstance(key, _Private):
            raise InputError(f"{what}: a key of an unsupported kind", "`edgekit keys generate` makes keys")
        keys.append(key)
    return keys


def _public_blocks(pem: bytes, what: str, most: int) -> list[_Public]:
    keys: list[_Public] = []
    for block in _split(pem, what, most):
        try:
            key = load_pem_public_key(block)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise InputError(f"{what}: not a public key in PEM form", "give the .pub file") from None
        if not isinstance(key, _Public):
            raise InputError(f"{what}: a key of an unsupported kind", "`edgekit keys generate` makes keys")
        keys.append(key)
    return keys


def _split(pem: bytes, what: str, most: int) -> list[bytes]:
    """PEM blocks of a file, at least one."""
    blocks: list[bytes] = []
    rest = pem.strip()
    while rest and len(blocks) <= most and len(pem) <= MAX_KEY_FILE:
        head, found, tail = rest.partition(_END)
        if not found or not head.startswith(b"-----BEGIN "):
            break
        line, _, rest = tail.partition(b"\n")
        blocks.append(head + found + line + b"\n")
    if rest or not 1 <= len(blocks) <= most:
        raise InputError(f"{what}: not a key in PEM form", "`edgekit keys generate` makes keys")
    return blocks


def _private_pem(key: _Private) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public_pem(key: _Public) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _spki(key: _Public) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
