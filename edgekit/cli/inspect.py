"""`edgekit inspect`: what is in a bundle. The signature is verified before anything is shown."""

from __future__ import annotations

import argparse
from typing import Any

from edgekit import bundle
from edgekit.cli import _certificate, _trust
from edgekit.cli._output import kib, say, say_json, table
from edgekit.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("inspect", help="show what is in a bundle")
    _trust.add_options(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--certificate", metavar="VARIANT", help='the certificate of one variant, or of "all"')
    what.add_argument("--sbom", action="store_true", help="the CycloneDX document")


def run(args: argparse.Namespace) -> int:
    opened = _trust.opened(args)
    if args.sbom:
        say_json(opened.sbom)
    elif args.certificate:
        entries = _entries(opened, args.certificate)
        if args.json:
            say_json([entry.certificate for entry in entries])
        else:
            say("\n\n".join(_certificate.text(entry) for entry in entries))
    elif args.json:
        say_json(summary(opened))
    else:
        _show(opened)
    return 0


def summary(opened: bundle.Bundle) -> dict[str, Any]:
    """Everything that can be said without a recipient's key."""
    return {
        "bundle": {"digest": opened.digest, "size_bytes": opened.size, "encrypted": opened.encrypted},
        "release": opened.info,
        "signed_by": opened.key_id,
        "recipients": opened.recipients,
        "builder": opened.provenance.builder,
        "variants": [
            {
                "digest": entry.digest,
                "config": entry.config,
                "certificate": entry.certificate,
                "golden": entry.golden,
                "files": entry.blobs,
                "golden_files": entry.golden_blobs,
                "warnings": _certificate.warnings(entry.certificate),
            }
            for entry in opened.variants
        ],
    }


def _entries(opened: bundle.Bundle, name: str) -> list[bundle.VariantEntry]:
    entries = [entry for entry in opened.variants if name in ("all", entry.config.variant)]
    if not entries:
        known = ", ".join(entry.config.variant for entry in opened.variants)
        raise InputError(f"no variant is called {name!r}", f"this bundle has {known}")
    return entries


def _show(opened: bundle.Bundle) -> None:
    info = opened.info
    sealed = f"encrypted, for {', '.join(key[:16] for key in opened.recipients)}"
    say(f"{info.name} {info.version}" + (f", created {info.created}" if info.created else ""))
    say(f"  digest     {opened.digest}")
    say(f"  signed by  {opened.key_id[:16]} (trusted)")
    say(f"  contents   {sealed if opened.encrypted else 'not encrypted'}, {kib(opened.size)} in all")
    say(f"  built by   {opened.provenance.builder.name} {opened.provenance.builder.version}")
    for key, value in sorted(info.annotations.items()):
        say(f"  {key:<10} {value}")
    say()
    header = ("VARIANT", "PROFILE", "ENGINE", "PRECISION", "FILES", "ACCURACY", "P95 MS", "GATES", "WARNINGS")
    say(table(header, [_row(entry) for entry in opened.variants]))
    say()
    for entry in opened.variants:
        if pipeline := entry.config.pipeline:
            kinds = ", ".join(step.kind for step in (*pipeline.before, *pipeline.after))
            say(f"pipeline: {entry.config.variant}: {pipeline.content_types[0]} through {kinds}")
    for entry in opened.variants:
        for warning in _certificate.warnings(entry.certificate):
            say(f"warning: {entry.config.variant}: {warning}")
    say("`edgekit inspect BUNDLE --certificate VARIANT` explains the figures.")


def _row(entry: bundle.VariantEntry) -> tuple[str, ...]:
    config, certificate = entry.config, entry.certificate
    failed = [gate.gate for gate in certificate.gates if not gate.passed]
    return (
        config.variant,
        config.profile,
        f"{config.engine.name} {certificate.engine_version}",
        config.precision,
        kib(sum(blob.plaintext_size_bytes for blob in entry.blobs)),
        f"{certificate.accuracy.value:.4f}",
        f"{certificate.latency.p95_ms:.3g}",
        f"FAILED: {' '.join(failed)}" if failed else f"{len(certificate.gates)} passed",
        str(len(_certificate.warnings(certificate))),
    )
