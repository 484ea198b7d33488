"""`edgekit optimize`: one profile, one precision, plain files in a folder and their certificate."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from edgekit import profile
from edgekit.cli import _flags
from edgekit.cli._output import kib, say, say_json
from edgekit.profile import Precision


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "optimize",
        help="one precision for one device as plain files, measured and gated, without a bundle",
        description="Builds, measures and judges like `edgekit build`, for one profile and precision, and "
        "writes the engine's files, variant.json and certificate.json to a folder.",
    )
    parser.add_argument("model", type=Path, help="model file, or a SavedModel folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--precision", required=True, choices=get_args(Precision))
    parser.add_argument("--profile", metavar="NAME", help="device profile (default: this machine's)")
    parser.add_argument("--engine", metavar="NAME", help="only this engine (default: the profile's)")
    parser.add_argument(
        "--calibration", required=True, metavar="DATA", help="rows that ranges are learnt from"
    )
    parser.add_argument(
        "--evaluate", required=True, metavar="DATA", help="rows that the metric is measured on"
    )
    _flags.add_naming(parser)
    _flags.add_preprocessing(parser)
    parser.add_argument(
        "--metric", default="accuracy", metavar="NAME", help="as for build (default: accuracy)"
    )
    parser.add_argument("--no-gate", action="store_true", help="write the best candidate even if gates fail")
    _flags.add_source(parser)
    _flags.add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print the certificate as JSON")


def run(args: argparse.Namespace) -> int:
    from edgekit import host
    from edgekit.build import folder
    from edgekit.build.optimize import offering, optimize
    from edgekit.build.request import Request

    chosen = profile.get(args.profile) if args.profile else profile.detect(host.read())
    request = Request(
        model=args.model,
        profiles=(offering(chosen, args.precision, args.engine or ""),),
        calibration=args.calibration,
        evaluate=args.evaluate,
        source=_flags.source(args),
        naming=_flags.naming(args),
        affine=tuple(args.affine),
        image=args.image,
        metric=args.metric,
        precisions=(args.precision,),
        engines=(args.engine,) if args.engine else (),
        gate=not args.no_gate,
    )
    with _flags.progress(silent=args.json) as progress:
        variant = optimize(request, _flags.cache(args), progress)
    folder.write_variant(args.output, variant)
    if args.json:
        say_json(variant.certificate)
        return 0
    c = variant.certificate
    say(f"{args.output}: {variant.config.variant}, {kib(c.size_bytes)} in {len(variant.files)} files")
    say(f"  {c.metric} {c.accuracy.value:.4f}, fp32 {c.baseline_accuracy.value:.4f}, {c.samples} samples")
    say(f"  p50 {c.latency.p50_ms:.3g} ms, fp32 {c.baseline_latency.p50_ms:.3g} ms")
    for warning in c.warnings:
        say(f"  warning: {warning}")
    return 0
