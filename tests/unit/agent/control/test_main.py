"""The command line: one line and a hint, exit code 2, no traceback."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit_agent.main import main
from tests.support.bundles import Keys
from tests.support.devices import Client, release, variant

AGENT = str(Path(sys.executable).with_name("edgekit-agent"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    output = capsys.readouterr().err
    lines = [line for line in output.splitlines() if not line.startswith("20")]  # log lines
    assert lines[0].startswith("error: ") and len(lines) <= 2, output
    return lines[0]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    keys = Keys()
    keys.recipient.save(tmp_path / "recipient.pem")
    (tmp_path / "builder.pub").write_bytes(keys.signer.public().to_pem())
    (tmp_path / "stranger.pub").write_bytes(Keys().signer.public().to_pem())
    Keys().recipient.save(tmp_path / "other.pem")
    return release(tmp_path, "1.0.0", variant(1.0), keys=keys)


def test_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKIT_KEYS", str(tmp_path / "no-ring"))
    trust, key = ("--trust", tmp_path / "builder.pub"), ("--key", tmp_path / "recipient.pem")
    serve = ("serve", bundle, "--port", 0)
    assert "nothing to do" in refused(capsys)
    assert "no-such.toml" in refused(capsys, "--config", tmp_path / "no-such.toml")
    assert "no such file" in refused(capsys, "serve", tmp_path / "none.edgekit", *trust)
    assert "cannot read key" in refused(capsys, *serve, *trust)
    assert "signed by" in refused(capsys, *serve, *key, "--trust", tmp_path / "stranger.pub")
    assert "sealed to" in refused(capsys, *serve, *trust, "--key", tmp_path / "other.pem")
    assert "unknown profile" in refused(capsys, *serve, *trust, *key, "--profile", "jetsom")
    assert "not a port" in refused(capsys, "serve", bundle, *trust, *key, "--port", 99999)
    assert "--also-port 70000" in refused(capsys, *serve, *trust, *key, "--also-port", 70000)
    assert "no agent.db" in refused(capsys, "status", "--state", tmp_path)
    assert "not an enrolment token" in refused(capsys, "enroll", "--token", "x", "--state", tmp_path / "s")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert "cannot listen" in refused(capsys, "serve", bundle, *trust, *key, "--port", port)
    cut = tmp_path / "cut.edgekit"
    cut.write_bytes(bundle.read_bytes()[:-700])
    assert "error: " in refused(capsys, "serve", cut, *trust, *key)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_and_stop(bundle: Path, tmp_path: Path, number: int) -> None:
    command = [AGENT, "serve", str(bundle), "--key", str(tmp_path / "recipient.pem")]
    command += ["--trust", str(tmp_path / "builder.pub"), "--port", "0", "--unix", str(tmp_path / "s")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert '"release": "tiny:1.0.0"' in child.stdout.readline()
        assert Client(unix=tmp_path / "s").served_weight() == 1.0
    finally:
        child.send_signal(number)
        assert child.wait(30) == 0
        assert child.stdout is not None
        child.stdout.close()
    assert not (tmp_path / "s").exists()


def test_golden_check_refuses_to_serve(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = Keys()
    (tmp_path / "builder.pub").write_bytes(keys.signer.public().to_pem())
    bad = release(tmp_path, "1.0.0", variant(1.0, lie=1.0), keys=keys, encrypt=False)
    before = signal.getsignal(signal.SIGTERM)
    said = refused(capsys, "serve", bad, "--trust", tmp_path / "builder.pub", "--port", 0)
    assert "golden check" in said
    # The process is as it was: signals are whose they were, and wake nobody.
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_a_destructor_swallows_still_ends_the_wait() -> None:
    program = (
        "import os, signal\n"
        "from edgekit_agent.main import _signals\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        str(self)\n"
        "with _signals() as stop:\n"
        "    Last()\n"
        "    print('waiting', flush=True)\n"
        "    stop()\n"
        "print('over')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert "Exception ignored in" in done.stderr
    assert (done.returncode, done.stdout.split()) == (0, ["waiting", "over"])
