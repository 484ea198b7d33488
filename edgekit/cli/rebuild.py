"""`edgekit rebuild`: make a bundle's variants again, and prove that the bytes are the same."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.cli import _flags, _trust
from edgekit.cli._output import say, say_json
from edgekit.errors import InputError
from edgekit.files import write_bytes

if TYPE_CHECKING:
    from edgekit.build.rebuild import Rebuilt

DIFFERENT = 2


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "rebuild",
        help="make a bundle's variants again from the same inputs and compare digests",
        description="Checks that model, data and tool versions are those that the bundle records, builds "
        "every variant anew without a cache, and compares each file's digest with the signed one. "
        "Exit code 2 when anything differs.",
    )
    _trust.add_options(parser)
    parser.add_argument("--verify", action="store_true", help="compare digests (needs no key)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write the files of each variant to DIR/VARIANT"
    )
    parser.add_argument("--model", type=Path, required=True, help="the source model")
    parser.add_argument("--calibration", required=True, metavar="DATA", help="as given to `edgekit build`")
    parser.add_argument(
        "--evaluate",
        default="",
        metavar="DATA",
        help="check that these are the rows of the certificates, too",
    )
    _flags.add_naming(parser)


def run(args: argparse.Namespace) -> int:
    if not (args.verify or args.output):
        raise InputError("nothing to do", "give --verify, or -o DIR to get the files, or both")
    from edgekit.build.rebuild import Inputs, rebuild

    opened = _trust.opened(args)
    inputs = Inputs(args.model, args.calibration, args.evaluate, _flags.naming(args))
    with _flags.progress(silent=args.json) as progress:
        found = rebuild(opened, inputs, progress)
    if args.output:
        _write(args.output, found)
    same = all(one.same for one in found)
    if args.json:
        say_json({"same": same, "digest": opened.digest, "variants": [_plain(one) for one in found]})
    else:
        for one in found:
            _tell(one)
        say(f"{args.bundle}: {'rebuilt to the same bytes' if same else 'NOT the same bytes'}")
    return 0 if same or not args.verify else DIFFERENT


def _plain(one: Rebuilt) -> dict[str, Any]:
    return {"variant": one.variant, "same": one.same, "files": list(one.checks)}


def _tell(one: Rebuilt) -> None:
    for check in one.checks:
        if check.same:
            say(f"same     {one.variant}  {check.name}  sha256:{check.found}")
        else:
            say(f"DIFFERS  {one.variant}  {check.name}")
            say(f"         signed  {check.wanted or 'no such file'}")
            say(f"         rebuilt {check.found or 'no such file'}")


def _write(folder: Path, found: list[Rebuilt]) -> None:
    """Names come from a verified bundle or from our own backends; neither may lead out of the folder."""
    for one in found:
        for name, content in one.files.items():
            target = folder / one.variant / name
            if not target.resolve().is_relative_to(folder.resolve()):
                raise InputError(f"file name {name!r} leads out of {folder}")
            target.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(target, content)
