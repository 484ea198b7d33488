"""What is signed: the in-toto statement, its predicate, and the release document."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.bundle.model import ReleaseInfo
from edgekit.codec import LATER

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:edgekit:bundle:v1"


@dataclass(frozen=True)
class Digest:
    sha256: str


@dataclass(frozen=True)
class Subject:
    name: str
    """ "variant:<name>", "sbom" or "release"."""
    digest: Digest


@dataclass(frozen=True)
class Builder:
    name: str
    version: str


@dataclass(frozen=True)
class VariantProvenance:
    """How a variant was made."""

    variant: str
    source_sha256: str
    calibration_sha256: str
    dataset_sha256: str
    engine: str
    engine_version: str
    precision: str
    options: dict[str, str | int | float | bool]
    recipe_options: dict[str, str | int | float | bool] = field(default_factory=dict, metadata=LATER)
    """What the quantizer was told; `options` are the engine's on the device."""
    tools: dict[str, str] = field(default_factory=dict, metadata=LATER)
    """Library names and versions that decided the bytes; empty in bundles of edgekit 0.1."""
    model_sha256: str = field(default="", metadata=LATER)
    """Of the cleaned ONNX that the backend was given."""


@dataclass(frozen=True)
class BlobRef:
    digest: str
    size: int


@dataclass(frozen=True)
class Predicate:
    bundle_version: int
    release: str
    """ "name:version" """
    builder: Builder
    variants: tuple[VariantProvenance, ...]
    blobs: tuple[BlobRef, ...]
    """Every blob of the bundle except the envelope itself, its manifest and the index, by digest."""


@dataclass(frozen=True)
class Statement:
    _type: str
    subject: tuple[Subject, ...]
    predicateType: str
    predicate: Predicate


@dataclass(frozen=True)
class SealedKey:
    """The content key for one recipient."""

    key_id: str
    kem: str
    sealed: str
    """base64"""


@dataclass(frozen=True)
class ReleaseDocument:
    bundle_version: int
    info: ReleaseInfo
    encrypted: bool
    recipients: tuple[SealedKey, ...]
