"""Signed envelopes: DSSE v1 (secure-systems-lab/dsse) with Ed25519.

The signature covers PAE(type, payload), so a payload of one kind can never be taken for another.
An envelope has exactly one spelling: it must equal its own canonical re-encoding.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass

from edgekit import codec
from edgekit.crypto.keys import SigningKey, VerifyKey
from edgekit.errors import SignatureError

MAX_ENVELOPE_BYTES = 8 * 1024 * 1024
MAX_SIGNATURES = 8


@dataclass(frozen=True)
class _Signature:
    keyid: str
    sig: str


@dataclass(frozen=True)
class _Envelope:
    payload: str
    payloadType: str
    signatures: tuple[_Signature, ...]


@dataclass(frozen=True)
class Verified:
    """A payload whose signatures hold, and the trusted keys that made them."""

    payload: bytes
    key_ids: tuple[str, ...]
    signatures: int
    """All signatures of the envelope, those by unknown keys included."""


def sign(payload_type: str, payload: bytes, keys: Sequence[SigningKey]) -> bytes:
    """The envelope as canonical JSON; deterministic, because Ed25519 is."""
    message = pae(payload_type, payload)
    signatures = tuple(_Signature(key.public().key_id, _encode(key.sign(message))) for key in keys)
    return codec.to_json(_Envelope(_encode(payload), payload_type, signatures))


def verify(envelope: bytes, payload_type: str, trusted: Sequence[VerifyKey]) -> bytes:
    """The payload, once a trusted key's signature over it was checked. Raises SignatureError.

    Signatures by unknown keys are ignored; one by a trusted key that does not hold is an error.
    """
    return verify_detailed(envelope, payload_type, trusted).payload


def verify_detailed(envelope: bytes, payload_type: str, trusted: Sequence[VerifyKey]) -> Verified:
    """`verify`, saying also who signed."""
    parsed = codec.from_canonical_json(
        _Envelope, envelope, what="signature envelope", max_bytes=MAX_ENVELOPE_BYTES, error=SignatureError
    )
    if parsed.payloadType != payload_type:
        raise SignatureError(
            f"signature envelope: payload type {parsed.payloadType!r}, expected {payload_type!r}"
        )
    if len(parsed.signatures) > MAX_SIGNATURES:
        raise SignatureError(f"signature envelope: more than {MAX_SIGNATURES} signatures")
    payload = _decode(parsed.payload)
    message = pae(payload_type, payload)
    by_id = {key.key_id: key for key in trusted}
    good: list[str] = []
    for signature in parsed.signatures:
        key = by_id.get(signature.keyid)
        if key is None:
            continue
        if not key.verifies(_decode(signature.sig), message):
            raise SignatureError(f"the signature by key {key.key_id[:16]} does not hold", _HINT_EDITED)
        if key.key_id in good:
            raise SignatureError(f"signature envelope: key {key.key_id[:16]} signs twice", _HINT_EDITED)
        good.append(key.key_id)
    if not good:
        signers = ", ".join(s.keyid[:16] for s in parsed.signatures) or "nobody"
        expected = ", ".join(key_id[:16] for key_id in by_id) or "no key"
        raise SignatureError(
            f"signed by {signers!r}, but only {expected} is trusted here",
            "trust the builder's public key (builder.pub), or have the bundle built by a trusted builder",
        )
    return Verified(payload, tuple(good), len(parsed.signatures))


_HINT_EDITED = "it was edited or damaged on the way; fetch it again"


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding, DSSE protocol section 2."""
    name = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(name), name, len(payload), payload)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    """Strict base64: one spelling per value."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError("signature envelope: not base64", _HINT_EDITED) from None
    if _encode(data) != text:
        raise SignatureError("signature envelope: base64 is not canonical", _HINT_EDITED)
    return data
