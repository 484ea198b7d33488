"""systemd's side of the agent, with real sockets in its place; the units are checked by systemd itself."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit_agent import sd, units
from tests.support.agent_process import AGENT, device
from tests.support.devices import Client, release, variant


def listen(path: Path) -> socket.socket:
    """What the service manager has at NOTIFY_SOCKET."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(path))
    made.settimeout(120)
    return made


def test_assignments_are_one_datagram(tmp_path: Path) -> None:
    with listen(tmp_path / "n") as manager:
        sd.Manager({"NOTIFY_SOCKET": str(tmp_path / "n")}).tell(READY=1, STATUS="kws:1 on http://x")
        assert manager.recv(1000) == b"READY=1\nSTATUS=kws:1 on http://x"


def test_abstract_address() -> None:
    name = f"\0edgekit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name)
        sd.Manager({"NOTIFY_SOCKET": "@" + name[1:]}).tell(STOPPING=1)
        assert manager.recv(100) == b"STOPPING=1"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    sd.Manager({}).tell(READY=1)
    sd.Manager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).tell(READY=1)
    assert sd.Manager({}).watchdog_s == 0.0


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
)
def test_watchdog_period(environment: dict[str, str], seconds: float) -> None:
    assert sd.Manager(environment).watchdog_s == seconds


def test_the_watchdog_hears_only_of_a_healthy_agent(tmp_path: Path) -> None:
    healthy, stop = threading.Event(), threading.Event()
    asked = threading.Semaphore(0)

    def check() -> bool:
        asked.release()
        return healthy.is_set()

    with listen(tmp_path / "n") as manager:
        made = sd.Manager({"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "30000"})
        thread = threading.Thread(target=made.keep_alive, args=(check, stop))
        thread.start()
        for _ in range(3):
            assert asked.acquire(timeout=120)
        manager.setblocking(False)
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        manager.settimeout(120)
        healthy.set()
        assert manager.recv(100) == b"WATCHDOG=1"
        stop.set()
        thread.join()


def test_a_pulse_that_stops() -> None:
    assert sd.Pulse(60).healthy and not sd.Pulse(0).healthy


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "x", "LISTEN_PID": str(os.getpid())},
    ],
)
def test_sockets_for_somebody_else_are_left_alone(environment: dict[str, str]) -> None:
    given = dict(environment)
    assert sd.inherited(given) == [] and given == {}


def activated(
    sockets: list[socket.socket], command: list[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a program as systemd does: its sockets are descriptors 3, 4, ..."""
    shell = " ".join(f"{3 + i}<&{sock.fileno()}" for i, sock in enumerate(sockets))
    script = f'export LISTEN_PID=$$ LISTEN_FDS={len(sockets)}; exec "$@" {shell}'
    return subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        env={**os.environ, **environment},
        pass_fds=[sock.fileno() for sock in sockets],
    )


@pytest.mark.faults
def test_an_agent_as_a_service(tmp_path: Path) -> None:
    """Ready, alive, stopping; and its sockets are systemd's, so that they stay when it goes."""
    with device(tmp_path) as made, listen(tmp_path / "n") as manager:
        job = made.assign(release(tmp_path, "1.0.0", variant(1.0), keys=made.place.keys))
        tcp = socket.create_server(("127.0.0.1", 0))
        local = socket.socket(socket.AF_UNIX)
        local.bind(str(tmp_path / "given.sock"))
        local.listen()
        # Above the numbers that they are to get, so that the shell does not overwrite one with the other.
        given = [socket.socket(fileno=fcntl.fcntl(one, fcntl.F_DUPFD, 40)) for one in (tcp, local)]
        environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "600000"}
        made.child = activated(given, [AGENT, "--config", str(made.config)], environment)
        try:
            first = manager.recv(1000).decode()
            port = tcp.getsockname()[1]
            assert first.startswith("READY=1\nSTATUS=") and f"http://127.0.0.1:{port}" in first
            assert manager.recv(1000) == b"WATCHDOG=1"
            assert made.end_of(job.job).terminal
            assert Client(port=port).served_weight() == 1.0
            assert Client(unix=tmp_path / "given.sock").served_weight() == 1.0
            assert not (made.state / "agent.sock").exists(), "what the configuration names is not bound"
            made.child.terminate()
            said = set()
            while b"STOPPING=1" not in said:
                said.add(manager.recv(1000))
            assert made.child.wait(120) == 0
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass  # nobody answers, but nobody is refused either
            assert (tmp_path / "given.sock").exists()
        finally:
            for one in (tcp, local, *given):
                one.close()


@pytest.mark.faults
def test_the_watchdog_starves_when_the_supervisor_hangs(tmp_path: Path) -> None:
    """SIGSTOP: the process lives and does nothing, which only a watchdog notices."""
    with device(tmp_path) as made, listen(tmp_path / "n") as manager:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "300000"}
        made.child = activated([], [AGENT, "--config", str(made.config)], environment)
        while manager.recv(1000) != b"WATCHDOG=1":
            pass
        made.child.send_signal(signal.SIGSTOP)
        try:
            manager.settimeout(1.5)
            with pytest.raises(TimeoutError):
                while True:
                    manager.recv(1000)
        finally:
            made.child.send_signal(signal.SIGCONT)
        manager.settimeout(120)
        assert manager.recv(1000) == b"WATCHDOG=1"


# -- the units


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("devices", [[], ["/dev/nvidia0", "/dev/nvidiactl"]])
@pytest.mark.parametrize("state", ["/var/lib/edgekit", "/data/edgekit"])
def test_systemd_takes_the_units(tmp_path: Path, devices: list[str], state: str) -> None:
    options = [word for path in devices for word in ("--device", path)]
    for name, arguments in (
        ("edgekit-agent.service", ["--state", state, "--user", "root", *options]),
        ("edgekit-agent.socket", ["--socket", "127.0.0.1:8000"]),
    ):
        text = subprocess.check_output([AGENT, "systemd-unit", *arguments], text=True)
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_sandbox_is_tight(tmp_path: Path) -> None:
    unit = tmp_path / "edgekit-agent.service"
    unit.write_text(units.service(Path("/var/lib/edgekit"), "edgekit", agent=Path("/usr/bin/true")))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(unit)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-500:]


@pytest.mark.parametrize(
    ("state", "user", "word"),
    [
        ("relative", "edgekit", "absolute"),
        ("/a b", "edgekit", "absolute"),
        ("/a\nExecStart=/x", "edgekit", "absolute"),
        ("/a", "Root;", "user name"),
    ],
)
def test_what_does_not_belong_into_a_unit(state: str, user: str, word: str) -> None:
    with pytest.raises(InputError, match=word):
        units.service(Path(state), user, agent=Path("/usr/bin/true"))


@pytest.mark.parametrize("address", ["8000", "127.0.0.1:8000", "[::1]:8000"])
def test_addresses(address: str) -> None:
    assert f"ListenStream={address}\n" in units.sockets(address)
    with pytest.raises(InputError):
        units.sockets(f"{address}\nExecStart=/bin/sh")


def test_home_is_readable_only_where_the_program_lies_there() -> None:
    where = Path("/var/lib/edgekit")
    assert "ProtectHome=yes" in units.service(where, "edgekit", agent=Path("/usr/bin/edgekit-agent"))
    assert "ProtectHome=read-only" in units.service(where, "edgekit", agent=Path("/home/a/.venv/bin/x"))
