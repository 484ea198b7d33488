"""`edgekit profile`: list, show, detect and describe device profiles."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgekit import files, host, profile
from edgekit.cli._formats import json_schema, to_toml
from edgekit.cli._output import say, say_json, table
from edgekit.errors import InputError


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("profile", help="list, show and detect device profiles")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="all profiles that ship with edgekit")
    show = actions.add_parser("show", help="one profile, with its comments")
    show.add_argument("name", metavar="NAME", help="name, alias, or path of a .toml file")
    detect = actions.add_parser("detect", help="the profile that describes this machine")
    detect.add_argument("--output", type=Path, metavar="FILE", help="write a profile of exactly this machine")
    detect.add_argument(
        "--root", type=Path, default=Path("/"), help="folder that holds proc and sys (default: /)"
    )
    detect.add_argument("--machine", help="architecture, when the folder is another machine's")
    schema = actions.add_parser("schema", help="JSON Schema of a profile file, for editors")
    for action in (listing, show, detect, schema):
        action.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    {"list": _list, "show": _show, "detect": _detect, "schema": _schema}[args.action](args)
    return 0


def schema_text() -> str:
    """The content of device-profiles/schema.json."""
    return json.dumps(json_schema(profile.Profile, "edgekit device profile"), indent=2) + "\n"


def _list(args: argparse.Namespace) -> None:
    profiles = list(profile.all_profiles().values())
    if args.json:
        say_json(profiles)
        return
    header = ("NAME", "ALIASES", "ARCHITECTURE", "CPU FEATURES", "CORES", "RAM MiB", "ENGINES")
    say(table(header, [_row(item) for item in profiles]))


def _row(item: profile.Profile) -> tuple[str, ...]:
    hardware = item.hardware
    engines = ", ".join(f"{target.runtime} {target.precisions[0]}" for target in item.target)
    isa, aliases = " ".join(hardware.isa) or "-", " ".join(item.aliases) or "-"
    sizes = str(hardware.cores), str(hardware.ram_mib)
    return item.name, aliases, hardware.architecture, isa, *sizes, engines


def _show(args: argparse.Namespace) -> None:
    item = profile.get(args.name)
    if args.json:
        say_json(item)
    else:
        say(profile.path_of(args.name).read_text(encoding="utf-8").removesuffix("\n"))


def _detect(args: argparse.Namespace) -> None:
    if not (args.root / "proc").is_dir():
        raise InputError(
            f"{args.root} has no folder proc", "--root is for a copy of another machine's / folder"
        )
    here = host.read(args.root, args.machine)
    match = profile.detect(here)
    exact = profile.of_host(here, match)
    if args.output:
        head = f"# Written by `edgekit profile detect`; engines and budgets are those of {match.name}.\n"
        files.write_bytes(args.output, (head + to_toml(exact)).encode())
    if args.json:
        say_json({"matches": match.name, "host": here, "profile": exact})
        return
    facts = {
        "profile": f"{match.name}  ({match.description})",
        "board": here.board or "unknown",
        "cpu": f"{here.cpu or 'unknown'}, {here.cores} cores, {here.architecture}",
        "features": " ".join(here.isa) or "none known",
        "memory": f"{here.ram_mib} MiB",
        "storage": f"{here.storage_mib} MiB",
    }
    if host.saturates(here):
        facts["note"] = "no VNNI: int8 needs 7-bit weights (reduce_range) or slower exact kernels"
    if args.output:
        facts["written"] = str(args.output)
    say("\n".join(f"{key:<9} {value}" for key, value in facts.items()))


def _schema(_: argparse.Namespace) -> None:
    sys.stdout.write(schema_text())
