"""`edgekit-agent token create|list|revoke`: who may ask this agent over the network."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from edgekit.errors import InputError
from edgekit_agent import config, tokens


def add(command: argparse.ArgumentParser) -> None:
    """The sub-commands' arguments."""
    actions = command.add_subparsers(metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a token and print it, once")
    create.add_argument("--name", required=True, help="whose it is, for people")
    create.add_argument(
        "--role", action="append", default=[], choices=tokens.ROLES, dest="roles",
        help="infer: run models; observe: metrics and statistics; may be repeated (default: infer)",
    )  # fmt: skip
    create.add_argument(
        "--days", type=int, default=0, metavar="N", help="valid for so many days; 0: for ever (default)"
    )
    create.set_defaults(run=_create)
    listed = actions.add_parser("list", help="what there is, as JSON, without the tokens themselves")
    listed.set_defaults(run=_list)
    revoke = actions.add_parser("revoke", help="end a token; a running agent notices within a second")
    revoke.add_argument("id", metavar="ID", help="as `list` shows it: the token's first eight digits")
    revoke.set_defaults(run=_revoke)
    for action in (create, listed, revoke):
        which = action.add_mutually_exclusive_group(required=True)
        which.add_argument("--tokens", type=Path, metavar="FILE", help="the file of tokens")
        which.add_argument("--config", type=Path, metavar="FILE", help="the agent.toml that names it")


def _create(args: argparse.Namespace) -> int:
    text, token = tokens.create(_file(args), args.name, tuple(args.roles or ["infer"]), args.days)
    _show({"token": text, **tokens.public(token)})
    return 0


def _list(args: argparse.Namespace) -> int:
    _show([tokens.public(token) for token in tokens.read(_file(args)).values()])
    return 0


def _revoke(args: argparse.Namespace) -> int:
    _show(tokens.public(tokens.revoke(_file(args), args.id)))
    return 0


def _file(args: argparse.Namespace) -> Path:
    if args.tokens is not None:
        return Path(args.tokens).absolute()
    named = config.load(args.config).serve.tokens
    if not named:
        raise InputError(f"{args.config} names no file of tokens", "add tokens = 'tokens.json' to [serve]")
    return Path(named)


def _show(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
