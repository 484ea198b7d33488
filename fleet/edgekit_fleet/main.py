"""The command `edgekit-fleet`."""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgekit import host
from edgekit.arguments import Parser
from edgekit.codec import to_plain
from edgekit.errors import EdgekitError, InputError, SystemFault
from edgekit_fleet import audit, config
from edgekit_fleet.config import DEFAULT_DEVICE_PORT, DEFAULT_MQTT_PORT, DEFAULT_PORT, FleetInfo, Ports, State
from edgekit_fleet.db import Database

STATE_VARIABLE = "EDGEKIT_FLEET_STATE"
DEFAULT_STATE = "edgekit-fleet-state"


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    top = Parser(
        prog="edgekit-fleet",
        description="The fleet manager: enrols devices, publishes bundles, rolls them out.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands.add_parser("up", help="run the fleet: API, dashboard, broker, worker, rollouts"))
    init = commands.add_parser("init", help="make the state folder with its keys; keeps what is there")
    _common(init)
    trust = commands.add_parser("trust", help="which builders' bundles are accepted")
    actions = trust.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="accept bundles signed by this builder")
    add.add_argument("key", type=Path, metavar="KEY.pub", help="the builder's public key")
    _common(add)
    _common(actions.add_parser("list", help="keys that are trusted"))
    log = commands.add_parser("audit", help="the hash-chained log of every change")
    verify = log.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = verify.add_parser("verify", help="check the chain; exit code 3 when it is broken")
    check.add_argument("--url", help="database URL (default: STATE/fleet.db)")
    _common(check)
    login = commands.add_parser("login", help="a link that logs into the dashboard once")
    _common(login)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 refused with one line and a hint, 3 the audit chain is broken."""
    try:
        args = parser().parse_args(argv)
        return int(_COMMANDS[args.command](State(args.state), args))
    except EdgekitError as exc:
        sys.stderr.write(f"error: {exc.message}\n" + (f"  hint: {exc.hint}\n" if exc.hint else ""))
        return exc.exit_code
    except KeyboardInterrupt:
        return 130


def _add_up(up: argparse.ArgumentParser) -> None:
    up.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    up.add_argument("--public-host", default="", metavar="NAME", help="name under which devices reach it")
    for name, default, what in (
        ("--port", DEFAULT_PORT, "API and dashboard"),
        ("--device-port", DEFAULT_DEVICE_PORT, "devices' downloads"),
        ("--mqtt-port", DEFAULT_MQTT_PORT, "the broker"),
    ):
        up.add_argument(
            name, type=_port, default=default, help=f"{what}; 0: any free one, kept (default: {default})"
        )
    up.add_argument("--url", default="", help="database URL (default: sqlite in the state folder)")
    up.add_argument(
        "--trust", type=Path, action="append", default=[], metavar="KEY.pub", help="trust this builder, too"
    )
    up.add_argument("--quiet", action="store_true", help="log warnings only, announce nothing")
    _common(up)


def _common(one: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get(STATE_VARIABLE) or DEFAULT_STATE)
    one.add_argument(
        "--state",
        type=Path,
        default=default,
        metavar="DIR",
        help=f"state folder (default: ${STATE_VARIABLE} or {DEFAULT_STATE})",
    )
    one.add_argument("--json", action="store_true", help="answer as JSON")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


def _up(state: State, args: argparse.Namespace) -> int:
    from edgekit_fleet import up  # the whole server: other commands start without it

    host.keep_private()  # the CA's, the assignment and the sealing key are in memory from now on
    logging.basicConfig(
        level=logging.WARNING if args.quiet else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)

    def ready(info: FleetInfo) -> None:
        if args.json:
            _say(json.dumps(to_plain(info)))
        elif not args.quiet:
            _say(
                f"fleet is up: {info.url}\n  devices   {info.device_url}, mqtts://{info.mqtt_host}:"
                f"{info.mqtt_port}\n  dashboard {info.dashboard}\n  state     {state.folder}"
            )

    ports = Ports(args.port, args.device_port, args.mqtt_port)
    options = up.UpOptions(state, args.host, ports, args.public_host, args.url, tuple(args.trust))
    up.run(options, ready)
    return 0


def _init(state: State, args: argparse.Namespace) -> int:
    keys = config.init(state)
    answer = {
        "state": str(state.folder),
        "recipient": str(state.folder / "recipient.pub"),
        "recipient_key_id": keys.recipient.key_id,
        "ca_sha256": keys.ca.pin,
    }
    text = f"{state.folder} is ready; build for this fleet with --recipient {answer['recipient']}"
    return _say(json.dumps(answer) if args.json else text)


def _trust(state: State, args: argparse.Namespace) -> int:
    config.load(state)
    if args.action == "add":
        key = config.trust_file(state, args.key)
        db = Database.file(state.database)
        db.create()
        with db.write() as connection:
            audit.record(connection, "cli", "trust.add", key.key_id)
        db.close()
        return _say(json.dumps({"key_id": key.key_id}) if args.json else f"trusted: {key.key_id}")
    found = [key.key_id for key in config.trusted_keys(state)]
    return _say(json.dumps({"trusted": found}) if args.json else "\n".join(found) or "no builder is trusted")


def _audit(state: State, args: argparse.Namespace) -> int:
    if not args.url and not state.database.exists():
        raise InputError(f"no database in {state.folder}", "give the fleet's --state, or --url")
    db = Database(args.url or f"sqlite:///{state.database}")
    db.create()
    with db.read() as connection:
        verdict = audit.verify(connection)
    db.close()
    broken = verdict.broken_at is not None
    text = (
        f"entry {verdict.broken_at} does not fit: it or one before it was changed or removed"
        if broken
        else f"{verdict.entries} entries, the chain holds; newest hash {verdict.head}"
    )
    _say(json.dumps(to_plain(verdict)) if args.json else text)
    return 3 if broken else 0


def _login(state: State, args: argparse.Namespace) -> int:
    info = state.read_info()
    token = config.load(state).admin_token
    answer = _post(info.url, "/v1/logins", token, state.ca_pem)
    return _say(json.dumps(answer) if args.json else str(answer["url"]))


def _post(url: str, path: str, token: str, ca: Path) -> Any:
    parts = urlsplit(url)
    try:
        context = ssl.create_default_context(cafile=str(ca))
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=20, context=context
        )
        connection.request("POST", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
    except (OSError, http.client.HTTPException, ValueError) as exc:
        raise SystemFault(f"{url} does not answer: {exc}", "is the fleet running?") from None
    if response.status >= 400:
        raise SystemFault(str(answer.get("error")), str(answer.get("hint", "")))
    return answer


def _say(text: str) -> int:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    return 0


_COMMANDS = {"up": _up, "init": _init, "trust": _trust, "audit": _audit, "login": _login}

if __name__ == "__main__":
    sys.exit(main())
