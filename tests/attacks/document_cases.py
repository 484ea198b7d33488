"""Edits inside the documents, with every digest that depends on them put right again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from tests.attacks.forge import Change, Forge

Edit = tuple[str, str, Change]
"""(what is done, which document, how)"""

WRONG_VERSIONS: tuple[Any, ...] = (0, 2, -1, 1.5, "1", True, None, [1], 10**30)
PATHS = (
    "../evil",
    "/etc/passwd",
    "a//b",
    "a/./b",
    "a/../b",
    "a\\b",
    "",
    ".",
    "..",
    "a\0b",
    "a\nb",
    "~",
    "x" * 300,
    "é",
    "CON:",
)
SIZES = ("0", "-1", "+8", "08", "8.0", "1e1", "٣", "9" * 12, "9" * 40, "", " 8", "0x8")
WRONG: tuple[Any, ...] = (None, [], {}, "x", -1, 1e400, "\ud800", {"a": {"b": 1}})


def put(*path: str | int, value: Any) -> Change:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(*path: str | int) -> Change:
    def change(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


def reverse(*path: str | int) -> Change:
    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document.reverse()

    return change


def repeat(*path: str | int) -> Change:
    def change(document: Any) -> None:
        for key in path:
            document = document[key]
        document.append(document[0])

    return change


def meaningful() -> Iterator[Edit]:
    """Well-formed lies: only the signature can tell. An attacker who signs them is another signer."""
    yield "accuracy raised", "certificate", put("accuracy", "value", value=0.999)
    yield "failed gate passed", "certificate", put("gates", 0, "passed", value=False)
    yield "override hidden", "certificate", put("gate_skipped", value=True)
    yield "measured on target", "certificate", put("measured_on_target", value=True)
    yield "tolerance widened", "golden", put("max_abs_difference", value=1e9)
    yield "agreement not asked for", "golden", put("min_reference_agreement", value=0.0)
    yield "other profile", "config", put("profile", value="jetson")
    yield "no features needed", "config", put("isa", value=["x"])
    yield "other engine", "config", put("engine", "name", value="openvino")
    yield "engine range opened", "config", put("engine", "minimum", value="0")
    yield "option set", "config", put("options", "threads", value=64)
    yield "labels swapped", "config", reverse("labels")
    yield "scale changed", "config", put("preprocessing", "affine", 0, "scale", value=2.0)
    yield "release renamed", "release", put("info", "annotations", value={"a": "b"})
    yield "no recipient", "release", put("recipients", value=[])
    yield "sealed key replaced", "release", put("recipients", 0, "sealed", value="AAAA")
    yield "recipient replaced", "release", put("recipients", 0, "key_id", value="0" * 64)
    yield "model hash in the SBOM", "sbom", put("components", 0, "name", value="x")
    yield "serial number", "sbom", put("serialNumber", value="urn:uuid:0")


def malformed() -> Iterator[Edit]:
    """What no builder writes: refused even when a trusted key signed it."""
    for name in ("config", "certificate", "golden", "release"):
        yield f"{name} with an unknown field", name, put("unknown", value=1)
        yield f"{name} is a list", name, lambda _: []
        yield f"{name} is null", name, lambda _: "null"
    documents: dict[str, tuple[str, ...]] = {
        "config": ("variant", "engine", "files", "inputs", "preprocessing", "isa", "options"),
        "certificate": ("variant", "accuracy", "latency", "gates", "coverage", "host_isa", "warnings"),
        "golden": ("samples", "inputs", "outputs", "max_abs_difference"),
        "release": ("bundle_version", "info", "encrypted", "recipients"),
        "variant": ("schemaVersion", "mediaType", "artifactType", "config", "layers"),
        "release manifest": ("schemaVersion", "mediaType", "artifactType", "config", "layers"),
        "sbom manifest": ("schemaVersion", "mediaType", "artifactType", "config", "layers"),
    }
    for document, fields in documents.items():
        for field in fields:
            yield f"{document} without {field}", document, drop(field)
            for number, value in enumerate(WRONG):
                if not (
                    value in ([], {})
                    and field in ("options", "coverage", "host_isa", "warnings", "isa", "gates", "recipients")
                ):
                    yield f"{document}.{field} wrong ({number})", document, put(field, value=value)
    for version in WRONG_VERSIONS:
        yield f"release document version {version!r}", "release", put("bundle_version", value=version)
    yield "release says plain", "release", put("encrypted", value=False)
    yield "release renamed", "release", put("info", "name", value="other")
    yield "release version with a line break", "release", put("info", "version", value="1\n2")
    yield "other bill of materials", "sbom", put("bomFormat", value="SPDX")
    yield "variant renamed in its configuration", "config", put("variant", value="other")
    yield "variant renamed in its certificate", "certificate", put("variant", value="other")
    yield "variant with a path", "config", put("variant", value="../x")
    yield from _layers()


def _layers() -> Iterator[Edit]:
    title, size = "org.opencontainers.image.title", "vnd.edgekit.plaintext.size"
    digest = "vnd.edgekit.plaintext.digest"
    for path in PATHS:
        yield f"file called {path!r}", "variant", put("layers", 2, "annotations", title, value=path)
        yield f"golden file called {path!r}", "variant", put("layers", 3, "annotations", title, value=path)

        def both(document: Any, path: str = path) -> None:
            document["files"] = [path]

        yield f"file declared as {path!r}", "config", both
    for value in SIZES:
        yield f"plaintext size {value!r}", "variant", put("layers", 2, "annotations", size, value=value)
    for value in ("", "sha256:", "sha256:" + "A" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 65):
        yield f"plaintext digest {value!r}", "variant", put("layers", 2, "annotations", digest, value=value)
    for key in (title, size, digest):
        yield f"no annotation {key}", "variant", drop("layers", 2, "annotations", key)
    yield "extra annotation", "variant", put("layers", 2, "annotations", "x", value="y")
    yield "no annotations", "variant", drop("layers", 2, "annotations")
    yield "layers reversed", "variant", reverse("layers")
    yield "a layer twice", "variant", repeat("layers")
    yield (
        "two certificates",
        "variant",
        put("layers", 1, "mediaType", value="application/vnd.edgekit.certificate.v1+json"),
    )
    yield "file of another kind", "variant", put("layers", 2, "mediaType", value="application/octet-stream")
    yield "file in plain", "variant", put("layers", 2, "mediaType", value="application/vnd.edgekit.file.v1")
    yield (
        "file as golden file",
        "variant",
        put("layers", 2, "mediaType", value="application/vnd.edgekit.golden-file.v1+aes256gcmhkdf1mb"),
    )
    yield "size lie", "variant", put("layers", 2, "size", value=10**15)
    yield "size zero", "variant", put("layers", 2, "size", value=0)
    yield "manifest with a subject", "variant", put("subject", value={"digest": "x"})
    for number in range(5):
        yield f"layer {number} left out", "variant", _without(number)


def _without(number: int) -> Change:
    def change(document: Any) -> None:
        layers = document["layers"]
        del layers[number % len(layers)]

    return change


def statements() -> Iterator[tuple[str, Change]]:
    """Changes of what is signed; refused even when a trusted key signed it."""
    for version in WRONG_VERSIONS:
        yield f"version {version!r}", put("predicate", "bundle_version", value=version)
    yield "version missing", drop("predicate", "bundle_version")
    for field in ("_type", "predicateType", "subject", "predicate"):
        yield f"without {field}", drop(field)
        for number, value in enumerate(WRONG):
            yield f"{field} wrong ({number})", put(field, value=value)
    for field in ("release", "builder", "variants", "blobs"):
        yield f"predicate without {field}", drop("predicate", field)
        for number, value in enumerate(WRONG):
            yield f"predicate.{field} wrong ({number})", put("predicate", field, value=value)
    yield "unknown field", put("x", value=1)
    yield "unknown predicate field", put("predicate", "x", value=1)
    yield "subjects reversed", reverse("subject")
    yield "subject twice", repeat("subject")
    yield "blobs reversed", reverse("predicate", "blobs")
    yield "blob twice", repeat("predicate", "blobs")
    yield "other release", put("predicate", "release", value="x:y")
    yield "variants reversed", reverse("predicate", "variants")
    for number in range(4):
        yield f"subject {number} left out", drop("subject", number)
        yield f"subject {number} renamed", put("subject", number, "name", value="x")
        yield f"subject {number} elsewhere", put("subject", number, "digest", "sha256", value="0" * 64)
        yield f"subject {number} no digest", put("subject", number, "digest", "sha256", value="../" * 21)
    for number in range(12):
        yield f"blob {number} left out", drop("predicate", "blobs", number)
        yield f"blob {number} larger", put("predicate", "blobs", number, "size", value=10**12)
        yield (
            f"blob {number} elsewhere",
            put("predicate", "blobs", number, "digest", value="sha256:" + "0" * 64),
        )
    yield "is a list", lambda _: []
    yield "is a number", lambda _: 1


def indexes() -> Iterator[tuple[str, Change]]:
    """Changes of the index, which is not signed itself but follows from what is."""
    yield "variants reversed", reverse("manifests")
    yield "a manifest twice", repeat("manifests")
    for a, b in itertools.combinations(range(5), 2):

        def swap(document: Any, a: int = a, b: int = b) -> None:
            m = document["manifests"]
            m[a], m[b] = m[b], m[a]

        def cross(document: Any, a: int = a, b: int = b) -> None:
            """Each other's manifest under one's own platform and annotations: swapped variants."""
            m = document["manifests"]
            for key in ("digest", "size"):
                m[a][key], m[b][key] = m[b][key], m[a][key]

        yield f"{a} and {b} in each other's place", swap
        yield f"{a} and {b} in each other's role", cross
    for number in range(5):
        yield f"{number} left out", drop("manifests", number)
        kind = ("manifests", number, "annotations", "vnd.edgekit.kind")
        yield f"{number} of another kind", put(*kind, value="application/x")
        yield f"{number} without kind", drop(*kind)
        yield f"{number} with a type", put("manifests", number, "artifactType", value="application/x")
        yield f"{number} of another media type", put("manifests", number, "mediaType", value="application/x")
        yield (
            f"{number} for another platform",
            put("manifests", number, "platform", value={"architecture": "arm64", "os": "x"}),
        )
        yield (
            f"{number} annotated",
            put("manifests", number, "annotations", value={"vnd.edgekit.profile": "x"}),
        )
        yield f"{number} of another size", put("manifests", number, "size", value=10**15)
        yield f"{number} elsewhere", put("manifests", number, "digest", value="sha256:" + "0" * 64)
        yield f"{number} nowhere", put("manifests", number, "digest", value="../../etc/passwd")
    for number, value in enumerate(WRONG):
        yield f"manifests wrong ({number})", put("manifests", value=value)
    yield "unknown field", put("x", value=1)
    yield "annotations", put("annotations", value={"a": "b"})
    yield "schema version", put("schemaVersion", value=3)
    yield "media type", put("mediaType", value="application/vnd.oci.image.manifest.v1+json")


def apply(forge: Forge, edit: Edit, variant: int = 0) -> Forge:
    _, kind, change = edit
    return forge.edit(forge.find(kind, variant), change)
