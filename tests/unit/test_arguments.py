"""Mistakes on the command lines of the three programs: one line and a hint, exit code 2, no usage text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import edgekit.cli
import edgekit_agent.main
import edgekit_fleet.main

PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "edgekit": edgekit.cli.main,
    "edgekit-agent": edgekit_agent.main.main,
    "edgekit-fleet": edgekit_fleet.main.main,
}


@pytest.mark.parametrize(
    ("line", "message", "see"),
    [
        ("edgekit", "the following arguments are required: COMMAND", "edgekit"),
        ("edgekit frobnicate", "argument COMMAND: invalid choice: 'frobnicate'", "edgekit"),
        ("edgekit inspect", "the following arguments are required: BUNDLE", "edgekit inspect"),
        ("edgekit inspect a.edgekit --json --frob", "unrecognized arguments: --frob", "edgekit"),
        ("edgekit completion csh", "argument shell: invalid choice: 'csh'", "edgekit completion"),
        ("edgekit fleet rollout", "the following arguments are required: ACTION", "edgekit fleet rollout"),
        ("edgekit-agent serve", "the following arguments are required: BUNDLE", "edgekit-agent serve"),
        ("edgekit-agent serve x --port y", "argument --port: invalid int value: 'y'", "edgekit-agent serve"),
        ("edgekit-agent --frob", "unrecognized arguments: --frob", "edgekit-agent"),
        ("edgekit-agent token create --name a", "one of the arguments", "edgekit-agent token create"),
        ("edgekit-fleet", "the following arguments are required: COMMAND", "edgekit-fleet"),
        ("edgekit-fleet up --port 70000", "argument --port: '70000' is not a port", "edgekit-fleet up"),
        ("edgekit-fleet trust add", "the following arguments are required: KEY", "edgekit-fleet trust add"),
        ("edgekit-fleet login --json --x", "unrecognized arguments: --x", "edgekit-fleet"),
    ],
)  # fmt: skip
def test_one_line_and_a_hint(line: str, message: str, see: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = line.split()
    assert PROGRAMS[program](words) == 2
    said = capsys.readouterr()
    error, hint = said.err.splitlines()
    assert error.startswith(f"error: {message}") and hint == f"  hint: see `{see} --help`"
    assert said.out == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_as_processes(program: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(program), "--no-such"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 2
    shown = subprocess.run(
        [Path(sys.executable).with_name(program), "--help"], capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0 and shown.stdout.startswith(f"usage: {program}") and shown.stderr == ""
