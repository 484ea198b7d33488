"""`edgekit convert`: any known model format to ONNX, or to one engine's files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgekit import profile
from edgekit.cli import _flags
from edgekit.cli._output import kib, say, say_json
from edgekit.errors import InputError
from edgekit.files import write_bytes


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="a model of any known format as ONNX, or as one engine's files",
        description="Recognises the format by its content, converts, checks that the answers are the same, "
        "and cleans the graph. Nothing is quantized or measured.",
    )
    parser.add_argument("model", type=Path, help="model file, or a SavedModel folder")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="PATH", help="FILE.onnx; with --engine a folder"
    )
    parser.add_argument("--engine", metavar="NAME", help="write this engine's fp32 files instead of ONNX")
    parser.add_argument("--profile", metavar="NAME", help="take the engine's options from this profile")
    _flags.add_source(parser)
    _flags.add_cache(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from edgekit.build import convert, folder

    if args.profile and not args.engine:
        raise InputError("--profile has no meaning without --engine")
    if not args.engine and (args.output.is_dir() or not args.output.parent.is_dir()):
        raise InputError(f"{args.output}: not a file in a folder that exists", "e.g. -o model.onnx")
    chosen = profile.get(args.profile) if args.profile else None
    with _flags.progress(silent=args.json) as progress:
        model = convert.to_onnx(args.model, _flags.source(args), _flags.cache(args), progress)
        if args.engine:
            recipe, files = convert.to_engine(model, args.engine, chosen, progress)
            settings = folder.config(model, recipe, files, chosen.name if chosen else "any")
            folder.write(args.output, settings, files)
        else:
            files = {args.output.name: model.onnx}
            write_bytes(args.output, model.onnx)
    if args.json:
        say_json(
            {
                "format": model.format,
                "output": str(args.output),
                "files": {name: len(content) for name, content in files.items()},
                "inputs": model.inputs,
                "outputs": model.outputs,
            }
        )
        return 0
    say(f"{args.output}: {model.format} to {args.engine or 'ONNX'}, {kib(sum(map(len, files.values())))}")
    for word, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            say(f"  {word:<7} {spec.name}  {spec.datatype} {list(spec.shape)}")
    return 0
