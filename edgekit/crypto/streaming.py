"""Bulk encryption in Tink's AES256_GCM_HKDF_1MB wire format.

    header    1 byte its own length (40) | 32 bytes salt | 7 bytes nonce prefix
    segments  each at most 1 MiB of ciphertext, tag included; the header counts towards the first
    key       HKDF-SHA256(ikm = key, salt, info = aad), 32 bytes
    nonce     prefix | segment number, 4 bytes big-endian | 1 for the last segment, else 0

Source: Tink's "AES-GCM-HKDF Streaming AEAD" specification. A reordered, repeated, dropped or cut
segment has another nonce, so its tag does not hold.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgekit.errors import DecryptError

Buffer = bytes | bytearray | memoryview

KEY_BYTES = 32
SALT_BYTES = 32
PREFIX_BYTES = 7
HEADER_BYTES = 1 + SALT_BYTES + PREFIX_BYTES
TAG_BYTES = 16
SEGMENT_BYTES = 1 << 20
_PLAIN = SEGMENT_BYTES - TAG_BYTES
_FIRST_PLAIN = _PLAIN - HEADER_BYTES
MAX_PLAINTEXT_BYTES = _FIRST_PLAIN + (2**32 - 1) * _PLAIN


def ciphertext_size(plaintext_size: int) -> int:
    """Bytes of ciphertext for that many bytes of plaintext."""
    beyond_first = max(0, plaintext_size - _FIRST_PLAIN)
    segments = 1 + -(-beyond_first // _PLAIN)
    return HEADER_BYTES + plaintext_size + segments * TAG_BYTES


def plaintext_size(ciphertext_size: int) -> int:
    """Bytes of plaintext in a well-formed ciphertext of that size. Raises DecryptError when there is none."""
    segments = -(-ciphertext_size // SEGMENT_BYTES)
    size = ciphertext_size - HEADER_BYTES - segments * TAG_BYTES
    # A final segment of a bare tag only exists when there is nothing else.
    in_last = ciphertext_size - (segments - 1) * SEGMENT_BYTES - TAG_BYTES
    if size < 0 or (segments > 1 and in_last <= 0):
        raise DecryptError(f"no ciphertext is {ciphertext_size} bytes long")
    return size


def encrypt(key: bytes, plaintext: Buffer, aad: bytes) -> bytes:
    """Encrypt with a fresh salt and nonce prefix. `key` has 32 bytes."""
    salt, prefix = os.urandom(SALT_BYTES), os.urandom(PREFIX_BYTES)
    cipher = _cipher(key, salt, aad)
    view = memoryview(plaintext)
    parts = [bytes([HEADER_BYTES]), salt, prefix]
    for number, (start, stop) in enumerate(_segments(len(view))):
        nonce = _nonce(prefix, number, last=stop == len(view))
        parts.append(cipher.encrypt(nonce, view[start:stop], None))
    return b"".join(parts)


def decrypt(key: bytes, ciphertext: Buffer, aad: bytes, *, plaintext_size: int) -> bytes:
    """Decrypt what must be exactly `plaintext_size` bytes; the sizes are compared before allocating.

    Raises DecryptError for another key or aad and for any edit. Nothing is returned before every
    segment was checked.
    """
    view = memoryview(ciphertext)
    if not 0 <= plaintext_size <= MAX_PLAINTEXT_BYTES or len(view) != ciphertext_size(plaintext_size):
        raise DecryptError(
            f"{len(view)} bytes of ciphertext cannot hold {plaintext_size} bytes", "it is cut or edited"
        )
    if view[0] != HEADER_BYTES:
        raise DecryptError("unknown ciphertext header", "it was not written by edgekit, or was edited")
    salt, prefix = bytes(view[1 : 1 + SALT_BYTES]), bytes(view[1 + SALT_BYTES : HEADER_BYTES])
    cipher = _cipher(key, salt, aad)
    plain = bytearray(plaintext_size)
    at = HEADER_BYTES
    for number, (start, stop) in enumerate(_segments(plaintext_size)):
        end = at + stop - start + TAG_BYTES
        nonce = _nonce(prefix, number, last=stop == plaintext_size)
        try:
            plain[start:stop] = cipher.decrypt(nonce, view[at:end], None)
        except InvalidTag:
            raise DecryptError(
                f"ciphertext segment {number} does not decrypt", "wrong content key, or it was edited"
            ) from None
        at = end
    return bytes(plain)


def _segments(size: int) -> Iterator[tuple[int, int]]:
    """Plaintext ranges per segment; an empty plaintext has one empty segment."""
    start, stop = 0, min(size, _FIRST_PLAIN)
    yield start, stop
    while stop < size:
        start, stop = stop, min(size, stop + _PLAIN)
        yield start, stop


def _cipher(key: bytes, salt: bytes, aad: bytes) -> AESGCM:
    if len(key) != KEY_BYTES:
        raise ValueError(f"a content key has {KEY_BYTES} bytes")
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt, aad).derive(key))


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])
