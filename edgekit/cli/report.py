"""`edgekit report`: the HTML page of a build, from its JSON report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgekit import codec, files
from edgekit.cli._output import say
from edgekit.errors import InputError

MAX_REPORT_BYTES = 256 * 1024 * 1024


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="make an HTML page of a build's JSON report",
        description="One file with plots, reasons, certificates and commands; it needs no network to read.",
    )
    parser.add_argument(
        "report", type=Path, metavar="REPORT.json", help="what `edgekit build --json` printed"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="page to write (default: REPORT.html)"
    )
    parser.add_argument(
        "--overlay",
        type=Path,
        metavar="FILE.json",
        help="write the error of each layer as an overlay for Model Explorer instead of a page",
    )
    parser.add_argument(
        "--candidate",
        default="",
        metavar="NAME",
        help="whose layers (default: the first that ships and has figures by layer)",
    )


def run(args: argparse.Namespace) -> int:
    from edgekit.build.reporting import parse, render
    from edgekit.build.reporting.overlay import overlay, pick

    if args.overlay:
        chosen = pick(parse(read(args.report)), args.candidate)
        files.write_bytes(args.overlay, codec.to_json(overlay(chosen.layers)) + b"\n")
        say(f"{args.overlay}: {len(chosen.layers)} layers of {chosen.name}")
        return 0
    target = args.output or args.report.with_suffix(".html")
    page = render(read(args.report))
    files.write_bytes(target, page.encode("utf-8"))
    say(f"{target}: {len(page) / 1000:.1f} kB")
    return 0


def read(path: Path) -> dict[str, Any]:
    """A report's JSON. Raises InputError for a file that is none."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    plain = codec.parse_json(data, what=str(path), max_bytes=MAX_REPORT_BYTES, error=InputError)
    if not isinstance(plain, dict):
        raise InputError(f"{path}: not a build report", "make one with `edgekit build ... --json`")
    return plain
