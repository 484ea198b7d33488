"""`edgekit compare`: two bundles, or two build reports, side by side."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import bundle
from edgekit.cli import _trust
from edgekit.cli._output import kib, say, say_json, table
from edgekit.errors import InputError

if TYPE_CHECKING:
    from edgekit.build.compare import Comparison, Item, Pair, Side

_SHOWN = {
    "latency_p50_ms": ("latency p50", "ms"),
    "latency_p95_ms": ("latency p95", "ms"),
    "peak_rss_mib": ("peak memory", "MiB"),
    "size_bytes": ("size", ""),
}


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="two bundles or two build reports side by side",
        description="Variants are matched by profile. A difference in accuracy counts when the two 95 % "
        "confidence intervals do not overlap.",
    )
    for name in ("first", "second"):
        parser.add_argument(name, type=Path, metavar=name.upper(), help="an .edgekit file or a report.json")
    _trust.add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from edgekit.build.compare import compare

    found = compare(_side(args.first, args), _side(args.second, args))
    if args.json:
        say_json(found)
    else:
        say("\n".join(_lines(found)))
    return 0


def _side(path: Path, args: argparse.Namespace) -> Side:
    """A bundle, verified, or a report; told apart by the first byte."""
    from edgekit.build.compare import of_bundle, of_report
    from edgekit.cli.report import read

    try:
        with path.open("rb") as file:
            first = file.read(64).lstrip()[:1]
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    if first == b"{":
        return of_report(str(path), read(path))
    return of_bundle(str(path), bundle.open(path, _trust.trusted(args)))


def _lines(found: Comparison) -> Iterator[str]:
    for side in (found.first, found.second):
        signed = f", signed by {side.signed_by[:16]}" if side.signed_by else ""
        yield " ".join(filter(None, (f"{side.name}:", side.release, side.digest))) + signed
    if not found.same_signer:
        yield "signed by different keys"
    for pair in found.pairs:
        yield ""
        yield from _pair(pair)


def _pair(pair: Pair) -> Iterator[str]:
    if pair.first is None or pair.second is None:
        side, item = ("second", pair.second) if pair.second else ("first", pair.first)
        yield f"{pair.profile}: only in the {side}: {item.variant if item else ''}"
        return
    rows = list(_rows(pair, pair.first, pair.second))
    yield table((pair.profile, "FIRST", "SECOND", "CHANGE"), rows)
    for caveat in pair.caveats:
        yield f"warning: {pair.profile}: {caveat}"


def _rows(pair: Pair, a: Item, b: Item) -> Iterator[tuple[str, str, str, str]]:
    for name, x, y in (
        ("variant", a.variant, b.variant),
        ("engine", a.engine, b.engine),
        ("precision", a.precision, b.precision),
    ):
        yield f"  {name}", x, y, "" if x == y else "changed"
    verdict = "beyond the intervals" if pair.beyond_intervals else "within the intervals"
    if pair.accuracy_change == 0 and a.accuracy == b.accuracy:
        verdict = "equal"
    yield f"  {a.metric}", _interval(a), _interval(b), f"{pair.accuracy_change:+.4f}, {verdict}"
    for figure in pair.figures:
        name, unit = _SHOWN[figure.name]
        x, y = (
            kib(round(value)) if figure.name == "size_bytes" else f"{value:.4g} {unit}"
            for value in (figure.first, figure.second)
        )
        yield f"  {name}", x, y, f"{figure.ratio:.2f} x" if figure.ratio else ""
    yield "  failed gates", ", ".join(a.failed_gates) or "none", ", ".join(b.failed_gates) or "none", ""
    if a.files is not None and b.files is not None:
        yield "  files", str(len(a.files)), str(len(b.files)), _files(pair)


def _files(pair: Pair) -> str:
    if pair.same_files:
        return "the same bytes"
    parts = (("changed", pair.files_changed), ("added", pair.files_added), ("removed", pair.files_removed))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in parts if names)


def _interval(item: Item) -> str:
    return f"{item.accuracy.value:.4f} [{item.accuracy.low:.3f}, {item.accuracy.high:.3f}]"
