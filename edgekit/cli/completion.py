"""`edgekit completion`: a script that completes commands, flags, profiles and files in a shell."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit import profile
from edgekit.errors import EngineMissing

SHELLS = ("bash", "zsh", "fish")
_INSTALL = """\
bash:  edgekit completion bash > ~/.local/share/bash-completion/completions/edgekit
zsh:   edgekit completion zsh > ~/.zfunc/_edgekit      (with fpath+=~/.zfunc before compinit)
fish:  edgekit completion fish > ~/.config/fish/completions/edgekit.fish"""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="a completion script for bash, zsh or fish",
        description="Prints a script; it calls no program when it completes.",
        epilog=_INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    sys.stdout.write(script(args.shell))
    return 0


def script(shell: str) -> str:
    """The completion script of all commands. Raises EngineMissing without shtab."""
    try:
        import shtab
    except ImportError:
        hint = "pip install 'edgekit-toolkit[build]'"
        raise EngineMissing("completion scripts are made by shtab, which is not installed", hint) from None
    from edgekit.cli import parser

    root = parser()
    for action in _actions(root):
        _teach(action, shtab)
    return str(shtab.complete(root, shell=shell))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _actions(child)


def _teach(action: argparse.Action, shtab: Any) -> None:
    """What argparse does not say: which values are files, folders and profiles."""
    if action.dest == "profile" and not action.choices:
        action.choices = sorted(profile.all_profiles())
    elif action.type is Path:
        folder = action.metavar == "DIR"
        action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
