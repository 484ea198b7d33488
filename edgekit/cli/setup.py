"""`edgekit setup`: make the tool environments and emulated systems now, so that builds work offline later."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from typing import Any

from edgekit import codec, host, profile, toolenv
from edgekit.build.progress import Lines, Live, Silent


def register(subparsers: Any) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "setup",
        help="make tool environments, for offline builds",
        description="Converters whose dependencies conflict live in environments of their own. edgekit makes "
        "each on first use; this makes them now, so that a machine without a network builds every format.",
    )
    parser.add_argument(
        "environment", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(toolenv.names())}"
    )
    parser.add_argument(
        "--emulate",
        action="append",
        default=[],
        metavar="PROFILE",
        help="make what `edgekit build --emulate` needs for this profile instead; repeat for more",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")


def run(args: argparse.Namespace) -> int:
    """Make what is not there yet. Raises EngineMissing or SystemFault for what cannot be made."""
    from edgekit.build import emulate  # imports the builder

    silent = args.quiet or args.json
    live = Live() if sys.stderr.isatty() and not silent else None
    with live or nullcontext():
        progress = live or (Silent() if silent else Lines(sys.stderr))
        every = [] if args.emulate else toolenv.names()
        wanted = dict.fromkeys(args.environment or every)
        places = {name: str(toolenv.ensure(name, progress)) for name in wanted}
        for name in args.emulate:
            problems = emulate.setup(profile.get(name), host.read(), progress)
            places[name] = "; ".join(problems) or "ready to be emulated"
    if args.json:
        sys.stdout.buffer.write(codec.to_json(places) + b"\n")
    elif not args.quiet:
        sys.stdout.write("".join(f"{name}: {place}\n" for name, place in places.items()))
    return 0
