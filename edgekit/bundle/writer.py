"""Write a bundle: deterministic apart from the random content key, atomic, and read back before it counts."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgekit
from edgekit import codec
from edgekit.bundle import archive, oci
from edgekit.bundle import reader as bundle_reader
from edgekit.bundle.contents import VariantEntry, build_index, signature_manifest_for, subject
from edgekit.bundle.documents import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    BlobRef,
    Builder,
    Predicate,
    ReleaseDocument,
    SealedKey,
    Statement,
    VariantProvenance,
)
from edgekit.bundle.model import BUNDLE_VERSION, Blob, ReleaseInfo, Variant
from edgekit.bundle.sbom import sbom
from edgekit.crypto import dsse, sealing, streaming
from edgekit.crypto.keys import RecipientKey, SigningKey
from edgekit.errors import FormatError
from edgekit.files import atomic_write


def write(
    path: Path,
    info: ReleaseInfo,
    variants: Sequence[Variant],
    *,
    signer: SigningKey,
    recipients: Sequence[RecipientKey],
    encrypt: bool = True,
) -> str:
    """Write the bundle and return its digest ("sha256:...").

    The finished bytes go through `open` first, so what this writes can be read. Raises FormatError for
    parts that do not fit together, SystemFault when the file cannot be written; `path` is then untouched.
    """
    data, digest = to_bytes(info, variants, signer=signer, recipients=recipients, encrypt=encrypt)
    with atomic_write(path) as file:
        file.write(data)
    return digest


def to_bytes(
    info: ReleaseInfo,
    variants: Sequence[Variant],
    *,
    signer: SigningKey,
    recipients: Sequence[RecipientKey],
    encrypt: bool = True,
) -> tuple[memoryview, str]:
    """The bytes of a bundle file, and the bundle's digest."""
    if encrypt and not recipients:
        raise FormatError("an encrypted bundle needs a recipient", "give a recipient's public key")
    writer = _Writer(os.urandom(sealing.KEY_BYTES) if encrypt else None)
    manifests = [writer.variant(variant) for variant in variants]
    sbom_manifest = writer.wrapped(oci.SBOM, oci.CYCLONEDX, sbom(info, variants, edgekit.__version__))
    release_manifest = writer.wrapped(
        oci.RELEASE, oci.RELEASE_DOCUMENT, writer.release(info, recipients if encrypt else ())
    )
    statement = Statement(
        STATEMENT_TYPE,
        (
            *(subject(f"variant:{e.config.variant}", writer.blobs[d.digest]) for d, e in manifests),
            subject("sbom", writer.blobs[sbom_manifest.digest]),
            subject("release", writer.blobs[release_manifest.digest]),
        ),
        PREDICATE_TYPE,
        Predicate(
            BUNDLE_VERSION,
            f"{info.name}:{info.version}",
            Builder("edgekit-toolkit", edgekit.__version__),
            tuple(_provenance(variant) for variant in variants),
            tuple(BlobRef(digest, len(data)) for digest, data in sorted(writer.blobs.items())),
        ),
    )
    envelope = dsse.sign(oci.IN_TOTO, codec.to_json(statement), [signer])
    writer.add(oci.DSSE, envelope)
    signature = writer.document(oci.MANIFEST, signature_manifest_for(envelope, release_manifest))
    index = writer.add(
        oci.INDEX,
        oci.index_bytes(
            build_index(manifests, sbom=sbom_manifest, release=release_manifest, signature=signature)
        ),
    )
    data = _archive(writer.blobs, index)
    bundle_reader.open(data, [signer.public()])
    return data, index.digest


def _archive(blobs: dict[str, bytes], index: oci.Descriptor) -> memoryview:
    members = {archive.BLOB_FOLDER + digest.removeprefix("sha256:"): data for digest, data in blobs.items()}
    members[archive.LAYOUT_NAME] = archive.LAYOUT
    members[archive.INDEX_NAME] = bundle_reader.outer_index(index.digest, index.size)
    file = io.BytesIO()
    archive.write(file, members)
    return file.getbuffer()


def _provenance(variant: Variant) -> VariantProvenance:
    config, certificate = variant.config, variant.certificate
    return VariantProvenance(
        config.variant,
        certificate.source_sha256,
        certificate.calibration_sha256,
        certificate.dataset_sha256,
        config.engine.name,
        certificate.engine_version,
        config.precision,
        config.options,
        variant.recipe_options,
        variant.tools,
        variant.model_sha256,
    )


class _Writer:
    """Collects blobs by digest. The same plaintext under the same name is encrypted once."""

    def __init__(self, content_key: bytes | None) -> None:
        self.blobs: dict[str, bytes] = {}
        self._content_key = content_key
        self._files: dict[tuple[str, str], oci.Descriptor] = {}

    def add(self, media_type: str, data: bytes) -> oci.Descriptor:
        descriptor = oci.descriptor(media_type, data)
        self.blobs[descriptor.digest] = data
        return descriptor

    def document(self, media_type: str, value: Any) -> oci.Descriptor:
        return self.add(media_type, codec.to_json(value))

    def wrapped(self, artifact_type: str, media_type: str, value: Any) -> oci.Descriptor:
        """A document as the only layer of a manifest of its own."""
        empty = self.add(oci.EMPTY, oci.EMPTY_BLOB)
        layer = self.document(media_type, value)
        return self.document(oci.MANIFEST, oci.manifest(artifact_type, empty, layer))

    def release(self, info: ReleaseInfo, recipients: Sequence[RecipientKey]) -> ReleaseDocument:
        sealed: list[SealedKey] = []
        for recipient in recipients:
            assert self._content_key is not None  # noqa: S101 - recipients are given only with a key
            box = sealing.seal(self._content_key, recipient, sealing.release_info(info.name, info.version))
            sealed.append(SealedKey(recipient.key_id, recipient.kem, base64.b64encode(box).decode()))
        return ReleaseDocument(BUNDLE_VERSION, info, self._content_key is not None, tuple(sealed))

    def variant(self, variant: Variant) -> tuple[oci.Descriptor, VariantEntry]:
        files = [self._file(oci.FILE, name, data) for name, data in sorted(variant.files.items())]
        golden = [
            self._file(oci.GOLDEN_FILE, name, data) for name, data in sorted(variant.golden_files.items())
        ]
        manifest = oci.manifest(
            oci.VARIANT,
            self.document(oci.CONFIG, variant.config),
            self.document(oci.CERTIFICATE, variant.certificate),
            self.document(oci.GOLDEN, variant.golden),
            *(descriptor for descriptor, _ in files),
            *(descriptor for descriptor, _ in golden),
        )
        descriptor = self.document(oci.MANIFEST, manifest)
        entry = VariantEntry(
            variant.config,
            variant.certificate,
            variant.golden,
            tuple(blob for _, blob in files),
            tuple(blob for _, blob in golden),
            descriptor.digest,
        )
        return descriptor, entry

    def _file(self, kind: str, name: str, plain: bytes) -> tuple[oci.Descriptor, Blob]:
        plain_digest = hashlib.sha256(plain).hexdigest()
        media_type = kind + (oci.ENCRYPTED if self._content_key else "")
        stored = self._files.get((name, plain_digest))
        if stored is None:
            data = bytes(plain)
            if self._content_key:
                data = streaming.encrypt(self._content_key, plain, bundle_reader.file_aad(name, plain_digest))
            stored = self._files[name, plain_digest] = self.add(media_type, data)
        annotations = {
            oci.TITLE: name,
            oci.PLAINTEXT_DIGEST: f"sha256:{plain_digest}",
            oci.PLAINTEXT_SIZE: str(len(plain)),
        }
        descriptor = oci.Descriptor(media_type, stored.digest, stored.size, annotations)
        blob = Blob(name, stored.digest.removeprefix("sha256:"), stored.size, plain_digest, len(plain))
        return descriptor, blob
