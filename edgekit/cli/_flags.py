"""Flags and small services that several building commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.build.data import Naming
    from edgekit.build.progress import Progress


def add_naming(parser: argparse._ActionsContainer) -> None:
    """`--labels` and `--input`: which arrays of the data are what."""
    parser.add_argument(
        "--labels", default="labels", metavar="ARRAY", help="array with the labels (default: labels)"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="INPUT=ARRAY",
        help="array of a model input, when the names differ",
    )


def naming(args: argparse.Namespace) -> Naming:
    """What `add_naming`'s flags say. Raises InputError."""
    from edgekit.build.data import Naming

    return Naming(dict(pair(text) for text in args.input), args.labels)


def pair(text: str) -> tuple[str, str]:
    """INPUT=ARRAY. A tensor name may hold ":" but as little "=" as an array name."""
    name, equals, array = text.rpartition("=")
    if not equals or not name or not array:
        raise InputError(f"--input {text!r}: not INPUT=ARRAY")
    return name, array


@contextmanager
def progress(*, silent: bool) -> Iterator[Progress]:
    """Spinners on a terminal, lines elsewhere, nothing for --json and --quiet. Always on stderr."""
    from edgekit.build.progress import Lines, Live, Silent

    if silent:
        yield Silent()
    elif sys.stderr.isatty():
        with Live() as live:
            yield live
    else:
        yield Lines(sys.stderr)
