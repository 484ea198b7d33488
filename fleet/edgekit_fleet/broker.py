"""mosquitto as our child: generated configuration, mutual TLS, access lists, respawned when it dies.

A device's user name and client id are its certificate's common name, so it can speak only as itself and
cannot take over another's session. The kernel kills the broker when our process ends, however it ends.
"""

from __future__ import annotations

import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit import wire
from edgekit.errors import SystemFault
from edgekit.files import storage_fault, write_bytes

log = logging.getLogger(__name__)

WORKER = "fleet"
READY_S = 15.0
_EXTRA_PATH = "/usr/sbin:/usr/local/sbin:/sbin"
_FROM_DEVICE = (wire.PRESENCE, wire.REPORTED, wire.TELEMETRY, wire.JOB_UPDATE)
_TO_DEVICE = (wire.DESIRED, wire.JOB_NOTIFY, wire.JOB_ACK, wire.TELEMETRY_ACK)


@dataclass(frozen=True)
class BrokerOptions:
    host: str
    port: int
    folder: Path
    ca: Path
    certificate: Path
    key: Path
    crl: Path


def acl() -> str:
    """The access list: a device writes its own reports and reads its own orders, nothing else."""
    lines = [f"user {WORKER}"]
    lines += [f"topic read {wire.topic('+', channel, '+')}" for channel in _FROM_DEVICE]
    lines += [f"topic write {wire.topic('+', channel, '+')}" for channel in _TO_DEVICE]
    lines += [f"pattern write {wire.topic('%u', channel)}" for channel in _FROM_DEVICE]
    lines += [f"pattern read {wire.topic('%u', channel)}" for channel in _TO_DEVICE]
    return "\n".join(lines) + "\n"


def configuration(options: BrokerOptions) -> str:
    """mosquitto.conf. Paths hold no line breaks (checked by `Broker`)."""
    return f"""# Written by edgekit-fleet at every start; changes are lost.
per_listener_settings false
listener {options.port} {options.host}
cafile {options.ca}
certfile {options.certificate}
keyfile {options.key}
crlfile {options.crl}
require_certificate true
use_identity_as_username true
use_username_as_clientid true
tls_version tlsv1.2
allow_anonymous false
acl_file {options.folder / "acl"}
persistence true
persistence_location {options.folder}/
persistence_file retained.db
autosave_interval 1
persistent_client_expiration 30d
set_tcp_nodelay true
max_inflight_messages 1000
max_queued_messages 100000
max_packet_size 1100000
max_keepalive 3600
log_dest stdout
log_type error
log_type warning
log_type notice
connection_messages false
user {getpass.getuser()}
"""


def find_programs() -> tuple[str, str]:
    """(mosquitto, setpriv). Raises SystemFault."""
    path = f"{os.environ.get('PATH', '')}:{_EXTRA_PATH}"
    found = [shutil.which(name, path=path) for name in ("mosquitto", "setpriv")]
    hints = ("apt-get install mosquitto", "apt-get install util-linux")
    for program, name, hint in zip(found, ("mosquitto", "setpriv"), hints, strict=True):
        if program is None:
            raise SystemFault(f"the program {name} is not installed", hint)
    return str(found[0]), str(found[1])


class Broker:
    """One mosquitto. `start` returns when it accepts connections; a thread of ours keeps it alive.

    The thread that forks it lives as long as the broker should: the kernel's parent-death signal is
    tied to that thread, not to the process.
    """

    def __init__(self, options: BrokerOptions, on_restart: Callable[[], None] = lambda: None) -> None:
        self.options = options
        self.restarts = 0
        self.started_at = 0.0
        """Epoch seconds of the present broker's start."""
        self._on_restart = on_restart
        self._programs = find_programs()
        self._config = options.folder / "mosquitto.conf"
        self._pid_file = options.folder / "mosquitto.pid"
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._first = threading.Event()
        self._failure: SystemFault | None = None
        self._thread = threading.Thread(target=self._keep_alive, name="broker", daemon=True)

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    @property
    def connect_address(self) -> tuple[str, int]:
        """Where a client on this machine finds it."""
        return local(self.options.host), self.options.port

    @property
    def alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self) -> None:
        """Raises SystemFault: port busy, configuration refused."""
        paths = (self.options.folder, self.options.ca, self.options.certificate)
        if any(not str(path).isprintable() for path in paths):
            raise SystemFault("the state folder's path has unprintable characters", "choose another --state")
        write_bytes(self.options.folder / "acl", acl().encode(), mode=0o600)
        write_bytes(self._config, configuration(self.options).encode(), mode=0o600)
        self._end_orphan()
        wait_for_port(self.options.host, self.options.port)
        self._thread.start()
        self._first.wait()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End it and wait: it writes its persistence file on SIGTERM."""
        self._stopping.set()
        child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._pid_file.unlink(missing_ok=True)

    def reload(self) -> None:
        """Read the revocation list and the access list anew."""
        if self.alive and self._child is not None:
            self._child.send_signal(signal.SIGHUP)

    def _keep_alive(self) -> None:
        backoff = 0.1
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self._spawn()
            except SystemFault as fault:
                if not self._first.is_set():
                    self._failure = fault
                    self._first.set()
                    return
                log.error("broker: %s", fault)
            else:
                if self._first.is_set():
                    self.restarts += 1
                    self._on_restart()
                self._first.set()
            if self._child is not None:
                code = self._child.wait()
                if not self._stopping.is_set():
                    log.warning("broker ended with %s; starting it again", code)
            if time.monotonic() - began > 10:
                backoff = 0.1
            self._stopping.wait(backoff)
            backoff = min(backoff * 2, 5.0)

    def _spawn(self) -> None:
        mosquitto, setpriv = self._programs
        command = [setpriv, "--pdeathsig", "KILL", mosquitto, "-c", str(self._config)]
        self.started_at = time.time()
        try:
            with (self.options.folder / "mosquitto.log").open("wb") as output:
                self._child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
                )
        except OSError as exc:
            raise storage_fault(self.options.folder / "mosquitto.log", exc) from None
        write_bytes(self._pid_file, str(self._child.pid).encode())
        deadline = time.monotonic() + READY_S
        while not self._stopping.is_set():
            if self._child.poll() is not None:
                raise SystemFault(
                    f"mosquitto does not start: {self._last_line()}", "see broker/mosquitto.log"
                )
            if _answers(self.options.host, self.options.port):
                return
            if time.monotonic() > deadline:
                self._child.kill()
                raise SystemFault(
                    f"mosquitto did not listen within {READY_S:g} s", "see broker/mosquitto.log"
                )
            time.sleep(0.02)

    def _last_line(self) -> str:
        text = (self.options.folder / "mosquitto.log").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else "it says nothing"

    def _end_orphan(self) -> None:
        """A broker of an earlier run whose parent died before the kernel was told to kill the child."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if str(self._config).encode() in command:  # ours by its configuration, not just by its number
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def wait_for_port(host: str, port: int, patience_s: float = 5.0) -> None:
    """Until `port` can be bound: an earlier broker may be on its way out. Raises SystemFault."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            bind(host, port).close()
            return
        except SystemFault:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to `host` and `port` (0: a free one). Raises SystemFault."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as exc:
        raise SystemFault(f"cannot listen on {host}: {exc.strerror or exc}", "check --host") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as exc:
        bound.close()
        raise SystemFault(
            f"cannot listen on {host} port {port}: {exc.strerror}",
            "another program uses it; stop that, or choose another port (0: any free one)",
        ) from None
    return bound


def local(host: str) -> str:
    """`host`, or the loopback address when it stands for every interface."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((local(host), port), timeout=1).close()
    except OSError:
        return False
    return True
