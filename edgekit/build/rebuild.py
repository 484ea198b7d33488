"""Make a bundle's variants again from the same inputs, and compare bytes.

A bundle records, signed, everything that decides a variant's files: digests of the source model and of the
calibration rows, preprocessing, engine, precision, the quantizer's options and the tools' versions. What
holds here too is built anew, without a cache; then every file must have the digest that was signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import edgekit
from edgekit import bundle
from edgekit.backends import Recipe
from edgekit.build import certify, data, metrics, pipeline
from edgekit.build.cache import Cache
from edgekit.build.certify import Context
from edgekit.build.data import images
from edgekit.build.progress import Progress, Silent
from edgekit.build.request import Request
from edgekit.build.workshop import Workshop
from edgekit.bundle.documents import VariantProvenance
from edgekit.errors import EngineMissing, InputError


@dataclass(frozen=True)
class Inputs:
    """What was given to the build, given again. Data as for `edgekit build`."""

    model: Path
    calibration: data.Source
    evaluate: data.Source = ""
    """Empty: the evaluation data is not compared. It does not decide the files."""
    naming: data.Naming = field(default_factory=data.Naming)


@dataclass(frozen=True)
class FileCheck:
    """`found` is empty when the file was not made again, `wanted` when the bundle has no such file."""

    name: str
    wanted: str
    found: str

    @property
    def same(self) -> bool:
        return self.wanted == self.found


@dataclass(frozen=True)
class Rebuilt:
    """One variant; digests are lower-case hex SHA-256 of plaintext."""

    variant: str
    files: Mapping[str, bytes]
    checks: tuple[FileCheck, ...]

    @property
    def same(self) -> bool:
        return all(check.same for check in self.checks)


def rebuild(opened: bundle.Bundle, inputs: Inputs, progress: Progress | None = None) -> list[Rebuilt]:
    """Every variant made again, in the bundle's order.

    Raises InputError naming everything that differs (edgekit, tools, model, data) before anything is built,
    EngineError when a tool fails.
    """
    recorded = {item.variant: item for item in opened.provenance.variants}
    if not all(item.tools for item in recorded.values()):
        raise InputError(
            f"{opened.info.name} {opened.info.version} does not record how its variants were made",
            "it is of an edgekit before 0.2; build it again once, then it can be verified",
        )
    differing = list(_versions(opened))
    if not differing:
        context, calibration = pipeline.prepare(_request(opened, inputs), Cache(None))
        differing = list(_inputs(opened, context, inputs))
    if differing:
        raise InputError(
            f"not the build's inputs: {'; '.join(differing)}",
            "rebuild with exactly what the bundle names: `edgekit inspect BUNDLE --json`",
        )
    workshop = Workshop(context, calibration, Cache(None), progress or Silent())
    return [_again(entry, recorded[entry.config.variant], workshop) for entry in opened.variants]


def recipe_of(recorded: VariantProvenance) -> Recipe:
    """The recipe that a bundle records."""
    return Recipe(
        engine=recorded.engine,
        precision=recorded.precision,
        options=dict(recorded.recipe_options),
        runtime_options=dict(recorded.options),
        needs_calibration=bool(recorded.calibration_sha256),
    )


def _again(entry: bundle.VariantEntry, recorded: VariantProvenance, workshop: Workshop) -> Rebuilt:
    made = workshop.make(recipe_of(recorded))
    if made.error:
        raise made.error
    # A pipeline's files (a vocabulary) were given to the build, not made by it.
    made_by_it = entry.config.engine_files
    wanted = {blob.name: blob.plaintext_sha256 for blob in entry.blobs if blob.name in made_by_it}
    found = {name: hashlib.sha256(content).hexdigest() for name, content in made.files.items()}
    checks = (FileCheck(name, wanted.get(name, ""), found.get(name, "")) for name in {**wanted, **found})
    return Rebuilt(entry.config.variant, made.files, tuple(checks))


def _versions(opened: bundle.Bundle) -> Iterator[str]:
    """Programs that are another version here, or absent."""
    builder = opened.provenance.builder
    if builder.version != edgekit.__version__:
        yield f"made by {builder.name} {builder.version}, this is {edgekit.__version__}"
    wanted: dict[str, str] = {}
    here: dict[str, str] = {}
    for recorded in opened.provenance.variants:
        wanted |= recorded.tools
        try:
            here |= certify.tools(recipe_of(recorded))
        except EngineMissing as exc:
            yield exc.message
    for name in sorted(wanted):
        if name in here and here[name] != wanted[name]:
            yield f"made with {name} {wanted[name]}, here is {here[name]}"


def _request(opened: bundle.Bundle, inputs: Inputs) -> Request:
    """A request that reads the same inputs; without evaluation data the calibration rows stand in."""
    first = opened.variants[0]
    steps = first.config.preprocessing
    return Request(
        model=inputs.model,
        profiles=(),
        calibration=inputs.calibration,
        evaluate=inputs.evaluate or inputs.calibration,
        naming=inputs.naming,
        image=images.words(steps.image[0]) if steps.image else "",
        preprocessing=steps,
        label_names=first.config.labels if inputs.evaluate else (),
        metric=_metric(first.certificate.metric) if inputs.evaluate else "agreement",
    )


def _metric(name: str) -> str:
    """The certificate's metric; of a user's own only matters that it takes labels where there are any."""
    return name if name in metrics.names() else "agreement"


def _inputs(opened: bundle.Bundle, context: Context, inputs: Inputs) -> Iterator[str]:
    """Model and data that are not those of the certificates."""
    certificates = [entry.certificate for entry in opened.variants]
    wanted = {certificate.source_sha256 for certificate in certificates}
    if wanted != {context.model.file_sha256}:
        yield _other("source model", str(inputs.model), wanted, context.model.file_sha256)
    elif {one.model_sha256 for one in opened.provenance.variants} != {context.model.sha256}:
        yield "the source model becomes another graph here (converter, shapes or libraries differ)"
    wanted = {c.calibration_sha256 for c in certificates if c.calibration_sha256}
    if wanted and wanted != {context.calibration_sha256}:
        yield _other("calibration data", str(inputs.calibration), wanted, context.calibration_sha256)
    wanted = {certificate.dataset_sha256 for certificate in certificates}
    if inputs.evaluate and wanted != {context.evaluation.sha256}:
        yield _other("evaluation data", str(inputs.evaluate), wanted, context.evaluation.sha256)
    if any(entry.config.preprocessing != context.preprocessing for entry in opened.variants):
        yield "the bundle's variants differ in their preprocessing"


def _other(what: str, given: str, wanted: set[str], found: str) -> str:
    names = ", ".join(sorted(digest[:16] for digest in wanted))
    return f"{what} {given} has digest {found[:16]}, the bundle was made from {names}"
