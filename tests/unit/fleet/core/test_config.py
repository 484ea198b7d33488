"""The state folder: made once, completed after a crash, locked, and its secrets readable by nobody else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from edgekit.errors import EdgekitError, InputError, SystemFault
from edgekit_fleet import broker, config
from edgekit_fleet.broker import BrokerOptions
from edgekit_fleet.config import Ports, State
from edgekit_fleet.main import main
from tests.unit.fleet.core.conftest import Home

SECRETS = ("ca/ca.key", "keys/assignment.pem", "keys/recipient.pem", "keys/cookie.key", "admin.token")


def test_init_keeps_what_is_there(home: Home) -> None:
    before = {name: (home.state.folder / name).read_bytes() for name in SECRETS}
    again = config.init(home.state)
    assert before == {name: (home.state.folder / name).read_bytes() for name in SECRETS}
    assert again.ca.pin == home.keys.ca.pin


@pytest.mark.parametrize("lost", [*SECRETS[1:], "ca/ca.pem", "recipient.pub"])
def test_an_interrupted_init_is_completed(home: Home, lost: str) -> None:
    (home.state.folder / lost).unlink()
    keys = config.init(home.state)
    assert (home.state.folder / lost).exists()
    assert (home.state.folder / "recipient.pub").read_bytes() == keys.recipient.to_pem()


def test_secrets_are_private(home: Home) -> None:
    for name in SECRETS:
        assert stat.S_IMODE((home.state.folder / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(home.state.folder.stat().st_mode) == 0o700


def test_a_folder_is_used_by_one_fleet(home: Home) -> None:
    with home.state.locked(), pytest.raises(SystemFault, match="used by another"), home.state.locked():
        pass
    with home.state.locked():
        pass


def test_ports_are_kept(home: Home) -> None:
    assert config.remembered_ports(home.state, Ports(0, 0, 0)) == Ports(0, 0, 0)
    config.remember_ports(home.state, Ports(1, 2, 3))
    assert config.remembered_ports(home.state, Ports(0, 7, 0)) == Ports(1, 7, 3)


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"\xff" * 20])
@pytest.mark.parametrize("name", SECRETS)
def test_damaged_keys_are_one_line(home: Home, name: str, damage: bytes) -> None:
    (home.state.folder / name).write_bytes(damage)
    with pytest.raises(EdgekitError):
        config.load(home.state)


def test_commands_without_a_state_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["trust", "list"], ["audit", "verify"], ["login"]):
        assert main([*words, "--state", str(tmp_path / "none")]) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ") and "hint:" in shown.err and not shown.out


def test_trust_add_refuses_what_is_no_key(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    bad = home.state.folder / "bad.pub"
    bad.write_text("nonsense")
    assert main(["trust", "add", str(bad), "--state", str(home.state.folder)]) == 2
    assert "not a key" in capsys.readouterr().err
    assert config.trusted_keys(home.state) == []


def test_a_missing_broker_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(broker, "_EXTRA_PATH", "/nonexistent")
    with pytest.raises(SystemFault, match="mosquitto is not installed") as caught:
        broker.find_programs()
    assert "apt-get install mosquitto" in caught.value.hint


def test_a_path_that_would_break_the_configuration_is_refused(home: Home) -> None:
    evil = home.state.folder / "x\nallow_anonymous true"
    made = broker.Broker(BrokerOptions("127.0.0.1", 1, evil, evil, evil, evil, evil))
    with pytest.raises(SystemFault, match="unprintable"):
        made.start()


def test_a_bad_state_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemFault):
        config.init(State(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match="not a fleet's state folder"):
        config.load(State(tmp_path))
