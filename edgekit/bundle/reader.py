"""Open a bundle: strict, verified before parsed, read piece by piece."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit import codec
from edgekit.bundle import archive, oci
from edgekit.bundle.contents import Contents, VariantEntry, verify
from edgekit.bundle.documents import Predicate
from edgekit.bundle.model import Blob, ReleaseInfo
from edgekit.bundle.source import Source, sha256, source_of
from edgekit.crypto import sealing, streaming
from edgekit.crypto.keys import RecipientKey, SealingKey, VerifyKey
from edgekit.errors import BundleError, DecryptError, DigestError, FormatError

MAX_OUTER_INDEX = 64 * 1024


class Bundle:
    """A bundle whose signature, structure and digests were verified when it was opened."""

    def __init__(self, blobs: StoredBlobs, contents: Contents, size: int) -> None:
        self._blobs = blobs
        self._contents = contents
        self.size = size
        """Bytes of the bundle's file."""

    @property
    def digest(self) -> str:
        """sha256:... of the bundle's index: the same bundle, whatever file or registry it lies in."""
        return self._contents.digest

    @property
    def info(self) -> ReleaseInfo:
        return self._contents.info

    @property
    def variants(self) -> tuple[VariantEntry, ...]:
        return self._contents.variants

    @property
    def sbom(self) -> dict[str, Any]:
        """CycloneDX 1.6."""
        return self._contents.sbom

    @property
    def provenance(self) -> Predicate:
        return self._contents.provenance

    @property
    def key_id(self) -> str:
        """Of the key that signed."""
        return self._contents.key_id

    @property
    def encrypted(self) -> bool:
        return self._contents.release.encrypted

    @property
    def recipients(self) -> tuple[str, ...]:
        """Key ids to which the content key is sealed."""
        return tuple(item.key_id for item in self._contents.release.recipients)

    def content_key(self, key: SealingKey, info: bytes | None = None) -> bytes:
        """The release's content key, unsealed. Raises DecryptError when `key` is not a recipient."""
        mine = key.public().key_id
        for item in self._contents.release.recipients:
            if item.key_id == mine:
                try:
                    sealed = base64.b64decode(item.sealed, validate=True)
                except (binascii.Error, ValueError):
                    raise FormatError("release document: a sealed key is not base64") from None
                return sealing.unseal(sealed, key, info or sealing.release_info(*self._release))
        known = ", ".join(item.key_id[:16] for item in self._contents.release.recipients) or "nobody"
        raise DecryptError(
            f"the content key is sealed to {known}, not to key {mine[:16]}",
            "use a recipient's private key, or have the bundle built with this recipient",
        )

    def reseal(self, content_key: bytes, to: RecipientKey, info: bytes) -> bytes:
        """The content key for one more recipient, e.g. a device; see `crypto.sealing` for `info`."""
        return sealing.seal(content_key, to, info)

    def read(self, entry: VariantEntry, content_key: bytes | None = None) -> dict[str, bytes]:
        """Model files in plain, each checked against its signed plaintext digest.

        Raises DecryptError (no or wrong key) and DigestError.
        """
        return {blob.name: self._plain(blob, content_key) for blob in entry.blobs}

    def read_golden(self, entry: VariantEntry, content_key: bytes | None = None) -> dict[str, bytes]:
        """Golden samples in plain, named as `GoldenSpec` says; raises like `read`."""
        return {blob.name: self._plain(blob, content_key) for blob in entry.golden_blobs}

    @property
    def _release(self) -> tuple[str, str]:
        return self.info.name, self.info.version

    def _plain(self, blob: Blob, content_key: bytes | None) -> bytes:
        if self.encrypted and content_key is None:
            raise DecryptError(f"{blob.name!r} is encrypted", "give the private key of a recipient")
        data = self._blobs.load(blob.sha256)
        if self.encrypted:
            assert content_key is not None  # noqa: S101 - for mypy, checked above
            aad = file_aad(blob.name, blob.plaintext_sha256)
            data = streaming.decrypt(content_key, data, aad, plaintext_size=blob.plaintext_size_bytes)
        if hashlib.sha256(data).hexdigest() != blob.plaintext_sha256:
            raise DigestError(f"the plaintext of {blob.name!r} is not the one that was signed")
        return data


def open(where: Path | str | bytes | bytearray | memoryview, trusted: Sequence[VerifyKey]) -> Bundle:
    """Verify a bundle that a key of `trusted` must have signed.

    Raises FormatError, DigestError or SignatureError (all BundleError), InputError for an unreadable file.
    """
    source = source_of(where)
    try:
        return _opened(source, trusted)
    except BundleError as exc:
        if not isinstance(where, Path | str):
            raise
        raise type(exc)(f"{where}: {exc.message}", exc.hint) from None


def _opened(source: Source, trusted: Sequence[VerifyKey]) -> Bundle:
    members = archive.read(source)
    blobs = StoredBlobs(
        {
            name.removeprefix(archive.BLOB_FOLDER): (source, member)
            for name, member in members.items()
            if name.startswith(archive.BLOB_FOLDER)
        }
    )
    digest = _outer_digest(source, members[archive.INDEX_NAME], blobs.sizes)
    blobs.check_all()
    return Bundle(blobs, verify(blobs, digest, trusted), source.size)


def outer_index(digest: str, size: int) -> bytes:
    """index.json of a bundle file: it names the bundle's index and nothing else."""
    return oci.index_bytes(oci.index(oci.Descriptor(oci.INDEX, digest, size)))


def file_aad(name: str, plaintext_sha256: str) -> bytes:
    """Associated data of an encrypted file: it decrypts only as what it was signed to be."""
    return codec.to_json(["edgekit.file.v1", name, plaintext_sha256])


class StoredBlobs:
    """Blobs by hex digest, each somewhere in a source."""

    def __init__(self, places: Mapping[str, tuple[Source, archive.Member]]) -> None:
        self.places = places
        self.sizes = {name: member.size for name, (_, member) in places.items()}

    def check_all(self) -> None:
        """Hash every blob. Raises DigestError."""
        for name, (source, member) in self.places.items():
            if sha256(source, member.offset, member.size) != name:
                raise _damaged(name)

    def load(self, digest: str) -> bytes:
        source, member = self.places[digest]
        data = source.read(member.offset, member.size)
        if hashlib.sha256(data).hexdigest() != digest:
            raise _damaged(digest)
        return data


def _damaged(digest: str) -> DigestError:
    return DigestError(f"blob {digest[:16]} was edited or damaged", "fetch the bundle again")


def _outer_digest(source: Source, member: archive.Member, sizes: Mapping[str, int]) -> str:
    """The bundle's digest from index.json, which has exactly one spelling."""
    if member.size > MAX_OUTER_INDEX:
        raise FormatError(f"index.json: {member.size} bytes, more than the {MAX_OUTER_INDEX} allowed")
    data = source.read(member.offset, member.size)
    index = oci.parse_index(data, "index.json")
    digest = index.manifests[0].digest if len(index.manifests) == 1 else ""
    size = sizes.get(oci.hex_of(digest, "index.json"), -1)
    if data != outer_index(digest, size):
        raise FormatError("index.json: not in canonical form", "it was edited or damaged")
    return digest
