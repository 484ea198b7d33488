"""`edgekit fleet`: enrol devices, publish bundles, roll them out and watch, over the admin API."""

from __future__ import annotations

import argparse
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from edgekit.cli import _fleet_client as client
from edgekit.cli import _fleet_phase as phases
from edgekit.cli import _fleet_watch
from edgekit.cli._output import say, say_json, table
from edgekit.errors import ConfigError, InputError

UPLOAD_TIMEOUT_S = 600.0
VERBS = {
    "start": "let a draft begin",
    "approve": "let a rollout that waits for approval begin",
    "pause": "tell no further device",
    "resume": "go on after a pause",
    "abort": "stop; devices that have the release keep it",
    "rollback": "bring the previous release back to every device that has this one",
}


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("fleet", help="enrol devices, publish bundles, roll them out, watch")
    topics = parser.add_subparsers(dest="topic", required=True, metavar="COMMAND")
    _register_devices(topics)
    publish = topics.add_parser("publish", help="make a bundle a release of the fleet")
    publish.add_argument("file", type=Path, metavar="FILE", help="a .edgekit bundle")
    _leaf(publish, _publish)
    _leaf(topics.add_parser("releases", help="all published releases"), _releases)
    rollout = topics.add_parser("rollout", help="bring a release to devices, in phases")
    _register_rollout(rollout.add_subparsers(dest="action", required=True, metavar="ACTION"))
    watch = topics.add_parser("watch", help="follow a rollout to its end: exit code 0 FINISHED, 3 otherwise")
    watch.add_argument("rollout", nargs="?", metavar="ROLLOUT", help="its number (default: the newest)")
    watch.add_argument("--timeout", metavar="TIME", help="give up after, e.g. 90 or 10m")
    _leaf(watch, _watch)


def _register_devices(topics: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    enroll = topics.add_parser("enroll", help="a one-time token with which a device joins")
    enroll.add_argument("--device", default="", metavar="ID", help="only for a device of this name")
    enroll.add_argument("--profile", default="", metavar="NAME", help="its device profile")
    enroll.add_argument("--tag", action="append", default=[], metavar="K=V", help="may be repeated")
    enroll.add_argument("--ttl", default="1d", metavar="TIME", help="good for, e.g. 15m (default: 1d)")
    _leaf(enroll, _enroll)
    devices = topics.add_parser("devices", help="list, tag and revoke devices")
    actions = devices.add_subparsers(dest="action", required=True, metavar="ACTION")
    _leaf(actions.add_parser("list", help="all devices"), _devices)
    tag = actions.add_parser("tag", help="set tags: K=V; K= removes one")
    tag.add_argument("device", metavar="ID")
    tag.add_argument("tags", nargs="+", metavar="K=V")
    _leaf(tag, _tag)
    revoke = actions.add_parser("revoke", help="shut a device out, for good")
    revoke.add_argument("device", metavar="ID")
    _leaf(revoke, _revoke)


def _register_rollout(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    create = actions.add_parser("create", help="begin a rollout", epilog=phases.EXAMPLE)
    create.add_argument("release", metavar="RELEASE", help="NAME:VERSION, NAME for its newest, or digest")
    create.add_argument(
        "--query", default="", help="which devices, e.g. 'profile == \"jetson\"' (default: all)"
    )
    create.add_argument("--name", default="", help="a title for people")
    how = create.add_mutually_exclusive_group()
    how.add_argument(
        "--phase",
        action="append",
        default=[],
        metavar="NAME:SIZE,K=V,...",
        help="may be repeated; SIZE: 3, 25%% or rest; keys: success errors min soak deadline on_success "
        "on_error where",
    )
    how.add_argument("--strategy", type=Path, metavar="FILE.toml", help="phases and gates from a file")
    create.add_argument("--start-at", metavar="TIME", help="2026-12-24T03:00 (local time), or +10m")
    create.add_argument("--approval", action="store_true", help="wait until a person approves")
    create.add_argument("--draft", action="store_true", help="only prepare it")
    create.add_argument("--supersede", action="store_true", help="end running rollouts of the same devices")
    create.add_argument("--dry-run", action="store_true", help="only show which device is in which phase")
    create.add_argument("--watch", action="store_true", help="then follow it to its end")
    _leaf(create, _create)
    _leaf(actions.add_parser("list", help="all rollouts, newest first"), _list)
    show = actions.add_parser("show", help="phases and devices of one rollout")
    show.add_argument("rollout", metavar="ROLLOUT")
    _leaf(show, _show)
    for verb, text in VERBS.items():
        parser = actions.add_parser(verb, help=text)
        parser.add_argument("rollout", metavar="ROLLOUT")
        parser.set_defaults(verb=verb)
        _leaf(parser, _command)


def _leaf(parser: argparse.ArgumentParser, handler: Callable[[argparse.Namespace], int]) -> None:
    client.add_options(parser)
    parser.set_defaults(fleet=handler)


def run(args: argparse.Namespace) -> int:
    handler: Callable[[argparse.Namespace], int] = args.fleet
    return handler(args)


def _enroll(args: argparse.Namespace) -> int:
    to = client.connection(args)
    body = {"profile": args.profile, "tags": _tags(args.tag), "ttl_s": phases.seconds(args.ttl)}
    made = client.call(to, "POST", "/v1/tokens", {"device": args.device, **body})
    profile = args.profile or "PROFILE"
    parts = ["edgekit-agent", "enroll", "--fleet", to.url, "--token", made["token"]]
    folder = f"agent-{args.device}" if args.device else "agent-state"
    name = [] if args.device else ["--device", "NAME"]  # else the token says it
    command = shlex.join([*parts, "--state", folder, "--profile", profile, *name])
    if args.json:
        return _json({**made, "command": command})
    until = datetime.fromtimestamp(made["expires_at"]).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return _say(f"one device may join with this token until {until}; run on the device:\n\n  {command}\n")


def _devices(args: argparse.Namespace) -> int:
    found = _items(client.call(client.connection(args), "GET", "/v1/devices"), "devices")
    if args.json:
        return _json(found)
    rows = [
        (
            str(item["id"]),
            "revoked" if item.get("revoked") else "online" if item["online"] else "offline",
            str(item["profile"]) + (" (emulated)" if item.get("emulated") else ""),
            str(item["release"]) or "-",
            str(item.get("variant", "")) or "-",
            " ".join(f"{key}={value}" for key, value in sorted(item["tags"].items())) or "-",
        )
        for item in found
    ]
    return _table(("DEVICE", "STATE", "PROFILE", "RELEASE", "VARIANT", "TAGS"), rows)


def _tag(args: argparse.Namespace) -> int:
    to = client.connection(args)
    path = f"/v1/devices/{quote(args.device, safe='')}"
    known = _items(client.call(to, "GET", "/v1/devices"), "devices")
    found = next((item for item in known if item["id"] == args.device), None)
    if found is None:
        raise InputError(f"no device {args.device!r}", "`edgekit fleet devices list` shows all")
    tags = {key: value for key, value in {**found["tags"], **_tags(args.tags)}.items() if value}
    answer = client.call(to, "PUT", f"{path}/tags", tags)
    text = " ".join(f"{key}={value}" for key, value in sorted(tags.items())) or "no tags"
    return _json(answer) if args.json else _say(f"{args.device}: {text}")


def _revoke(args: argparse.Namespace) -> int:
    path = f"/v1/devices/{quote(args.device, safe='')}/revoke"
    answer = client.call(client.connection(args), "POST", path)
    return _json(answer) if args.json else _say(f"{args.device} is revoked: it is shut out from now on")


def _publish(args: argparse.Namespace) -> int:
    to = client.connection(args)
    path: Path = args.file
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            answer = client.call(to, "POST", "/v1/releases", upload=(file, size), timeout_s=UPLOAD_TIMEOUT_S)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as exc:
        raise InputError(
            f"cannot read {path}: {exc.strerror}", "give a bundle made by edgekit build"
        ) from None
    label = f"{answer['name']}:{answer['version']}"
    return (
        _json(answer) if args.json else _say(f"published {label} ({size / 1e6:.2f} MB, {answer['digest']})")
    )


def _releases(args: argparse.Namespace) -> int:
    found = _items(client.call(client.connection(args), "GET", "/v1/releases"), "releases")
    if args.json:
        return _json(found)
    rows = [
        (f"{item['name']}:{item['version']}", f"{item['size_bytes'] / 1e6:.2f} MB", str(item["digest"])[:19])
        for item in found
    ]
    return _table(("RELEASE", "SIZE", "DIGEST"), rows)


def _create(args: argparse.Namespace) -> int:
    to = client.connection(args)
    strategy = _strategy(args)
    body = {"release": args.release, "query": args.query, "name": args.name, "strategy": strategy}
    flags = {"draft": args.draft, "supersede": args.supersede, "dry_run": args.dry_run}
    made = client.call(to, "POST", "/v1/rollouts", {**body, **flags, "start_at": _moment(args.start_at)})
    if args.watch and made["id"] is not None:
        return _fleet_watch.watch(to, int(made["id"]), json_lines=args.json, timeout_s=None)
    if args.json:
        return _json(made)
    rows = [
        (group["name"], str(len(group["devices"])), ", ".join(group["devices"][:8]) or "-")
        for group in made["groups"]
    ]
    number = made["id"]
    _say("nothing was changed (dry run)" if number is None else f"rollout {number} was created")
    return _table(("PHASE", "DEVICES", "WHICH (FIRST 8)"), rows)


def _strategy(args: argparse.Namespace) -> dict[str, Any]:
    strategy: dict[str, Any] = {}
    if args.strategy:
        try:
            strategy = tomllib.loads(args.strategy.read_text(encoding="utf-8"))
        except OSError as exc:
            raise ConfigError(f"cannot read {args.strategy}: {exc.strerror}", "check --strategy") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{args.strategy}: not valid TOML: {exc}") from None
    elif args.phase:
        strategy = {"phases": [phases.parse(text) for text in args.phase]}
    return {**strategy, "approval": True} if args.approval else strategy


def _moment(text: str | None) -> float:
    """Seconds since the epoch, 0.0 for now."""
    if not text:
        return 0.0
    now = datetime.now().astimezone()
    if text.startswith("+"):
        return now.timestamp() + phases.seconds(text[1:])
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise InputError(f"{text!r} is not a time", "write 2026-12-24T03:00, or +10m from now") from None


def _list(args: argparse.Namespace) -> int:
    found = _items(client.call(client.connection(args), "GET", "/v1/rollouts"), "rollouts")
    if args.json:
        return _json(found)
    rows = [
        (str(item["id"]), item["release"], item["state"], _progress(item["devices"]), item["reason"] or "-")
        for item in found
    ]
    return _table(("ID", "RELEASE", "STATE", "DEVICES", "REASON"), rows)


def _progress(devices: Mapping[str, int]) -> str:
    failed = f", {devices['failed']} failed" if devices["failed"] else ""
    return f"{devices['succeeded']}/{devices['total']} done{failed}"


def _show(args: argparse.Namespace) -> int:
    found = client.call(client.connection(args), "GET", f"/v1/rollouts/{_number(args.rollout)}")
    if args.json:
        return _json(found)
    _say(f"rollout {found['id']}: {found['release']} is {found['state']}")
    _say(f"  {found['reason']}\n" if found["reason"] else "")
    groups = [(g["name"], g["state"], _progress(g["devices"]), g["reason"] or "-") for g in found["groups"]]
    _table(("PHASE", "STATE", "DEVICES", "REASON"), groups)
    _say("")
    rows = [
        (job["device"], group["name"], *_fleet_watch.job_state(job))
        for group in found["groups"]
        for job in group["jobs"]
    ]
    return _table(("DEVICE", "PHASE", "STATE", "DETAIL"), rows)


def _command(args: argparse.Namespace) -> int:
    path = f"/v1/rollouts/{_number(args.rollout)}/{args.verb}"
    answer = client.call(client.connection(args), "POST", path)
    return _json(answer) if args.json else _say(f"rollout {args.rollout}: {args.verb} - {answer['state']}")


def _watch(args: argparse.Namespace) -> int:
    to = client.connection(args)
    timeout_s = phases.seconds(args.timeout) if args.timeout else None
    if args.rollout is None:
        found = _items(client.call(to, "GET", "/v1/rollouts"), "rollouts")
        if not found:
            raise InputError("there is no rollout yet", "create one: edgekit fleet rollout create RELEASE")
        args.rollout = str(max(int(item["id"]) for item in found))
    return _fleet_watch.watch(to, _number(args.rollout), json_lines=args.json, timeout_s=timeout_s)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 12:
        raise InputError(f"{text!r} is not a rollout's number", "`edgekit fleet rollout list` shows all")
    return int(text)


def _tags(pairs: Sequence[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{pair!r} is not a tag", "write it as name=value")
        tags[key] = value
    return tags


def _items(answer: Any, name: str) -> list[dict[str, Any]]:
    """The list in an answer, be it bare or under its name."""
    items: list[dict[str, Any]] = answer[name] if isinstance(answer, dict) else answer
    return items


def _say(text: str) -> int:
    if text:
        say(text)
    return 0


def _json(value: Any) -> int:
    say_json(value)
    return 0


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    return _say(table(head, rows))
