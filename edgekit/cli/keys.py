"""`edgekit keys`: the builder's and the recipient's key pairs."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgekit.cli._output import say, say_json, table
from edgekit.crypto.keyring import KeyRing, default_folder
from edgekit.crypto.keys import RecipientKey, VerifyKey
from edgekit.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("keys", help="make and show signing and sealing keys")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    generate = actions.add_parser("generate", help="make a builder and a recipient key pair")
    generate.add_argument(
        "--kem",
        choices=("X25519", "MLKEM768_X25519"),
        default="X25519",
        help="how content keys are sealed to the recipient; MLKEM768_X25519 also resists quantum computers",
    )
    show = actions.add_parser("show", help="the public keys and their ids")
    for action in (generate, show):
        action.add_argument(
            "--dir",
            type=Path,
            metavar="DIR",
            help="key folder (default: $EDGEKIT_KEYS or ~/.config/edgekit/keys)",
        )
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    ring = KeyRing.at(args.dir or default_folder())
    if args.action == "generate":
        ring.generate(args.kem)
    if not ring.present():
        raise InputError(f"no keys in {ring.folder}", "`edgekit keys generate` makes them")
    public: list[tuple[str, Path, VerifyKey | RecipientKey]] = [
        ("builder", ring.builder_public, ring.verify_key()),
        ("recipient", ring.recipient_public, ring.recipient_key()),
    ]
    if args.json:
        say_json(
            {
                "folder": str(ring.folder),
                "keys": [
                    {"name": name, "key_id": key.key_id, "path": str(path), "pem": key.to_pem().decode()}
                    for name, path, key in public
                ],
            }
        )
        return 0
    kinds = {"builder": "signs bundles; give builder.pub to whoever must trust them"}
    rows = [(name, key.key_id[:16], str(path), kinds.get(name, _kem(key))) for name, path, key in public]
    say(table(("KEY", "ID", "PUBLIC KEY", "PURPOSE"), rows))
    return 0


def _kem(key: VerifyKey | RecipientKey) -> str:
    return f"opens bundles ({key.kem})" if isinstance(key, RecipientKey) else ""
