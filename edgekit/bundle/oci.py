"""OCI image-spec documents as far as a bundle uses them, strict: unknown fields are refused."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TypeVar

from edgekit import codec
from edgekit.errors import FormatError

T = TypeVar("T")

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BLOB = b"{}"

VARIANT = "application/vnd.edgekit.variant.v1"
RELEASE = "application/vnd.edgekit.release.v1"
SBOM = "application/vnd.edgekit.sbom.v1"
SIGNATURE = "application/vnd.edgekit.signature.v1"

CONFIG = "application/vnd.edgekit.config.v1+json"
CERTIFICATE = "application/vnd.edgekit.certificate.v1+json"
GOLDEN = "application/vnd.edgekit.golden.v1+json"
FILE = "application/vnd.edgekit.file.v1"
GOLDEN_FILE = "application/vnd.edgekit.golden-file.v1"
ENCRYPTED = "+aes256gcmhkdf1mb"
RELEASE_DOCUMENT = "application/vnd.edgekit.release.v1+json"
CYCLONEDX = "application/vnd.cyclonedx+json"
DSSE = "application/vnd.dsse.envelope.v1+json"
IN_TOTO = "application/vnd.in-toto+json"

TITLE = "org.opencontainers.image.title"
PROFILE = "vnd.edgekit.profile"
VARIANT_NAME = "vnd.edgekit.variant"
KIND = "vnd.edgekit.kind"
"""What a manifest in the index is, by its artifact type: skopeo 1.9 drops `artifactType` from an index."""
PLAINTEXT_DIGEST = "vnd.edgekit.plaintext.digest"
PLAINTEXT_SIZE = "vnd.edgekit.plaintext.size"

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Platform:
    architecture: str
    os: str
    variant: str | None = None


@dataclass(frozen=True)
class Descriptor:
    mediaType: str
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    artifactType: str | None = None


@dataclass(frozen=True)
class Manifest:
    schemaVersion: int
    mediaType: str
    artifactType: str
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] | None = None
    subject: Descriptor | None = None


@dataclass(frozen=True)
class Index:
    schemaVersion: int
    mediaType: str
    manifests: tuple[Descriptor, ...]


_PLATFORMS = {
    "x86_64": Platform("amd64", "linux"),
    "aarch64": Platform("arm64", "linux"),
    "armv7l": Platform("arm", "linux", "v7"),
}
UNKNOWN = Platform("unknown", "unknown")
"""Platform of what is not a program: signature, SBOM, release document, variants for any CPU."""


def platform(architecture: str) -> Platform:
    """OCI's name of `uname -m`."""
    return _PLATFORMS.get(architecture, UNKNOWN)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def descriptor(media_type: str, data: bytes, **more: str) -> Descriptor:
    """Descriptor of `data`; `more` become annotations."""
    return Descriptor(media_type, digest(data), len(data), more or None)


def manifest(artifact_type: str, config: Descriptor, *layers: Descriptor) -> Manifest:
    return Manifest(2, MANIFEST, artifact_type, config, layers)


def index(*manifests: Descriptor) -> Index:
    return Index(2, INDEX, manifests)


def parse(cls: type[T], data: bytes, what: str) -> T:
    """A canonical document. Raises FormatError; one value has one spelling."""
    return codec.from_canonical_json(cls, data, what=what, error=FormatError)


def index_bytes(value: Index) -> bytes:
    """An index in the field order of the OCI reference implementation (Go), annotations sorted.

    Tools like skopeo write the index of what they copy anew; spelled like this it stays the same bytes.
    """
    plain = codec.to_plain(value)
    for item in plain["manifests"]:
        if "annotations" in item:
            item["annotations"] = dict(sorted(item["annotations"].items()))
    return json.dumps(plain, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_index(data: bytes, what: str) -> Index:
    """An index in the spelling of `index_bytes`. Raises FormatError."""
    value = codec.from_json(Index, data, what=what, error=FormatError)
    try:
        canonical = index_bytes(value) == data
    except ValueError:  # lone surrogates and infinite numbers, which are never written
        canonical = False
    if not canonical:
        raise FormatError(f"{what}: not in canonical form", "it was edited or damaged; fetch it again")
    return value


def hex_of(value: str, what: str) -> str:
    """The hex part of a digest. Raises FormatError."""
    if not DIGEST.fullmatch(value):
        raise FormatError(f"{what}: not a sha256 digest")
    return value.removeprefix("sha256:")
