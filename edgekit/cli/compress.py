"""`edgekit compress`: prune, sparsify, distil or fine-tune for int8, as a training recipe says."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from edgekit.cli import _flags
from edgekit.cli._output import kib, say, say_json
from edgekit.errors import InputError


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compress",
        help="prune, distil or fine-tune a PyTorch model as a training recipe says, into ONNX",
        description="Trains as RECIPE says (docs/compression.md) and writes ONNX for `edgekit build`, which "
        "judges it beside the original: --baseline.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="training recipe (.toml)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="ONNX file to write"
    )
    parser.add_argument(
        "--original",
        type=Path,
        metavar="FILE.onnx",
        help="also write the model before the first step as ONNX",
    )
    parser.add_argument(
        "--trust-source",
        action="store_true",
        help="run the Python code that the recipe names; still isolated",
    )
    _flags.add_cache(parser)
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print record and training log as JSON")


def run(args: argparse.Namespace) -> int:
    from edgekit.build import compress
    from edgekit.files import write_bytes

    for path in (args.output, *([args.original] if args.original else [])):
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"{path}: not a file in a folder that exists", "e.g. -o model.onnx")
    silent = args.quiet or args.json
    with _flags.progress(silent=silent) as progress:
        made = compress.compress(
            args.recipe,
            trust=args.trust_source,
            original=args.original is not None,
            cache=_flags.cache(args),
            progress=progress,
            on_line=None if silent else _told,
        )
    write_bytes(args.output, made.onnx)
    if args.original:
        write_bytes(args.original, made.original)
    if args.json:
        say_json({"output": str(args.output), "training": made.training, **made.log})
    elif not args.quiet:
        _report(args.output, made)
    return 0


def _told(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _report(output: Path, made: Any) -> None:
    before, after = made.log["before"], made.log["after"]
    say(f"{output}: {kib(len(made.onnx))}, {made.training.epochs} epochs")
    for name in ("parameters", "macs", "accuracy", "error"):
        if name in after:
            ratio = f"  {after[name] / before[name]:.3f} x" if before[name] else ""
            say(f"  {name:<10} {before[name]:,} to {after[name]:,}{ratio}")
    say(f"  next: edgekit build {output} --baseline ORIGINAL ...")
