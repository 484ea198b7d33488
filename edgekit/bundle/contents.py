"""What a verified bundle holds, and the strict way from its blobs to it. No IO in this module.

Order of trust: every blob's bytes match its name; the envelope's signature holds; what the envelope
lists is exactly what is there; only then are the documents parsed. At last the index is computed
anew from the verified parts and must be the one that was read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgekit import codec
from edgekit.bundle import names, oci, step_rules
from edgekit.bundle.documents import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Digest,
    Predicate,
    ReleaseDocument,
    Statement,
    Subject,
)
from edgekit.bundle.model import (
    BUNDLE_VERSION,
    Blob,
    Certificate,
    GoldenSpec,
    ReleaseInfo,
    Serving,
    VariantConfig,
)
from edgekit.crypto import dsse, streaming
from edgekit.crypto.keys import VerifyKey
from edgekit.errors import DecryptError, DigestError, FormatError, SignatureError

MAX_VARIANTS = 256
MAX_FILES = 1024
MAX_INDEX_BYTES = 1 << 20
MAX_CORES = MAX_BATCH = 4096


class Blobs(Protocol):
    """Blobs by hex digest."""

    sizes: dict[str, int]

    def load(self, digest: str) -> bytes:
        """The blob, checked against its digest. Raises DigestError."""
        ...


@dataclass(frozen=True)
class VariantEntry:
    """One variant of a verified bundle."""

    config: VariantConfig
    certificate: Certificate
    golden: GoldenSpec
    blobs: tuple[Blob, ...]
    """Model files."""
    golden_blobs: tuple[Blob, ...]
    """Golden samples."""
    digest: str
    """sha256:... of the variant's manifest."""


@dataclass(frozen=True)
class Contents:
    digest: str
    info: ReleaseInfo
    release: ReleaseDocument
    variants: tuple[VariantEntry, ...]
    sbom: dict[str, Any]
    provenance: Predicate
    key_id: str


def verify(blobs: Blobs, bundle_digest: str, trusted: Sequence[VerifyKey]) -> Contents:
    """Check everything but the bulk blobs' bytes, which the caller has hashed.

    Raises FormatError, DigestError or SignatureError.
    """
    index_bytes = _load(blobs, bundle_digest, "bundle index", MAX_INDEX_BYTES)
    index = oci.parse_index(index_bytes, "bundle index")
    signatures = [d for d in index.manifests if (d.annotations or {}).get(oci.KIND) == oci.SIGNATURE]
    if len(signatures) != 1:
        raise SignatureError(f"the bundle holds {len(signatures)} signatures, expected one", "build it again")
    signature_manifest = _manifest(blobs, signatures[0], "signature manifest", oci.SIGNATURE)
    envelope = _only_layer(signature_manifest, "signature manifest", oci.DSSE)
    envelope_bytes = _load_described(blobs, envelope, "signature envelope", dsse.MAX_ENVELOPE_BYTES)
    verified = dsse.verify_detailed(envelope_bytes, oci.IN_TOTO, trusted)
    if verified.signatures != 1:
        raise SignatureError("the bundle's envelope has more than one signature")

    statement = _statement(verified.payload)
    _check_complete(blobs, statement.predicate, (bundle_digest, signatures[0].digest, envelope.digest))
    reader = _Reader(blobs)
    manifests = [reader.manifest(subject) for subject in statement.subject]
    release = reader.release(*manifests[-1])
    entries = tuple(reader.variant(*item, encrypted=release.encrypted) for item in manifests[:-2])
    sbom = reader.sbom(*manifests[-2])
    _check_agreement(statement, release, entries)
    reader.check_all_used(statement.predicate)
    expected = build_index(
        [(item[0], entry) for item, entry in zip(manifests[:-2], entries, strict=True)],
        sbom=manifests[-2][0],
        release=manifests[-1][0],
        signature=oci.descriptor(oci.MANIFEST, codec.to_json(signature_manifest)),
    )
    if oci.index_bytes(expected) != index_bytes:
        raise FormatError("the bundle's index does not list what was signed", "it was edited")
    if signature_manifest != signature_manifest_for(envelope_bytes, manifests[-1][0]):
        raise FormatError("signature manifest: not the one that belongs to this bundle", "it was edited")
    return Contents(
        bundle_digest, release.info, release, entries, sbom, statement.predicate, verified.key_ids[0]
    )


def build_index(
    variants: Sequence[tuple[oci.Descriptor, VariantEntry]],
    *,
    sbom: oci.Descriptor,
    release: oci.Descriptor,
    signature: oci.Descriptor,
) -> oci.Index:
    """The one index of these manifests. Its SHA-256 is the bundle's digest."""
    listed = [
        _listed(
            manifest,
            oci.platform(entry.config.architecture),
            {
                oci.KIND: oci.VARIANT,
                oci.PROFILE: entry.config.profile,
                oci.VARIANT_NAME: entry.config.variant,
            },
        )
        for manifest, entry in variants
    ]
    others = [
        _listed(manifest, oci.UNKNOWN, {oci.KIND: kind})
        for manifest, kind in ((sbom, oci.SBOM), (release, oci.RELEASE), (signature, oci.SIGNATURE))
    ]
    return oci.index(*listed, *others)


def _listed(manifest: oci.Descriptor, platform: oci.Platform, annotations: dict[str, str]) -> oci.Descriptor:
    return oci.Descriptor(oci.MANIFEST, manifest.digest, manifest.size, annotations, platform)


def signature_manifest_for(envelope: bytes, release: oci.Descriptor) -> oci.Manifest:
    """The referrer that carries the envelope; its subject is the release manifest."""
    return oci.Manifest(
        2,
        oci.MANIFEST,
        oci.SIGNATURE,
        oci.descriptor(oci.EMPTY, oci.EMPTY_BLOB),
        (oci.descriptor(oci.DSSE, envelope),),
        subject=oci.Descriptor(oci.MANIFEST, release.digest, release.size),
    )


def _statement(payload: bytes) -> Statement:
    """The signed statement. An unknown version is named before the schema is applied."""
    plain = codec.parse_json(
        payload, what="signed statement", max_bytes=dsse.MAX_ENVELOPE_BYTES, error=FormatError
    )
    predicate = plain.get("predicate") if isinstance(plain, dict) else None
    version = predicate.get("bundle_version") if isinstance(predicate, dict) else None
    if version != BUNDLE_VERSION or isinstance(version, bool):
        raise FormatError(
            f"bundle version {version!r}; this edgekit reads version {BUNDLE_VERSION}",
            "update edgekit, or build the bundle with the same version",
        )
    statement = codec.from_canonical_json(
        Statement, payload, what="signed statement", max_bytes=dsse.MAX_ENVELOPE_BYTES, error=FormatError
    )
    if statement._type != STATEMENT_TYPE or statement.predicateType != PREDICATE_TYPE:
        raise FormatError("signed statement: of an unknown type", "update edgekit")
    subjects = [subject.name for subject in statement.subject]
    variants = [f"variant:{item.variant}" for item in statement.predicate.variants]
    if subjects != [*variants, "sbom", "release"] or len(set(subjects)) != len(subjects):
        raise FormatError("signed statement: its subjects do not fit its variants")
    if not 1 <= len(variants) <= MAX_VARIANTS:
        raise FormatError(f"a bundle has 1 to {MAX_VARIANTS} variants, this one has {len(variants)}")
    return statement


def _check_complete(blobs: Blobs, predicate: Predicate, outside: Sequence[str]) -> None:
    """The blobs that are there are the signed ones and the three that cannot list themselves."""
    listed = {oci.hex_of(blob.digest, "signed statement"): blob.size for blob in predicate.blobs}
    order = [blob.digest for blob in predicate.blobs]
    if order != sorted(set(order)):
        raise FormatError("signed statement: its blob list is not sorted")
    own = {digest.removeprefix("sha256:") for digest in outside}
    if missing := sorted(listed.keys() - blobs.sizes.keys()):
        raise DigestError(f"blob {missing[0][:16]} is missing from the bundle", "fetch it again")
    if foreign := sorted(blobs.sizes.keys() - listed.keys() - own):
        raise DigestError(f"blob {foreign[0][:16]} in the bundle was not signed", "it was added afterwards")
    for name, size in listed.items():
        if blobs.sizes[name] != size:
            raise DigestError(f"blob {name[:16]} has {blobs.sizes[name]} bytes, {size} were signed")


def _plausible(serving: Serving) -> bool:
    """Whether a device may do as these figures say."""
    return (
        1 <= serving.cores <= MAX_CORES
        and 0 <= serving.threads <= serving.cores
        and 1 <= serving.batch <= MAX_BATCH
        and serving.run_ms > 0
        and serving.batch_ms >= 0
    )


def _check_agreement(statement: Statement, release: ReleaseDocument, entries: Sequence[VariantEntry]) -> None:
    """Documents that were signed together also speak of the same things."""
    predicate = statement.predicate
    if predicate.release != f"{release.info.name}:{release.info.version}":
        raise FormatError("the release document and the signed statement name different releases")
    for provenance, entry in zip(predicate.variants, entries, strict=True):
        if not provenance.variant == entry.config.variant == entry.certificate.variant:
            raise FormatError(f"variant {provenance.variant!r}: its documents name another variant")


class _Reader:
    """Parses documents that are covered by a verified signature, and notes which blobs they use."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._used: set[str] = set()

    def manifest(self, subject: Subject) -> tuple[oci.Descriptor, oci.Manifest]:
        kind = {"sbom": oci.SBOM, "release": oci.RELEASE}.get(subject.name, oci.VARIANT)
        digest = f"sha256:{subject.digest.sha256}"
        size = self._blobs.sizes.get(oci.hex_of(digest, subject.name), -1)
        descriptor = oci.Descriptor(oci.MANIFEST, digest, size)
        self._used.add(digest)
        return descriptor, _manifest(self._blobs, descriptor, f"manifest of {subject.name}", kind)

    def release(self, _: oci.Descriptor, manifest: oci.Manifest) -> ReleaseDocument:
        self._empty(manifest.config)
        layer = _only_layer(manifest, "release manifest", oci.RELEASE_DOCUMENT)
        document = oci.parse(ReleaseDocument, self._document(layer, "release document"), "release document")
        if document.bundle_version != BUNDLE_VERSION or isinstance(document.bundle_version, bool):
            raise FormatError(f"release document: unknown version {document.bundle_version}")
        names.check_text(document.info.name, "release name")
        names.check_text(document.info.version, "release version")
        return document

    def sbom(self, _: oci.Descriptor, manifest: oci.Manifest) -> dict[str, Any]:
        self._empty(manifest.config)
        layer = _only_layer(manifest, "SBOM manifest", oci.CYCLONEDX)
        document = codec.parse_json(self._document(layer, "SBOM"), what="SBOM", error=FormatError)
        if not isinstance(document, dict) or document.get("bomFormat") != "CycloneDX":
            raise FormatError("SBOM: not a CycloneDX document")
        return document

    def variant(self, mine: oci.Descriptor, manifest: oci.Manifest, *, encrypted: bool) -> VariantEntry:
        what = f"variant {mine.digest[7:23]}"
        if manifest.config.mediaType != oci.CONFIG or not 2 <= len(manifest.layers) <= MAX_FILES:
            raise FormatError(f"{what}: its manifest has an unexpected shape")
        config = oci.parse(VariantConfig, self._document(manifest.config, what), f"{what} configuration")
        certificate_layer, golden_layer, *files = manifest.layers
        _expect(certificate_layer, oci.CERTIFICATE, what)
        _expect(golden_layer, oci.GOLDEN, what)
        certificate = oci.parse(Certificate, self._document(certificate_layer, what), f"{what} certificate")
        golden = oci.parse(GoldenSpec, self._document(golden_layer, what), f"{what} golden document")
        suffix = oci.ENCRYPTED if encrypted else ""
        model = tuple(self._file(d, what, encrypted) for d in files if d.mediaType == oci.FILE + suffix)
        samples = tuple(
            self._file(d, what, encrypted) for d in files if d.mediaType == oci.GOLDEN_FILE + suffix
        )
        if len(model) + len(samples) != len(files):
            raise FormatError(f"{what}: a file of an unexpected kind")
        names.check_variant(config.variant)
        names.check_variant(config.profile)
        if not config.inputs or not config.outputs:
            raise FormatError(f"{what}: a model without inputs or outputs")
        names.check_files(tuple(blob.name for blob in model), config.files)
        step_rules.check(config)
        if (
            golden.samples < 1
            or golden.max_abs_difference < 0
            or not 0 <= golden.min_reference_agreement <= 1
        ):
            raise FormatError(f"{what}: its golden document is out of range")
        names.check_golden(tuple(blob.name for blob in samples), golden)
        if certificate.serving is not None and not _plausible(certificate.serving):
            raise FormatError(f"{what}: its certificate says how to serve it with figures out of range")
        return VariantEntry(config, certificate, golden, model, samples, mine.digest)

    def check_all_used(self, predicate: Predicate) -> None:
        signed = {blob.digest for blob in predicate.blobs}
        if signed != self._used:
            raise FormatError("the signed blob list and the manifests do not fit together")

    def _empty(self, config: oci.Descriptor) -> None:
        if config != oci.descriptor(oci.EMPTY, oci.EMPTY_BLOB):
            raise FormatError("a manifest has an unexpected configuration")
        self._used.add(config.digest)

    def _document(self, descriptor: oci.Descriptor, what: str) -> bytes:
        self._used.add(descriptor.digest)
        return _load_described(self._blobs, descriptor, what, codec.MAX_DOCUMENT_BYTES)

    def _file(self, descriptor: oci.Descriptor, what: str, encrypted: bool) -> Blob:
        """A bulk file: its bytes are neither loaded nor parsed here, only its sizes compared."""
        self._used.add(descriptor.digest)
        annotations = descriptor.annotations or {}
        if sorted(annotations) != sorted((oci.TITLE, oci.PLAINTEXT_DIGEST, oci.PLAINTEXT_SIZE)):
            raise FormatError(f"{what}: a file without the expected annotations")
        plain_digest = oci.hex_of(annotations[oci.PLAINTEXT_DIGEST], what)
        blob_digest = oci.hex_of(descriptor.digest, what)
        text = annotations[oci.PLAINTEXT_SIZE]
        if not text.isdecimal() or not text.isascii() or len(text) > 12 or str(int(text)) != text:
            raise FormatError(f"{what}: a file with a bad size")
        size = int(text)
        blob = Blob(annotations[oci.TITLE], blob_digest, descriptor.size, plain_digest, size)
        if self._blobs.sizes.get(blob_digest) != descriptor.size:
            raise FormatError(f"{what}: the size of file {blob.name!r} is not the one that was signed")
        if encrypted:
            try:
                fits = streaming.plaintext_size(descriptor.size) == size
            except DecryptError:
                fits = False
        else:
            fits = (blob_digest, descriptor.size) == (plain_digest, size)
        if not fits:
            raise FormatError(f"{what}: file {blob.name!r} does not have its declared plaintext")
        return blob


def _manifest(blobs: Blobs, descriptor: oci.Descriptor, what: str, artifact_type: str) -> oci.Manifest:
    manifest = oci.parse(
        oci.Manifest, _load_described(blobs, descriptor, what, codec.MAX_DOCUMENT_BYTES), what
    )
    if (manifest.schemaVersion, manifest.mediaType, manifest.artifactType) != (
        2,
        oci.MANIFEST,
        artifact_type,
    ):
        raise FormatError(f"{what}: of an unexpected type", "update edgekit")
    return manifest


def _only_layer(manifest: oci.Manifest, what: str, media_type: str) -> oci.Descriptor:
    if len(manifest.layers) != 1:
        raise FormatError(f"{what}: expected one layer, found {len(manifest.layers)}")
    _expect(manifest.layers[0], media_type, what)
    return manifest.layers[0]


def _expect(descriptor: oci.Descriptor, media_type: str, what: str) -> None:
    if descriptor != oci.Descriptor(media_type, descriptor.digest, descriptor.size):
        raise FormatError(f"{what}: a layer of an unexpected kind {descriptor.mediaType[:80]!r}")


def _load_described(blobs: Blobs, descriptor: oci.Descriptor, what: str, most: int) -> bytes:
    data = _load(blobs, descriptor.digest, what, most)
    if len(data) != descriptor.size:
        raise FormatError(f"{what}: its descriptor states another size")
    return data


def _load(blobs: Blobs, digest: str, what: str, most: int) -> bytes:
    """A small blob by digest; its size is bounded before it is read."""
    name = oci.hex_of(digest, what)
    size = blobs.sizes.get(name)
    if size is None:
        raise DigestError(f"{what}: blob {name[:16]} is missing from the bundle", "fetch it again")
    if size > most:
        raise FormatError(f"{what}: {size} bytes, more than the {most} allowed")
    return blobs.load(name)


def subject(name: str, manifest: bytes) -> Subject:
    """A statement's subject for a manifest's bytes."""
    return Subject(name, Digest(oci.digest(manifest).removeprefix("sha256:")))
