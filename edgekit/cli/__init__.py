"""`edgekit`: one file per sub-command, found by name.

A module here that does not begin with an underscore is a sub-command: `register(subparsers)` adds its
parser under the module's name (underscores become dashes), `run(args)` does the work.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence
from types import ModuleType

import edgekit
from edgekit.arguments import Parser
from edgekit.errors import EdgekitError

INTERRUPTED = 130  # 128 + SIGINT, as shells count
BROKEN_PIPE = 141  # 128 + SIGPIPE


def names() -> list[str]:
    """Every sub-command."""
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name[0] != "_")


def parser(only: str = "") -> argparse.ArgumentParser:
    """The whole command line, or just the sub-command `only`, which spares importing the others."""
    root = Parser(
        prog="edgekit",
        description="Build, certify, sign and encrypt model bundles, and roll them out to edge devices.",
    )
    root.add_argument("--version", action="version", version=f"edgekit {edgekit.__version__}")
    subparsers = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in [only] if only in names() else names():
        _module(name).register(subparsers)
    return root


def command(root: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    """The parser of one sub-command of `root`."""
    found = next(action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    child: argparse.ArgumentParser = found.choices[name]
    return child


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code; every deliberate error becomes one line and a hint."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        made = parser(words[0] if words else "")
        if words[:1] == ["build"]:
            words = _module("_settings").expand(words, command(made, "build"))
        args = made.parse_args(words)
        code = int(_module(args.command).run(args))
        sys.stdout.flush()
    except EdgekitError as exc:
        return complain(exc)
    except KeyboardInterrupt:
        sys.stderr.write("\nerror: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. Python would complain at exit unless stdout goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def complain(exc: EdgekitError) -> int:
    """Print `error: ...` and `  hint: ...` on stderr; the exit code."""
    sys.stderr.write(f"error: {exc.message}\n")
    if exc.hint:
        sys.stderr.write(f"  hint: {exc.hint}\n")
    return exc.exit_code


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
