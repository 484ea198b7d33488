"""agent.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit_agent import config

FLEET = '[fleet]\nbroker_host = "h"\nbroker_port = 8883\ndevice_url = "https://h:1"\n'
DEVICE = '[device]\nid = "d"\nprofile = "generic-cpu"\n'


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = config.AgentConfig(
        config.DeviceSection('d"\\\x7f é', "generic-cpu", emulated=True),
        serve=config.ServeSection(unix="s.sock", ports=(8001, 8500), protocols=("oip",)),
        fleet=config.FleetSection("h", 1, "https://h:2", builder_keys=("a.pub", "b.pub")),
    )
    (tmp_path / "agent.toml").write_text(config.to_toml(made), encoding="utf-8")
    assert config.load(tmp_path / "agent.toml") == config.absolute(made, tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(DEVICE + FLEET)
    loaded = config.load(tmp_path / "agent.toml")
    assert loaded.fleet is not None and loaded.fleet.ca == str(tmp_path / "ca.pem")
    assert loaded.state.dir == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[device]\nid = 1\nprofile = 'p'\n", "device.id should be str"),
        (DEVICE + "[serve]\nport = 70000\n", "serve.port 70000 is not a port"),
        (DEVICE + "[serve]\nports = [8500, 0]\n", "serve.ports: 0 is not a port"),
        (DEVICE + "[serve]\nports = [8500, 8000]\n", "ports that differ"),
        (DEVICE + "[serve]\nprot = 1\n", "prot"),
        (DEVICE + "[serve]\nprotocols = ['oip', 'soap']\n", "unknown protocol 'soap'"),
        (DEVICE + "[serve]\nprotocols = []\n", "serve.protocols is empty"),
        (DEVICE + "[telemetry]\ninterval_s = 0.0\n", "telemetry.interval_s"),
        (DEVICE + FLEET.replace("https", "http"), "device_url must be an https"),
        ("[device", "not valid TOML"),
    ],
)
def test_one_line_that_names_file_and_field(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert word in caught.value.message and caught.value.message.startswith(str(path))
