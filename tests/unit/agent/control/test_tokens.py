"""The file of bearer tokens: what it holds, who may read it, and what finds a token."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import AuthError, ConfigError, EdgekitError, InputError
from edgekit_agent import tokens
from edgekit_agent.main import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.json"


def test_a_token_is_found_and_never_stored(file: Path) -> None:
    text, token = tokens.create(file, "camera app", ("infer",))
    assert text.startswith(f"ekt_{token.id}_") and len(text) > 50
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret = text.split("_", 2)[2]  # it may hold underscores itself
    assert secret.encode() not in file.read_bytes() and token.sha256.encode() in file.read_bytes()
    known = tokens.read(file)
    assert tokens.find(known, text, time.time()) == token
    assert "sha256" not in tokens.public(token)


@pytest.mark.parametrize("how", ["cut", "longer", "other id", "other secret", "empty", "spaces", "not ASCII"])
def test_anything_else_is_not_found(file: Path, how: str) -> None:
    text, _ = tokens.create(file, "a", ("infer",))
    other, _ = tokens.create(file, "b", ("infer",))
    wrong = {
        "cut": text[:-1], "longer": text + "A", "other id": other[:13] + text[13:],
        "other secret": text[:-1] + ("A" if text[-1] != "A" else "B"), "empty": "", "spaces": f" {text}",
        "not ASCII": text[:-1] + "\udcff",
    }  # fmt: skip
    assert tokens.find(tokens.read(file), wrong[how], time.time()) is None
    assert tokens.find(tokens.read(file), text, time.time()) is not None


def test_a_token_expires(file: Path) -> None:
    text, token = tokens.create(file, "a", ("infer",), days=2)
    known = tokens.read(file)
    assert token.expires_s - token.created_s == 2 * 86_400
    assert tokens.find(known, text, token.expires_s - 1) == token
    assert tokens.find(known, text, token.expires_s) is None


def test_revoking(file: Path) -> None:
    first, token = tokens.create(file, "a", ("infer",))
    second, _ = tokens.create(file, "b", ("observe", "infer"))
    assert tokens.revoke(file, token.id) == token
    known = tokens.read(file)
    assert tokens.find(known, first, 0) is None
    found = tokens.find(known, second, 0)
    assert found is not None and found.roles == ("infer", "observe")
    with pytest.raises(AuthError):
        tokens.revoke(file, token.id)


@pytest.mark.parametrize(
    ("name", "roles", "days"),
    [("", ("infer",), 0), ("a\nb", ("infer",), 0), ("a", (), 0), ("a", ("root",), 0), ("a", ("infer",), -1)],
)
def test_what_cannot_be_created(file: Path, name: str, roles: tuple[str, ...], days: int) -> None:
    with pytest.raises(InputError):
        tokens.create(file, name, roles, days)
    assert not file.exists()


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    tokens.create(file, "a", ("infer",))
    for mode in (0o640, 0o604, 0o620):
        file.chmod(mode)
        with pytest.raises(ConfigError, match="others may read it"):
            tokens.read(file)
        with pytest.raises(ConfigError):
            tokens.create(file, "b", ("infer",))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_another_users_file_is_refused(file: Path) -> None:
    tokens.create(file, "a", ("infer",))
    os.chown(file, 12345, 12345)
    with pytest.raises(ConfigError, match="not a file of this user"):
        tokens.read(file)


def _document(**changes: Any) -> bytes:
    token = {
        "id": "0" * 8,
        "name": "a",
        "roles": ["infer"],
        "sha256": "0" * 64,
        "created_s": 1,
        "expires_s": 0,
    }
    return json.dumps({"version": 1, "tokens": [token | changes]}).encode()


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b'{"version": 2, "tokens": []}', _document(roles=["root"]), _document(more=1),
     _document(id=7), b" " * (tokens.MAX_FILE_BYTES + 1),
     _document().replace(b"}]", b"}, " + _document()[26:-2].lstrip(b"[ ") + b"]")],
)  # fmt: skip
def test_what_is_no_file_of_tokens(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    file.chmod(0o600)
    with pytest.raises(ConfigError):
        tokens.read(file)


def test_a_link_or_a_pipe_is_refused(file: Path, tmp_path: Path) -> None:
    tokens.create(file, "a", ("infer",))
    link = tmp_path / "link.json"
    link.symlink_to(file)
    os.mkfifo(tmp_path / "pipe.json", 0o600)
    for wrong in (link, tmp_path / "pipe.json", tmp_path / "missing.json", tmp_path):
        with pytest.raises(ConfigError):
            tokens.read(wrong)


def test_nothing_is_lost_when_many_create_at_once(file: Path) -> None:
    threads = [threading.Thread(target=tokens.create, args=(file, f"t{i}", ("infer",))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {token.name for token in tokens.read(file).values()} == {f"t{i}" for i in range(12)}


def test_the_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*words: str) -> Any:
        assert main(["token", *words, "--tokens", str(file)]) == 0
        return json.loads(capsys.readouterr().out)

    made = run("create", "--name", "app", "--role", "observe", "--days", "30")
    assert made["roles"] == ["observe"] and tokens.find(tokens.read(file), made["token"], 0)
    assert run("create", "--name", "b")["roles"] == ["infer"]
    listed = run("list")
    assert [one["name"] for one in listed] == ["app", "b"]
    assert not any("token" in one or "sha256" in one for one in listed)
    assert run("revoke", made["id"])["name"] == "app" and len(run("list")) == 1
    assert main(["token", "revoke", made["id"], "--tokens", str(file)]) == EdgekitError.exit_code
    assert "has no token" in capsys.readouterr().err
