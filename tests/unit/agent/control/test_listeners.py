"""Sockets: taken once, left clean."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, InputError, SystemFault
from edgekit_agent.config import ServeSection
from edgekit_agent.listeners import bind
from tests.support.ports import free_port


def test_busy_port() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemFault, match=f"127.0.0.1:{port}") as caught:
            bind(ServeSection(port=port))
    assert caught.value.hint


def test_more_ports_as_far_as_they_are_free(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = taken.getsockname()[1], free_port()
        made = bind(ServeSection(port=0, ports=ports))
        try:
            assert [sock.getsockname()[1] for sock in made.sockets][1:] == [ports[1]]
            assert made.endpoint.split()[1:] == [f"http://127.0.0.1:{ports[1]}"]
            with socket.create_connection(("127.0.0.1", ports[1]), timeout=5):
                pass
        finally:
            made.close()
    (record,) = caplog.records
    assert f"127.0.0.1:{ports[0]}" in record.message and "without this port" in record.message


def test_more_ports_are_guarded_as_the_first() -> None:
    with pytest.raises(ConfigError, match="without TLS"):
        bind(ServeSection(host="0.0.0.0", port=0, ports=(8500,)))


def test_unix_socket_after_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    made = bind(ServeSection(port=0, unix=str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    with pytest.raises(SystemFault, match="in use"):
        bind(ServeSection(port=0, unix=str(path)))
    made.close()
    assert not path.exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(SystemFault, match="not a socket"):
        bind(ServeSection(port=0, unix=str(path)))
    assert path.read_text() == "data"


def test_path_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longer"):
        bind(ServeSection(port=0, unix=str(tmp_path / ("x" * 120))))


def test_given_sockets_are_guarded_too() -> None:
    """Whoever gives a socket of a network does not thereby say that everybody may ask."""
    with socket.create_server(("0.0.0.0", 0)) as everywhere, socket.create_server(("127.0.0.1", 0)) as here:
        with pytest.raises(ConfigError, match="without TLS"):
            bind(ServeSection(), [here, everywhere])
        made = bind(ServeSection(allow_plaintext=True, allow_anonymous=True), [here, everywhere])
        assert made.endpoint.split()[0] == f"http://127.0.0.1:{here.getsockname()[1]}"
        assert made.unix is None
