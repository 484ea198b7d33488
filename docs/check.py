"""Keep the documentation true: `python docs/check.py` fails on drift, `--write` mends what is generated.

Generated between markers, in any Markdown file:

    <!-- help: edgekit build -->      the command's own --help
    <!-- bench: agent_latency -->     a table from benchmarks/results/<name>.json; a second word names
                                      another of its tables
    <!-- end -->

Checked: every command of the three programs has its help text in docs/cli.md; every `$ command` line
in a console block parses; relative links lead somewhere; no registry host name stands in the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekit.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (help|bench): (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
CONSOLE = re.compile(r"```console\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)#:\s]+)(?:#[^)]*)?\)")
SHELL = (">", ">>", "|", "&&")
# A build whose required flags come from edgekit.toml is checked as if they had been given.
FROM_SETTINGS = ["model.onnx", "--profile", "p", "-o", "b", "--calibration", "c", "--evaluate", "e"]
# Spelled in pieces so that this file does not name them either.
HOSTS = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "deb." + "debian.org")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Every command and sub-command, by the words a person types."""
    from edgekit.cli import parser as toolkit
    from edgekit_agent.main import parser as agent
    from edgekit_fleet.main import parser as fleet

    found: dict[str, argparse.ArgumentParser] = {}
    for root in (toolkit(), agent(), fleet()):
        found.update(_walk(root, root.prog))
    return found


def _walk(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from _walk(child, f"{name} {word}")


def help_text(parser: argparse.ArgumentParser) -> str:
    """The parser's help as a fenced block; parsers are made with COLUMNS=100 and without colour."""
    return f"```text\n{parser.format_help().strip()}\n```\n"


def bench_table(words: str) -> str:
    """Markdown table from `benchmarks/results/<name>.json`: its "table" (columns, rows, note), or the one
    that a second word names."""
    name, _, part = words.partition(" ")
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        return f"_No figures yet: `make bench` writes {path.relative_to(ROOT)}._\n"
    result: dict[str, Any] = json.loads(path.read_text())
    table = result[part or "table"]
    lines = ["| " + " | ".join(table["columns"]) + " |", "|" + "---|" * len(table["columns"])]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in table["rows"]]
    return "\n".join(lines) + (f"\n\n{table['note']}\n" if table["note"] else "\n")


def regenerate(text: str, commands: dict[str, argparse.ArgumentParser]) -> str:
    """`text` with every generated block made anew. Raises KeyError for an unknown command."""

    def block(match: re.Match[str]) -> str:
        start, kind, name, _, end = match.groups()
        body = help_text(commands[name]) if kind == "help" else bench_table(name)
        return f"{start}{body}{end}"

    return BLOCK.sub(block, text)


def command_lines(text: str) -> Iterator[list[str]]:
    """Words of each `$ edgekit...` line of the console blocks; backslash continues a line."""
    for block in CONSOLE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line[2:], comments=True) if line.startswith("$ ") else []
            words = list(itertools.takewhile(lambda word: word not in SHELL, words))
            while words and "=" in words[0]:
                words = words[1:]
            if words and words[0] in ("edgekit", "edgekit-agent", "edgekit-fleet"):
                yield words


def parse_error(words: list[str], commands: dict[str, argparse.ArgumentParser]) -> str:
    """What argparse says against this command line; empty when it is fine."""
    noise = io.StringIO()
    if words == ["edgekit", "build"] or "--settings" in words[:3]:
        words = [*words[:2], *FROM_SETTINGS, *words[2:]]
    try:
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            commands[words[0]].parse_args(words[1:])
    except InputError as exc:
        return exc.message
    except SystemExit:  # --help, --version
        pass
    return ""


def problems(write: bool) -> Iterator[str]:
    """Everything that is wrong, one line each; with `write`, generated text is mended first."""
    commands = parsers()
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    cli = ROOT / "docs" / "cli.md"
    if write:
        cli.write_text(cli_page(commands))
    for page in pages:
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(ROOT)
        try:
            fresh = regenerate(text, commands)
        except KeyError as exc:
            yield f"{name}: no such command: {exc}"
            continue
        if fresh != text and write:
            page.write_text(fresh, encoding="utf-8")
        elif fresh != text:
            yield f"{name}: generated text is stale; run `python docs/check.py --write`"
        for words in command_lines(text):
            if error := parse_error(words, commands):
                yield f"{name}: `{shlex.join(words)}`: {error}"
        for link in LINK.findall(text):
            if not (page.parent / link).exists():
                yield f"{name}: broken link {link}"
    if cli.read_text() != cli_page(commands):
        yield "docs/cli.md: commands were added or removed; run `python docs/check.py --write`"
    yield from host_names()


def cli_page(commands: dict[str, argparse.ArgumentParser]) -> str:
    """docs/cli.md: the help of every command, generated."""
    head = "# Command line reference\n\nGenerated from the programs by `python docs/check.py --write`.\n"
    parts = [
        f"\n## {name}\n\n<!-- help: {name} -->\n{help_text(parser)}<!-- end -->\n"
        for name, parser in commands.items()
    ]
    return head + "".join(parts)


def host_names() -> Iterator[str]:
    """Tracked files that name a package registry's host."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and any(host.encode() in path.read_bytes() for host in HOSTS):
            yield f"{name}: names a package registry's host"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--write", action="store_true", help="regenerate instead of complaining")
    found = list(problems(arguments.parse_args().write))
    for problem in found:
        sys.stderr.write(problem + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    # argparse wraps to the terminal; the documents must not depend on it.
    os.environ.update(COLUMNS="100", NO_COLOR="1")
    sys.exit(main())
