"""A content key for one recipient: HPKE base mode (RFC 9180), HKDF-SHA256, AES-256-GCM.

`info` binds a sealed key to its purpose, so that a key sealed for one release or device does not
open as another's. Its strings are canonical JSON arrays that begin with the purpose.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke

from edgekit import codec
from edgekit.crypto.keys import Kem, RecipientKey, SealingKey
from edgekit.errors import DecryptError

KEY_BYTES = 32
SEALED_BYTES: dict[Kem, int] = {"X25519": 80, "MLKEM768_X25519": 1168}


def release_info(name: str, version: str) -> bytes:
    """Info of a content key sealed inside the bundle of a release."""
    return codec.to_json(["edgekit.release.v1", name, version])


def assignment_info(tenant: str, device: str, bundle_digest: str) -> bytes:
    """Info of a content key sealed to a device in an assignment."""
    return codec.to_json(["edgekit.assignment.v1", tenant, device, bundle_digest])


def seal(content_key: bytes, to: RecipientKey, info: bytes) -> bytes:
    """`SEALED_BYTES[to.kem]` bytes: the encapsulated key, then the encrypted content key."""
    if len(content_key) != KEY_BYTES:
        raise ValueError(f"a content key has {KEY_BYTES} bytes")
    return _suite(to.kem).encrypt(content_key, to.hpke_key, info)


def unseal(sealed: bytes, key: SealingKey, info: bytes) -> bytes:
    """The content key. Raises DecryptError when it was sealed to another key or for another purpose."""
    if len(sealed) == SEALED_BYTES[key.kem]:
        try:
            return _suite(key.kem).decrypt(sealed, key.hpke_key, info)
        except (InvalidTag, ValueError):
            pass
    raise DecryptError(
        f"the content key is not sealed to key {key.public().key_id[:16]}",
        "use the private key of a recipient, or ask the builder to add this recipient",
    )


def _suite(kem: Kem) -> hpke.Suite:
    kems = {"X25519": hpke.KEM.X25519, "MLKEM768_X25519": hpke.KEM.MLKEM768_X25519}
    return hpke.Suite(kems[kem], hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
