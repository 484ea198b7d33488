"""What an agent needs of a fleet, for tests of the agent alone: a CA, a device endpoint that serves
bundles over mutual TLS, signed assignments, and a real mosquitto. The fleet itself is tested elsewhere.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import queue
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgekit import bundle, codec, wire
from edgekit.crypto import dsse, sealing, x509
from edgekit.crypto.keys import SealingKey, SigningKey
from edgekit.wire import Assignment, JobNotify
from edgekit_agent import config
from tests.support.bundles import Keys
from tests.support.devices import wait_for
from tests.support.ports import free_port

DEVICE = "dev-1"


class Identity:
    """A CA and certificates under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.ca = x509.CertificateAuthority.create("stand-in")
        self.ca.save(folder)
        key, certificate = self.ca.issue_server(["localhost"], ["127.0.0.1"])
        (folder / "server.key").write_bytes(key)
        (folder / "server.pem").write_bytes(certificate)

    def device(self, name: str, folder: Path) -> None:
        """device.key, device.pem and ca.pem into `folder`."""
        key = x509.new_device_key()
        (folder / "device.key").write_bytes(key)
        (folder / "device.pem").write_bytes(self.ca.sign_csr(x509.make_csr(key, name), name))
        shutil.copy(self.folder / "ca.pem", folder / "ca.pem")

    def server_context(self, *, mutual: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server.pem", self.folder / "server.key")
        if mutual:
            context.load_verify_locations(self.folder / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class BundleServer:
    """HTTPS with client certificates and Range. `cut`: hang up after that many bytes of an answer."""

    def __init__(self, identity: Identity) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = 0
        self.ignore_range = False
        self.stalled: threading.Event | None = None
        """When set: after `cut` bytes the connection stays open, silent, until this event."""
        self.requests: list[tuple[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that are killed on purpose

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.socket = identity.server_context().wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range", "")
        self.requests.append((request.path, wanted))
        data = self.files.get(request.path)
        if data is None:
            request.send_response(404)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not self.ignore_range else 0
        body = data[start:]
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(body[: self.cut] if self.cut else body)
            if self.stalled:
                self.stalled.wait()
            if self.cut:
                request.close_connection = True

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Broker:
    """A mosquitto child on a free loopback port; `received` gets (channel, payload) of everything."""

    def __init__(self, identity: Identity, folder: Path) -> None:
        self.folder, self.identity = folder, identity
        folder.mkdir()
        self.port = free_port()
        (folder / "mosquitto.conf").write_text(
            f"listener {self.port} 127.0.0.1\ncafile {identity.folder}/ca.pem\n"
            f"certfile {identity.folder}/server.pem\nkeyfile {identity.folder}/server.key\n"
            "require_certificate true\nuse_identity_as_username true\nset_tcp_nodelay true\n"
            f"allow_anonymous false\npersistence true\npersistence_location {folder}/\nuser root\n"
        )
        self.received: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._child: subprocess.Popen[bytes] | None = None
        identity.device("fleet", folder)
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="fleet", protocol=mqtt.MQTTv5)
        self._client.tls_set(f"{folder}/ca.pem", f"{folder}/device.pem", f"{folder}/device.key")
        self._client.on_connect = lambda client, *_: client.subscribe("ek/v1/#", 1)
        self._client.on_message = self._on_message
        self._client.reconnect_delay_set(1, 1)

    def start(self) -> None:
        program = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
        with (self.folder / "log").open("ab") as log:
            command = [program, "-c", str(self.folder / "mosquitto.conf")]
            self._child = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for("mosquitto", self._answers)
        if not self._client.is_connected():
            self._client.connect("127.0.0.1", self.port)
            self._client.loop_start()
            wait_for("the fleet's client", self._client.is_connected)

    def stop(self) -> None:
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
            self._child.wait()
            self._child = None

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        self.stop()

    def publish(self, channel: str, message: object, *, retain: bool = False) -> None:
        self._client.publish(wire.topic(DEVICE, channel), codec.to_json(message), 1, retain)

    def _answers(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        parts = wire.split_topic(message.topic)
        if parts and message.payload:
            self.received.put((parts[2], bytes(message.payload)))


@dataclasses.dataclass
class StandIn:
    """One device's fleet."""

    folder: Path
    identity: Identity
    server: BundleServer
    keys: Keys
    assignment_key: SigningKey
    device_key: SealingKey
    counter: int = 0

    def install(self, broker_port: int, **serve: Any) -> Path:
        """The state folder of an enrolled device; the path of its agent.toml."""
        state = self.folder / DEVICE
        state.mkdir(mode=0o700)
        self.identity.device(DEVICE, state)
        self.device_key.save(state / "sealing.key")
        (state / "assignment.pub").write_bytes(self.assignment_key.public().to_pem())
        (state / "builder.pub").write_bytes(self.keys.signer.public().to_pem())
        made = config.AgentConfig(
            device=config.DeviceSection(DEVICE, "generic-cpu"),
            serve=config.ServeSection(port=0, unix="agent.sock", **serve),
            telemetry=config.TelemetrySection(interval_s=0.5),
            fleet=config.FleetSection("127.0.0.1", broker_port, self.server.url),
        )
        (state / "agent.toml").write_text(config.to_toml(made))
        return state / "agent.toml"

    def assignment(self, path: Path, **changes: Any) -> Assignment:
        """The next assignment: publishes the bundle at `path` and seals its key to the device."""
        opened = bundle.open(path, [self.keys.signer.public()])
        info = sealing.assignment_info(wire.TENANT, DEVICE, opened.digest)
        sealed = opened.reseal(opened.content_key(self.keys.recipient), self.device_key.public(), info)
        url_path = f"/v1/bundles/{opened.digest}"
        self.server.files[url_path] = path.read_bytes()
        self.counter += 1
        assignment = Assignment(
            tenant=wire.TENANT,
            device=DEVICE,
            counter=self.counter,
            job=f"job-{self.counter}",
            release=f"{opened.info.name}:{opened.info.version}",
            bundle_digest=opened.digest,
            bundle_size_bytes=opened.size,
            url_path=url_path,
            sealed_key=base64.b64encode(sealed).decode(),
            deadline_s=120.0,
            watch_s=0.5,
            max_error_rate=0.1,
        )
        return dataclasses.replace(assignment, **changes)

    def notify(self, assignment: Assignment, key: SigningKey | None = None) -> JobNotify:
        envelope = dsse.sign(wire.ASSIGNMENT_TYPE, codec.to_json(assignment), [key or self.assignment_key])
        return JobNotify(assignment.job, envelope.decode())


@contextlib.contextmanager
def standin(folder: Path) -> Iterator[StandIn]:
    identity = Identity(folder / "identity")
    server = BundleServer(identity)
    try:
        yield StandIn(folder, identity, server, Keys(), SigningKey.generate(), SealingKey.generate())
    finally:
        server.close()
