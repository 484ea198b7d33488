"""Flags and small services that several building commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.build.cache import Cache
    from edgekit.build.data import Naming
    from edgekit.build.progress import Progress
    from edgekit.build.sources import SourceOptions


def add_naming(parser: argparse._ActionsContainer) -> None:
    """`--labels` and `--input`: which arrays of the data are what."""
    parser.add_argument(
        "--labels",
        default="labels",
        metavar="ARRAY",
        help="array or column with the labels (default: labels)",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="INPUT=ARRAY",
        help="array or column of a model input, when the names differ",
    )


def add_preprocessing(parser: argparse._ActionsContainer) -> None:
    """`--affine` and `--image`: how what is stored becomes what the model reads."""
    parser.add_argument(
        "--affine",
        action="append",
        default=[],
        metavar="[INPUT:]SCALE,OFFSET",
        help="preprocessing real = (stored - OFFSET) * SCALE; travels with the bundle",
    )
    parser.add_argument(
        "--image",
        default="",
        metavar="WORDS",
        help='how pictures become pixels, e.g. "bgr letterbox", "rgb crop=0.875 imagenet" (docs/data.md; '
        "default: rgb stretch, scaled to 0..1)",
    )


def add_source(parser: argparse._ActionsContainer) -> None:
    """`--shape` and `--trust-source`: what a model file itself cannot say."""
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="INPUT=1,3,224,224",
        help="full shape of an input that the model leaves open; repeat for more",
    )
    parser.add_argument(
        "--trust-source",
        action="store_true",
        help="convert formats that run code while they are loaded (pickle, Keras Lambda); still isolated",
    )


def source(args: argparse.Namespace) -> SourceOptions:
    """What `add_source`'s flags say. Raises ModelError."""
    from edgekit.build.sources import SourceOptions, parse_shape

    return SourceOptions(dict(parse_shape(text) for text in args.shape), args.trust_source)


def add_cache(parser: argparse._ActionsContainer) -> None:
    """`--cache` and `--no-cache`."""
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="cache folder (default: $EDGEKIT_CACHE or ~/.cache/edgekit)"
    )
    parser.add_argument("--no-cache", action="store_true", help="make and measure everything anew")


def cache(args: argparse.Namespace) -> Cache:
    """What `add_cache`'s flags say."""
    from edgekit.build.cache import Cache, default_folder

    return Cache(None if args.no_cache else args.cache or default_folder())


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
