"""`edgekit build`: from a trained model to one signed, encrypted bundle for several kinds of device."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import os
import sys
from pathlib import Path
from typing import Any

from edgekit import bundle, codec, profile
from edgekit.backends import Recipe
from edgekit.build import dryrun, gates, metrics, report
from edgekit.build.cache import Cache, default_folder
from edgekit.build.pipeline import Report, build
from edgekit.build.reporting import render
from edgekit.build.request import Request
from edgekit.bundle.model import ReleaseInfo
from edgekit.cli import _flags
from edgekit.crypto.keyring import KeyRing
from edgekit.crypto.keys import RecipientKey, SigningKey
from edgekit.errors import InputError
from edgekit.files import write_bytes

EXAMPLES = {"--max": "peak_rss_mib=64", "--min": "speedup=1.5"}


def register(subparsers: Any) -> None:
    """Add the sub-command."""
    parser = subparsers.add_parser(
        "build",
        help="make a bundle from a trained model",
        description="Try engines and precisions for each profile, measure every candidate through the engine "
        "that will serve it, keep the best that passes the gates, sign and encrypt.",
    )
    parser.add_argument("model", type=Path, help="model file or folder, of any format in docs/sources.md")
    parser.add_argument(
        "--settings",
        type=Path,
        metavar="FILE",
        help="flags from a file (default: edgekit.toml, without any flag)",
    )
    _flags.add_source(parser)
    parser.add_argument(
        "--baseline",
        type=Path,
        metavar="MODEL",
        help="fp32 model that accuracy and speed are held against (default: the model itself)",
    )
    parser.add_argument(
        "--profile", action="append", required=True, metavar="NAME", help="device profile; repeat for more"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="bundle to write (.edgekit)"
    )
    what = parser.add_argument_group(
        "data",
        "DATA is an .npz, class folders (also in a tar or ZIP) or a CSV, and may end in [START:STOP]",
    )
    what.add_argument(
        "--calibration", required=True, metavar="DATA", help="rows that int8 ranges are learnt from"
    )
    what.add_argument(
        "--evaluate", required=True, metavar="DATA", help="rows with labels that accuracy is measured on"
    )
    _flags.add_naming(what)
    _flags.add_preprocessing(what)
    what.add_argument(
        "--label-names",
        default="",
        metavar="A,B,..|FILE",
        help="class names, comma-separated or one per line in a file",
    )
    what.add_argument(
        "--metric",
        default="accuracy",
        metavar="NAME",
        help=f"what is measured: {', '.join(metrics.names())}, or FILE.py:FUNCTION (default: accuracy)",
    )
    what.add_argument(
        "--decode",
        default="",
        metavar="FILE.py:FUNCTION",
        help="turns outputs into what the metric reads, e.g. boxes; runs in a process of its own",
    )
    what.add_argument(
        "--pipeline",
        type=Path,
        metavar="FILE.toml",
        help="steps before and after the engine, for clients that send a picture, a recording or a text "
        "(docs/pipelines.md)",
    )
    how = parser.add_argument_group("search")
    how.add_argument(
        "--precision",
        action="append",
        default=[],
        choices=profile.PRECISIONS,
        help="try only this one; repeat for more (default: the profile's)",
    )
    how.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="NAME",
        help="try only this one; repeat for more (default: the profile's)",
    )
    how.add_argument(
        "--recipe",
        default="",
        metavar="JSON",
        help="build exactly this candidate and try nothing else, as a report's commands do",
    )
    how.add_argument(
        "--objective",
        default="latency",
        metavar="FIGURE",
        help="what the best candidate has least of: latency (default), size, memory, energy, or a figure "
        "such as latency_p95_ms",
    )
    for flag, word in (("--max", "most"), ("--min", "least")):
        how.add_argument(
            flag,
            action="append",
            default=[],
            metavar="FIGURE=LIMIT",
            help=f"at {word} this, e.g. {EXAMPLES[flag]}; repeat for more",
        )
    how.add_argument(
        "--accuracy-ratio",
        type=float,
        metavar="SHARE",
        help="accuracy to keep, as a share of fp32's (default: the profile's, usually 0.99)",
    )
    how.add_argument(
        "--effort",
        choices=("quick", "normal", "thorough"),
        default="normal",
        help="quick: one recipe of each engine and precision; normal: more, then mixed precision, where "
        "accuracy is lost; thorough: all (default: normal)",
    )
    how.add_argument(
        "--time-budget",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="begin no new candidate after this (default: no limit)",
    )
    how.add_argument(
        "--emulate",
        action="store_true",
        help="take answers for foreign profiles from an emulated CPU of theirs",
    )
    how.add_argument(
        "--try-known-bad",
        action="store_true",
        help="try engine versions that are known to be wrong on the target too; the gates decide",
    )
    how.add_argument(
        "--emulate-rows",
        type=int,
        default=200,
        metavar="N",
        help="rows that go through the emulated CPU, spread over all (default: 200)",
    )
    how.add_argument(
        "--executor",
        default="",
        metavar="WHERE",
        help="build candidates on a Dask cluster: dask, or dask:ADDRESS (default: here)",
    )
    how.add_argument(
        "--no-robustness",
        action="store_true",
        help="do not ask what ships again on disturbed rows (noise, light or loudness, position)",
    )
    how.add_argument(
        "--no-gate",
        action="store_true",
        help="ship the best candidate even if gates fail; the certificate says so",
    )
    how.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="candidates built side by side"
    )
    how.add_argument("--dry-run", action="store_true", help="show what would be tried, write nothing")
    release = parser.add_argument_group("release")
    release.add_argument("--name", default="", help="release name (default: the bundle file's name)")
    release.add_argument("--version", default="0.1.0", help="release version (default: 0.1.0)")
    release.add_argument(
        "--key", type=Path, metavar="PEM", help="signing key (default: the key ring's builder.pem)"
    )
    release.add_argument(
        "--recipient",
        type=Path,
        action="append",
        default=[],
        metavar="PUB",
        help="who may decrypt; repeat for more (default: the key ring's recipient.pub)",
    )
    release.add_argument("--no-encrypt", action="store_true", help="leave model and samples readable")
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="write the whole report as one HTML page"
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="measure each layer's quantization error of what ships (implied by --report)",
    )
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="cache folder (default: $EDGEKIT_CACHE or ~/.cache/edgekit)"
    )
    parser.add_argument("--no-cache", action="store_true", help="build and measure everything anew")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Build, then write the bundle. Everything is checked before the first candidate is made."""
    request = _request(args)
    cache = Cache(None if args.no_cache else args.cache or default_folder())
    if args.dry_run:
        return _dry_run(request, cache, as_json=args.json)
    for path in (args.output, *([args.report] if args.report else [])):
        _check_output(path)
    signer, recipients = _keys(args)
    info = ReleaseInfo(args.name or args.output.stem, args.version, _created())
    for what, text in (("--name", info.name), ("--version", info.version)):
        if not 0 < len(text) <= 200 or not text.isprintable():
            raise InputError(f"{what} {text[:80]!r}: not a name", "use 1 to 200 printable characters")
    with _flags.progress(silent=args.quiet or args.json) as progress:
        made = build(request, cache, progress)
        digest = bundle.write(
            args.output,
            info,
            made.variants,
            signer=signer,
            recipients=recipients,
            encrypt=not args.no_encrypt,
        )
    _tell(args, made, digest)
    return 0


def _request(args: argparse.Namespace) -> Request:
    profiles = tuple(_profile(name, args.accuracy_ratio) for name in args.profile)
    names = [one.name for one in profiles]
    if len(set(names)) != len(names):
        raise InputError(f"a profile is named twice: {', '.join(names)}", "name each once")
    if args.jobs < 1:
        raise InputError(f"--jobs {args.jobs}: at least 1")
    if args.emulate_rows < 1:
        raise InputError(f"--emulate-rows {args.emulate_rows}: at least 1")
    if not 0 <= args.time_budget < float("inf"):
        raise InputError(f"--time-budget {args.time_budget:g}: not a number of seconds")
    return Request(
        model=args.model,
        profiles=profiles,
        calibration=args.calibration,
        evaluate=args.evaluate,
        source=_flags.source(args),
        baseline=args.baseline,
        naming=_flags.naming(args),
        affine=tuple(args.affine),
        image=args.image,
        label_names=_label_names(args.label_names),
        metric=args.metric,
        decode=args.decode,
        pipeline=args.pipeline,
        precisions=tuple(args.precision),
        engines=tuple(args.engine),
        recipe=_recipe(args.recipe) if args.recipe else None,
        objective=args.objective,
        constraints=(
            *(gates.constraint(text, is_maximum=True) for text in args.max),
            *(gates.constraint(text, is_maximum=False) for text in args.min),
        ),
        effort="quick" if args.recipe else args.effort,
        time_budget_s=args.time_budget,
        emulate=args.emulate,
        robustness=not args.no_robustness,
        emulate_rows=args.emulate_rows,
        layers=args.layers or args.report is not None,
        try_known_bad=args.try_known_bad,
        gate=not args.no_gate,
        jobs=args.jobs,
        executor=args.executor,
    )


def _recipe(text: str) -> Recipe:
    found = codec.from_json(Recipe, text.encode(), what="--recipe", error=InputError)
    if not found.engine or not found.precision:
        raise InputError("--recipe: no engine or precision", "copy it from a report")
    return found


def _profile(name: str, accuracy_ratio: float | None) -> profile.Profile:
    chosen = profile.get(name)
    if accuracy_ratio is None:
        return chosen
    if not 0 < accuracy_ratio <= 1:
        raise InputError(f"--accuracy-ratio {accuracy_ratio:g}: not a share", "above 0, at most 1")
    budget = dataclasses.replace(chosen.budget, accuracy_ratio=accuracy_ratio)
    return dataclasses.replace(chosen, budget=budget)


def _label_names(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    if "," in text:
        return tuple(name.strip() for name in text.split(","))
    try:
        return tuple(Path(text).read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(
            f"--label-names {text!r}: neither a list with commas nor a text file: {exc}"
        ) from None


def _check_output(path: Path) -> None:
    """Minutes of work must not end in a bad path."""
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name a file, e.g. model.edgekit")
    if not path.parent.is_dir():
        raise InputError(f"no folder {path.parent}", "create it first")


def _keys(args: argparse.Namespace) -> tuple[SigningKey, list[RecipientKey]]:
    ring = KeyRing.at()
    if (args.key is None or not (args.recipient or args.no_encrypt)) and ring.ensure():
        sys.stderr.write(f"made signing and recipient keys in {ring.folder}; back them up\n")
    signer = SigningKey.load(args.key) if args.key else ring.signing_key()
    recipients = [RecipientKey.load(path) for path in args.recipient]
    if not recipients and not args.no_encrypt:
        recipients = [ring.recipient_key()]
    return signer, recipients


def _created() -> str:
    """From SOURCE_DATE_EPOCH; without it empty, so that equal inputs give equal bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not epoch.isdecimal():
        return ""
    try:
        return datetime.datetime.fromtimestamp(int(epoch), datetime.UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        raise InputError(f"SOURCE_DATE_EPOCH={epoch} is no time", "seconds since 1970") from None


def _dry_run(request: Request, cache: Cache, *, as_json: bool) -> int:
    lines = dryrun.plan(request, cache)
    if as_json:
        sys.stdout.buffer.write(codec.to_json(lines) + b"\n")
    else:
        sys.stdout.write(dryrun.text(lines))
        sys.stderr.write("".join(f"{note}\n" for note in lines.notes))
    return 0


def _tell(args: argparse.Namespace, made: Report, digest: str) -> None:
    size = args.output.stat().st_size
    answer = {**report.plain(made), "bundle": str(args.output), "digest": digest, "size_bytes": size}
    if args.report:
        write_bytes(args.report, render(answer).encode())
    if args.json:
        sys.stdout.buffer.write(codec.to_json(answer) + b"\n")
        return
    if args.quiet:
        return
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(report.rich_table(made))
    else:
        sys.stdout.write(report.text_table(made))
    for line in (*made.notes, *(f"warning: {text}" for text in _all_warnings(made))):
        sys.stdout.write(line + "\n")
    encrypted = "signed" if args.no_encrypt else "signed and encrypted"
    sys.stdout.write(
        f"{args.output}: {len(made.variants)} variants, {size / 1000:.1f} kB, {encrypted}, {digest}\n"
        f"built in {made.seconds:.1f} s ({made.cache_hits} results from the cache)\n"
    )


def _all_warnings(made: Report) -> list[str]:
    found = [f"{v.config.variant}: {text}" for v in made.variants for text in v.certificate.warnings]
    skipped = [v.config.variant for v in made.variants if v.certificate.gate_skipped]
    return [*found, *(f"{name}: ships although it failed a gate (--no-gate)" for name in skipped)]
