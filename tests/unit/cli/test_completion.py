"""`edgekit completion`, in a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit import cli, profile
from edgekit.cli.completion import SHELLS, script

# What the shell does when a person presses Tab: set COMP_*, call the function, read COMPREPLY.
_TAB = """
source "$1"; shift
function=$(complete -p edgekit | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"$function" edgekit "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "edgekit"
    path.write_text(script("bash"))
    return path


def tab(bash: Path, *words: str) -> list[str]:
    command = ["bash", "--norc", "-c", _TAB, "bash", str(bash), "edgekit", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=bash.parent)
    assert done.stderr == ""
    return done.stdout.split()


def test_commands(bash: Path) -> None:
    assert set(tab(bash, "")) >= set(cli.names())
    assert tab(bash, "rebui") == ["rebuild"]
    assert "rollout" in tab(bash, "fleet", "")


def test_flags_and_values(bash: Path) -> None:
    assert tab(bash, "build", "--calib") == ["--calibration"]
    assert tab(bash, "build", "--profile", "raspberry-pi-") == [
        name for name in sorted(profile.all_profiles()) if name.startswith("raspberry-pi-")
    ]
    assert "int8-dynamic" in tab(bash, "build", "--precision", "")


def test_files(bash: Path) -> None:
    (bash.parent / "kws.edgekit").touch()
    assert tab(bash, "inspect", "kw") == ["kws.edgekit"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.names())
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True)
