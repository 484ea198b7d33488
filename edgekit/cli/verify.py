"""`edgekit verify`: check a bundle to the last byte."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgekit import bundle
from edgekit.cli import _trust
from edgekit.cli._output import say, say_json
from edgekit.crypto.keys import SealingKey


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("verify", help="check a bundle's signature, digests and ciphertexts")
    _trust.add_options(parser)
    parser.add_argument(
        "--key", type=Path, metavar="KEY", help="a recipient's private key: decrypt and check every file too"
    )
    parser.add_argument(
        "--import-to",
        type=Path,
        metavar="FILE",
        help="BUNDLE is an OCI archive or layout folder from a registry: write it as a bundle file",
    )


def run(args: argparse.Namespace) -> int:
    if args.import_to:
        opened = bundle.from_oci(args.bundle, args.import_to, _trust.trusted(args))
    else:
        opened = _trust.opened(args)
    files = _decrypt(opened, args.key) if args.key or not opened.encrypted else 0
    if args.json:
        say_json(
            {
                "verified": True,
                "digest": opened.digest,
                "release": opened.info,
                "signed_by": opened.key_id,
                "variants": [entry.config.variant for entry in opened.variants],
                "blobs": len(opened.provenance.blobs),
                "encrypted": opened.encrypted,
                "files_checked": files,
            }
        )
        return 0
    say(f"{args.import_to or args.bundle}: verified")
    say(f"  {opened.info.name} {opened.info.version}, {opened.digest}")
    say(f"  signed by {opened.key_id[:16]}, {len(opened.variants)} variants, {_blobs(opened)}")
    if files:
        say(f"  {files} files {'decrypt to' if opened.encrypted else 'are'} what was signed")
    else:
        say("  the files were not decrypted; give a recipient's private key with --key to check them too")
    return 0


def _blobs(opened: bundle.Bundle) -> str:
    return f"{len(opened.provenance.blobs)} blobs match their signed digests"


def _decrypt(opened: bundle.Bundle, key: Path | None) -> int:
    """Read every file of every variant; how many. Raises DecryptError, DigestError."""
    content_key = opened.content_key(SealingKey.load(key)) if key and opened.encrypted else None
    return sum(
        len(opened.read(entry, content_key)) + len(opened.read_golden(entry, content_key))
        for entry in opened.variants
    )
