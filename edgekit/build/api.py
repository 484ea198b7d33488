"""The commands as functions: `import edgekit; edgekit.build(...)`. Same names, same meaning, no printing.

Files and folders may be `str` or `Path`; data is what the command line takes ("FILE.npz[0:200]"), or an
iterable of rows. Every function raises the errors of `edgekit.errors`, with one line and a hint.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgekit import bundle, host
from edgekit import profile as profiles_
from edgekit.backends import SourceModel
from edgekit.build import bench as benching
from edgekit.build import compare as comparing
from edgekit.build import compress as compressing
from edgekit.build import convert as converting
from edgekit.build import data, folder, gates, report, reporting
from edgekit.build import optimize as optimizing
from edgekit.build import pipeline as building
from edgekit.build import rebuild as rebuilding
from edgekit.build.bench import Subject, Timed
from edgekit.build.cache import Cache, default_folder
from edgekit.build.compare import Comparison
from edgekit.build.compress import Compressed
from edgekit.build.data import Naming
from edgekit.build.progress import Progress
from edgekit.build.rebuild import Rebuilt
from edgekit.build.request import Effort, Request
from edgekit.build.sources import SourceOptions
from edgekit.bundle.model import ReleaseInfo, Variant
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import RecipientKey, SigningKey, VerifyKey
from edgekit.errors import InputError
from edgekit.files import write_bytes
from edgekit.profile import Precision, Profile

Paths = str | Path
Rows = str | Path | Iterable[Any]
"""Data as docs/data.md describes: a place with or without "[START:STOP]", or rows: arrays, {input: array}, or
(row, label)."""


@dataclass(frozen=True)
class Built:
    """What a build made."""

    report: dict[str, Any]
    """Every candidate's fate and figures: the JSON of `edgekit build --json`."""
    variants: tuple[Variant, ...]
    """What ships, in the profiles' order: configuration, certificate, files. A profile has a second variant
    where its first engine could not be measured here."""
    bundle: Path | None
    digest: str

    def html(self) -> str:
        """The report as one page."""
        return reporting.render(self.report)


def build(
    model: Paths,
    profiles: str | Sequence[str],
    *,
    calibration: Rows,
    evaluate: Rows,
    output: Paths | None = None,
    labels: str = "labels",
    inputs: Mapping[str, str] | None = None,
    affine: Sequence[str] = (),
    image: str = "",
    label_names: Sequence[str] = (),
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    trust_source: bool = False,
    baseline: Paths | None = None,
    metric: str = "accuracy",
    decode: str = "",
    pipeline: Paths | None = None,
    precisions: Sequence[str] = (),
    engines: Sequence[str] = (),
    objective: str = "latency",
    maximum: Mapping[str, float] | None = None,
    minimum: Mapping[str, float] | None = None,
    effort: Effort = "normal",
    time_budget_s: float = 0.0,
    emulate: bool = False,
    robustness: bool = True,
    emulate_rows: int = 200,
    layers: bool = False,
    try_known_bad: bool = False,
    gate: bool = True,
    jobs: int | None = None,
    name: str = "",
    version: str = "0.1.0",
    key: Paths | None = None,
    recipients: Sequence[Paths] = (),
    encrypt: bool = True,
    cache: Paths | bool = True,
    progress: Progress | None = None,
) -> Built:
    """`edgekit build`. Without `output` nothing is written or signed.

    `cache`: True for the usual folder, False for none. `maximum` and `minimum`: figures and limits.
    `layers`: measure each layer's quantization error of what ships.
    Raises InputError for bad input, GateError when a profile has no candidate that passes.
    """
    request = Request(
        model=Path(model),
        profiles=tuple(profiles_.get(n) for n in ((profiles,) if isinstance(profiles, str) else profiles)),
        calibration=_data(calibration),
        evaluate=_data(evaluate),
        source=SourceOptions(dict(shapes or {}), trust_source),
        baseline=Path(baseline) if baseline else None,
        naming=Naming(dict(inputs or {}), labels),
        affine=tuple(affine),
        image=image,
        label_names=tuple(label_names),
        metric=metric,
        decode=decode,
        pipeline=Path(pipeline) if pipeline else None,
        precisions=tuple(precisions),
        engines=tuple(engines),
        objective=objective,
        constraints=(
            *(gates.constraint(f"{k}={v}", is_maximum=True) for k, v in (maximum or {}).items()),
            *(gates.constraint(f"{k}={v}", is_maximum=False) for k, v in (minimum or {}).items()),
        ),
        effort=effort,
        time_budget_s=time_budget_s,
        emulate=emulate,
        robustness=robustness,
        emulate_rows=emulate_rows,
        layers=layers,
        try_known_bad=try_known_bad,
        gate=gate,
        jobs=jobs or os.cpu_count() or 1,
    )
    made = building.build(request, _cache(cache), progress)
    plain = report.plain(made)
    if output is None:
        return Built(plain, made.variants, None, "")
    target = Path(output)
    ring = KeyRing.at()
    if key is None or (encrypt and not recipients):
        ring.ensure()
    sealed = [RecipientKey.load(Path(one)) for one in recipients] or [ring.recipient_key()] * encrypt
    digest = bundle.write(
        target,
        ReleaseInfo(name or target.stem, version),
        made.variants,
        signer=SigningKey.load(Path(key)) if key else ring.signing_key(),
        recipients=sealed if encrypt else [],
        encrypt=encrypt,
    )
    written = {"bundle": str(target), "digest": digest, "size_bytes": target.stat().st_size}
    return Built({**plain, **written}, made.variants, target, digest)


def optimize(
    model: Paths,
    output: Paths,
    *,
    precision: Precision,
    calibration: Rows,
    evaluate: Rows,
    profile: str = "",
    engine: str = "",
    labels: str = "labels",
    inputs: Mapping[str, str] | None = None,
    affine: Sequence[str] = (),
    image: str = "",
    metric: str = "accuracy",
    gate: bool = True,
    trust_source: bool = False,
    cache: Paths | bool = True,
    progress: Progress | None = None,
) -> Variant:
    """`edgekit optimize`: files, variant.json and certificate.json in the folder `output`.

    `profile`: empty for this machine's. Raises InputError, GateError.
    """
    chosen = _profile(profile)
    request = Request(
        model=Path(model),
        profiles=(optimizing.offering(chosen, precision, engine),),
        calibration=_data(calibration),
        evaluate=_data(evaluate),
        source=SourceOptions(trust=trust_source),
        naming=Naming(dict(inputs or {}), labels),
        affine=tuple(affine),
        image=image,
        metric=metric,
        precisions=(precision,),
        engines=(engine,) if engine else (),
        gate=gate,
    )
    variant = optimizing.optimize(request, _cache(cache), progress)
    folder.write_variant(Path(output), variant)
    return variant


def convert(
    model: Paths,
    output: Paths,
    *,
    engine: str = "",
    profile: str = "",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    trust_source: bool = False,
    cache: Paths | bool = True,
    progress: Progress | None = None,
) -> SourceModel:
    """`edgekit convert`: the file `output` as ONNX, or with `engine` a folder of its files."""
    source = SourceOptions(dict(shapes or {}), trust_source)
    found = converting.to_onnx(Path(model), source, _cache(cache), progress)
    if not engine:
        write_bytes(Path(output), found.onnx)
        return found
    chosen = profiles_.get(profile) if profile else None
    recipe, files = converting.to_engine(found, engine, chosen, progress)
    name = chosen.name if chosen else "any"
    folder.write(Path(output), folder.config(found, recipe, files, name), files)
    return found


def compress(
    recipe: Paths,
    output: Paths,
    *,
    original: Paths | None = None,
    trust_source: bool = False,
    cache: Paths | bool = True,
    progress: Progress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Compressed:
    """`edgekit compress`: the recipe's result as the ONNX file `output`, its start as `original`.

    `on_line` gets one line per epoch. Raises ConfigError, ModelError, DataError.
    """
    made = compressing.compress(
        Path(recipe),
        trust=trust_source,
        original=original is not None,
        cache=_cache(cache),
        progress=progress,
        on_line=on_line,
    )
    write_bytes(Path(output), made.onnx)
    if original is not None:
        write_bytes(Path(original), made.original)
    return made


def bench(
    what: Paths,
    *,
    baseline: Paths | None = None,
    engine: str = "onnxruntime",
    rows: Mapping[str, NDArray[Any]] | None = None,
    trust_source: bool = False,
    cache: Paths | bool = True,
    progress: Progress | None = None,
) -> Timed:
    """`edgekit bench` of a model file or of a folder that `optimize` or `convert` wrote.

    `rows`: engine inputs by name, (n, ...); without them random numbers. A baseline is a model file.
    """
    source, kept = SourceOptions(trust=trust_source), _cache(cache)

    def of_model(path: Path, engine: str) -> Subject:
        found = converting.to_onnx(path, source, kept, progress)
        recipe, files = converting.to_engine(found, engine, _profile(""), progress)
        return Subject(f"{path.name} ({engine})", engine, recipe.runtime_options, files, found.inputs)

    path = Path(what)
    if path.is_dir() and (path / folder.CONFIG).exists():
        settings, files, _ = folder.read(path)
        subject = Subject(path.name, settings.engine.name, settings.options, files, settings.inputs)
    else:
        subject = of_model(path, engine)
    other = of_model(Path(baseline), subject.engine) if baseline else None
    return benching.bench(subject, rows or benching.random_rows(subject.inputs), other, progress)


def compare(
    first: Paths | Mapping[str, Any], second: Paths | Mapping[str, Any], *, trust: Sequence[Paths] = ()
) -> Comparison:
    """`edgekit compare`: two bundles (paths) or reports (`Built.report`)."""

    def side(one: Paths | Mapping[str, Any], name: str) -> comparing.Side:
        if isinstance(one, Mapping):
            return comparing.of_report(name, one)
        return comparing.of_bundle(str(one), bundle.open(Path(one), _trusted(trust)))

    return comparing.compare(side(first, "first"), side(second, "second"))


def rebuild(
    path: Paths,
    *,
    model: Paths,
    calibration: Rows,
    evaluate: Rows = "",
    labels: str = "labels",
    inputs: Mapping[str, str] | None = None,
    trust: Sequence[Paths] = (),
    progress: Progress | None = None,
) -> list[Rebuilt]:
    """`edgekit rebuild --verify`: every variant made again; `all(one.same for one in ...)` is the proof."""
    opened = bundle.open(Path(path), _trusted(trust))
    given = rebuilding.Inputs(
        Path(model), _data(calibration), _data(evaluate), Naming(dict(inputs or {}), labels)
    )
    return rebuilding.rebuild(opened, given, progress)


def _profile(name: str) -> Profile:
    return profiles_.get(name) if name else profiles_.detect(host.read())


def _data(given: Rows) -> data.Source:
    return str(given) if isinstance(given, str | Path) else data.Rows(given)


def _cache(where: Paths | bool) -> Cache:
    if isinstance(where, bool):
        return Cache(default_folder() if where else None)
    return Cache(Path(where))


def _trusted(paths: Sequence[Paths]) -> list[VerifyKey]:
    own = KeyRing.at().builder_public
    if not paths and not own.exists():
        raise InputError("no key to trust", "give the builder's public key: trust=['builder.pub']")
    return [VerifyKey.load(Path(path)) for path in paths or (own,)]
