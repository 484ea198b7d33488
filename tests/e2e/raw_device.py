"""A device without the agent: enrols over HTTPS, speaks MQTT through bare paho, so that it can misbehave."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edgekit import wire
from edgekit.codec import from_json, to_json
from edgekit.crypto.keys import SealingKey
from edgekit.crypto.x509 import make_csr, new_device_key
from tests.support.lab import Lab


def secret_of(token: str) -> dict[str, Any]:
    text = token.removeprefix("ek1.")
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def make_token(lab: Lab, **body: Any) -> str:
    status, answer = lab.api("POST", "/v1/tokens", body)
    assert status == 201, answer
    return str(answer["token"])


def post_enroll(lab: Lab, body: dict[str, Any]) -> tuple[int, Any]:
    """POST /v1/enroll without the admin's token."""
    url = urlsplit(json.loads((lab.state / "fleet.json").read_text())["url"])
    context = ssl.create_default_context(cafile=str(lab.state / "ca" / "ca.pem"))
    connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=context, timeout=30)
    try:
        connection.request("POST", "/v1/enroll", json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class RawDevice:
    """An enrolled identity in a folder of its own."""

    def __init__(self, lab: Lab, name: str, profile: str = "generic-cpu") -> None:
        self.lab, self.name = lab, name
        self.folder = lab.folder / f"raw-{name}"
        self.folder.mkdir()
        self.sealing = SealingKey.generate()
        key = new_device_key()
        token = make_token(lab, device=name, profile=profile)
        body = {
            "token": token,
            "csr_pem": make_csr(key, name).decode(),
            "sealing_key_pem": self.sealing.public().to_pem().decode(),
            "profile": profile,
            "device": name,
        }
        status, self.answer = post_enroll(lab, body)
        assert status == 201, self.answer
        (self.folder / "key.pem").write_bytes(key)
        (self.folder / "cert.pem").write_text(self.answer["certificate_pem"])
        (self.folder / "ca.pem").write_text(self.answer["ca_pem"])

    def tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """GET from the device listener."""
        url = urlsplit(self.answer["device_url"])
        connection = http.client.HTTPSConnection(url.hostname or "", url.port, context=self.tls(), timeout=30)
        try:
            connection.request("GET", path, headers=headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def connect(self, **options: Any) -> Link:
        return Link(self.answer["broker_host"], self.answer["broker_port"], self.name, self.tls(), **options)


class Link:
    """One MQTT 5 connection; everything that arrives is kept."""

    def __init__(
        self,
        host: str,
        port: int,
        name: str,
        tls: ssl.SSLContext | None,
        *,
        client_id: str | None = None,
        boot: str = "b1",
        wait: bool = True,
        will: bool = True,
    ) -> None:
        self.name, self.boot = name, boot
        self.messages: list[tuple[str, bytes]] = []
        self.ended = threading.Event()
        self.connected = threading.Event()
        self.connects = 0
        self.client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id or name, protocol=mqtt.MQTTv5
        )
        self.client.on_message = lambda _c, _u, m: self.messages.append((m.topic, bytes(m.payload)))
        self.client.on_connect = self._on_connect
        self.client.on_disconnect = self._on_disconnect
        self.client.reconnect_delay_set(1, 1)
        if tls is not None:
            self.client.tls_set_context(tls)
        if will:
            gone = to_json(wire.Presence(online=False, boot=boot))
            self.client.will_set(wire.topic(name, wire.PRESENCE), gone, qos=1, retain=True)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = 3600
        self.client.connect(host, port, keepalive=20, clean_start=False, properties=properties)
        self.client.loop_start()
        if wait:
            self.until(self.connected.is_set, "the connection")

    def _on_connect(self, *args: Any) -> None:
        if not args[3].is_failure:
            self.connects += 1
            self.connected.set()

    def _on_disconnect(self, *_: Any) -> None:
        self.connected.clear()
        self.ended.set()

    def subscribe(self, *topics: str) -> list[int]:
        """Reason codes of the SUBACK."""
        codes: list[int] = []
        done = threading.Event()

        def on_subscribe(_c: Any, _u: Any, _m: Any, reasons: Any, _p: Any) -> None:
            codes.extend(reason.value for reason in reasons)
            done.set()

        self.client.on_subscribe = on_subscribe
        self.client.subscribe([(topic, 1) for topic in topics])
        done.wait(10)
        return codes

    def say(self, channel: str, message: Any, *, to: str | None = None, retain: bool = False) -> None:
        payload = message if isinstance(message, bytes) else to_json(message)
        self.client.publish(wire.topic(to or self.name, channel), payload, qos=1, retain=retain)

    def online(self) -> None:
        self.say(wire.PRESENCE, wire.Presence(online=True, boot=self.boot), retain=True)

    def received(self, channel: str, kind: type[Any]) -> list[Any]:
        topic = wire.topic(self.name, channel)
        return [from_json(kind, payload, what=channel) for name, payload in self.messages if name == topic]

    def until(self, ready: Callable[[], bool], what: str, timeout_s: float = 30) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s; got {self.messages}"
            time.sleep(0.05)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def drop(self) -> None:
        """Break the connection without a word, as a power cut does."""
        self.client.reconnect_delay_set(600, 600)
        sock = self.client.socket()
        assert sock is not None
        self.client.loop_stop()
        sock.close()
