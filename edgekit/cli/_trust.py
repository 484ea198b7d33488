"""Which keys a command trusts, and the bundle it opens with them."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgekit import bundle
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import VerifyKey
from edgekit.errors import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an .edgekit file")
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """`--trust` alone."""
    parser.add_argument(
        "--trust",
        type=Path,
        action="append",
        metavar="PUBKEY",
        help="public key of a builder to trust; may be repeated (default: builder.pub of `keys show`)",
    )


def trusted(args: argparse.Namespace) -> list[VerifyKey]:
    """The keys of --trust, else this user's own builder key. Raises InputError."""
    if args.trust:
        return [VerifyKey.load(path) for path in args.trust]
    own = KeyRing.at().builder_public
    if not own.exists():
        raise InputError("no key to trust", "give the builder's public key with --trust builder.pub")
    return [VerifyKey.load(own)]


def opened(args: argparse.Namespace) -> bundle.Bundle:
    return bundle.open(args.bundle, trusted(args))
