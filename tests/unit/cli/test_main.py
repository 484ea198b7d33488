"""How the command line behaves as a whole: in processes, because pipes and exit codes are the point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit
from edgekit import cli
from edgekit.errors import EdgekitError
from tests.support.bundles import tiny_bundle


def _run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit.cli", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_version_and_help() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout) == (0, f"edgekit {edgekit.__version__}\n")
    done = _run("--help")
    assert done.returncode == 0
    for name in ("inspect", "verify", "keys"):
        assert name in done.stdout


def test_a_deliberate_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.complain(EdgekitError("it\nbroke", "mend it")) == 2
    assert capsys.readouterr().err == "error: it broke\n  hint: mend it\n"
    cli.complain(EdgekitError("it broke"))
    assert capsys.readouterr().err == "error: it broke\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.cli.keys.run", interrupt)
    assert cli.main(["keys", "show"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    path, keys = tiny_bundle(tmp_path)
    (tmp_path / "b.pub").write_bytes(keys.signer.public().to_pem())
    words = [sys.executable, "-m", "edgekit.cli", "inspect", str(path), "--trust", str(tmp_path / "b.pub")]
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(words, stdout=pipe, stderr=subprocess.PIPE, timeout=120, check=False)
    assert done.returncode == 141
    assert done.stderr == b""


def test_only_the_named_command_is_imported() -> None:
    code = (
        "import sys; from edgekit import cli; cli.parser('keys');"
        "print(sorted(m for m in sys.modules if m.startswith('edgekit.cli.') and '._' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "['edgekit.cli.keys']"
