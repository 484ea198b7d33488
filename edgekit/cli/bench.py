"""`edgekit bench`: how fast a model, a folder of files or a bundle's variants run on this machine."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle, profile
from edgekit.bundle.model import Preprocessing
from edgekit.cli import _flags, _trust
from edgekit.cli._output import kib, say, say_json, table
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import SealingKey
from edgekit.errors import EngineMissing, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgekit.build.bench import Subject, Timed

    Rows = Mapping[str, NDArray[Any]]

ENGINE = "onnxruntime"


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench",
        help="latency, memory and coverage of a model or of a bundle's variants on this machine",
        description="Runs through the code that serves on the device, each subject in its own process, in "
        "turn with the baseline. Inputs are the data given, a bundle's golden samples, or random numbers.",
    )
    parser.add_argument(
        "what", type=Path, metavar="WHAT", help="a bundle, a folder of `edgekit optimize`, or a model file"
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="MODEL", help="model to compare with, e.g. the fp32 source"
    )
    parser.add_argument("--variant", metavar="NAME", help="only this variant of a bundle")
    parser.add_argument(
        "--engine",
        action="append",
        metavar="NAME",
        help=f"engine for a model file; repeat for more (default: {ENGINE})",
    )
    parser.add_argument(
        "--profile", metavar="NAME", help="engine options for a model file (default: this machine's profile)"
    )
    parser.add_argument("--data", metavar="DATA", help="rows to run, as for `edgekit build`")
    _flags.add_naming(parser)
    _trust.add_trust(parser)
    parser.add_argument(
        "--key", type=Path, metavar="KEY", help="a recipient's private key (default: the key ring's)"
    )
    _flags.add_source(parser)
    _flags.add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from edgekit.build.bench import bench

    with _flags.progress(silent=args.json) as progress:
        found: list[Timed] = []
        missing: list[str] = []
        for subject, rows in _subjects(args):
            base = _model(args.baseline, subject.engine, args) if args.baseline else None
            try:
                found.append(bench(subject, rows, base, progress))
            except EngineMissing as exc:
                missing.append(f"{subject.name}: {exc.message}")
    if not found:
        raise InputError(
            f"nothing could be run: {'; '.join(missing)}", "install the engine, see `edgekit bench -h`"
        )
    if args.json:
        say_json({"results": found, "speedups": [one.speedup for one in found], "not_run": missing})
        return 0
    header = (
        "SUBJECT",
        "ENGINE",
        "P50 MS",
        "P95 MS",
        "P99 MS",
        "CPU MS",
        "X BASELINE",
        "MIB RSS",
        "SIZE",
        "NODES",
    )
    say(table(header, [_row(one) for one in found]))
    for line in missing:
        say(f"not run: {line}")
    return 0


def _row(one: Timed) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.engine} {one.engine_version}",
        f"{one.latency.p50_ms:.3f}",
        f"{one.latency.p95_ms:.3f}",
        f"{one.latency.p99_ms:.3f}",
        f"{one.cpu_ms:.3f}",
        f"{one.speedup:.2f}" if one.speedup else "-",
        f"{one.peak_rss_mib:.1f}",
        kib(one.size_bytes),
        ", ".join(f"{unit}: {count}" for unit, count in sorted(one.coverage.items())) or "-",
    )


def _subjects(args: argparse.Namespace) -> Iterator[tuple[Subject, Rows]]:
    """What was named, with the rows to run."""
    from edgekit.build import folder
    from edgekit.build.bench import Subject

    if args.what.is_dir() and (args.what / folder.CONFIG).exists():
        settings, files, _ = folder.read(args.what)
        subject = Subject(str(args.what), settings.engine.name, settings.options, files, settings.inputs)
        yield subject, _rows(args, subject, settings.preprocessing)
    elif _is_bundle(args.what):
        yield from _variants(args)
    else:
        for engine in args.engine or [ENGINE]:
            subject = _model(args.what, engine, args)
            yield subject, _rows(args, subject, Preprocessing())


def _is_bundle(path: Path) -> bool:
    """A tar archive, by its magic."""
    try:
        with path.open("rb") as file:
            return file.read(263)[257:] == b"ustar\0"
    except OSError:
        return False  # a folder, or nothing: whoever reads it says so


def _variants(args: argparse.Namespace) -> Iterator[tuple[Subject, Rows]]:
    from edgekit.build.bench import Subject

    opened = bundle.open(args.what, _trust.trusted(args))
    entries = [e for e in opened.variants if args.variant in (None, e.config.variant)]
    if not entries:
        known = ", ".join(entry.config.variant for entry in opened.variants)
        raise InputError(f"no variant is called {args.variant!r}", f"this bundle has {known}")
    key = None
    if opened.encrypted:
        key = opened.content_key(SealingKey.load(args.key) if args.key else KeyRing.at().sealing_key())
    for entry in entries:
        config = entry.config
        files = {name: data for name, data in opened.read(entry, key).items() if name in config.engine_files}
        subject = Subject(config.variant, config.engine.name, config.options, files, config.inputs)
        if args.data:
            yield subject, _rows(args, subject, config.preprocessing)
        else:
            yield subject, _golden(opened.read_golden(entry, key), entry)


def _golden(files: Mapping[str, bytes], entry: bundle.VariantEntry) -> Rows:
    import numpy as np

    from edgekit.runtimes._base import DTYPES

    return {
        spec.name: np.frombuffer(files[f"inputs/{spec.name}"], DTYPES[spec.datatype]).reshape(spec.shape)
        for spec in entry.golden.inputs
        if math.prod(spec.shape)
    }


def _model(path: Path, engine: str, args: argparse.Namespace) -> Subject:
    """A model file, of any known format, as the engine's fp32 (or as it is: quantized ONNX stays so)."""
    from edgekit import host
    from edgekit.build import convert
    from edgekit.build.bench import Subject

    model = convert.to_onnx(path, _flags.source(args), _flags.cache(args))
    chosen = profile.get(args.profile) if args.profile else profile.detect(host.read())
    recipe, files = convert.to_engine(model, engine, chosen)
    return Subject(f"{path.name} ({engine})", engine, recipe.runtime_options, files, model.inputs)


def _rows(args: argparse.Namespace, subject: Subject, steps: Preprocessing) -> Rows:
    from edgekit.build import data
    from edgekit.build.bench import ROWS, random_rows
    from edgekit.build.data import images

    if not args.data:
        return random_rows(subject.inputs)
    words = images.words(steps.image[0]) if steps.image else ""
    wanted = data.Wanted(subject.inputs, _flags.naming(args), image=images.parse(words))
    found = data.fit(data.read(args.data, wanted), subject.inputs, steps)
    return {name: array[:ROWS] for name, array in found.inputs.items()}
