"""The link to the fleet: MQTT 5 over mutual TLS, with everything that matters stored until acknowledged.

Two threads that never wait for an activation: `_connect` runs paho's network loop (and reconnects, with
jitter), and it alone touches the socket; a pump publishes from the store. Callbacks only put messages in a
queue.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgekit import codec, wire
from edgekit.errors import EdgekitError
from edgekit.wire import Desired, JobAck, JobNotify, Presence, Reported, TelemetryAck
from edgekit_agent.config import FleetSection
from edgekit_agent.fetch import tls
from edgekit_agent.store import Store

log = logging.getLogger("edgekit.agent.link")

SESSION_S = 7 * 24 * 3600
KEEPALIVE_S = 30
RESEND_S = 15.0
IN_FLIGHT = 16
"""Telemetry windows on their way at once."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
MAX_MESSAGE_BYTES = 256 * 1024

T = TypeVar("T")


class Link:
    """Talks to the fleet for one device; `on_job` gets each JobNotify on the pump's thread."""

    def __init__(
        self,
        fleet: FleetSection,
        device: str,
        tenant: str,
        boot: str,
        store: Store,
        on_job: Callable[[JobNotify], None],
    ) -> None:
        self._fleet, self._device, self._tenant, self._boot = fleet, device, tenant, boot
        self._store, self._on_job = store, on_job
        self._inbox: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._reported: Reported | None = None
        self._published: Reported | None = None
        self._sent: dict[int, float] = {}
        self._windows: dict[int, float] = {}
        self._client = self._make_client()
        self._threads = [
            threading.Thread(target=self._connect, name="link-network", daemon=True),
            threading.Thread(target=self._pump, name="link-pump", daemon=True),
        ]

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Say goodbye (presence offline) and end."""
        self._stopping.set()
        if self.connected:
            info = self._publish(wire.PRESENCE, Presence(False, self._boot), retain=True)
            try:
                info.wait_for_publish(2)
            except (RuntimeError, ValueError):
                log.debug("broker left before the goodbye")
        self._client.disconnect()
        self._inbox.put(None)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(5)

    def report(self, reported: Reported) -> None:
        """Publish this, retained, now or when the broker is back."""
        self._reported = reported
        self.wake()

    def wake(self) -> None:
        """There is something new in the store."""
        self._inbox.put(("", b""))

    # -- network thread ------------------------------------------------------------------------

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device,
            protocol=mqtt.MQTTv5,
            reconnect_on_failure=False,
        )
        client.tls_set_context(tls(self._fleet.ca, self._fleet.cert, self._fleet.key))
        # A last will is only sent when the connection breaks, never after a goodbye.
        gone = codec.to_json(Presence(False, self._boot))
        client.will_set(self._topic(wire.PRESENCE), gone, qos=1, retain=True)
        # With this set, paho leaves all writing to the thread in `loop`. Otherwise `publish` writes on the
        # pump's thread while `loop` reads; Python's ssl does not lock, and OpenSSL's memory is corrupted.
        client.on_socket_register_write = lambda *_: None
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    def _connect(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_S
        host, port = self._fleet.broker_host, self._fleet.broker_port
        wait_s, told = FIRST_WAIT_S, ""
        while not self._stopping.is_set():
            try:
                self._client.connect(host, port, KEEPALIVE_S, clean_start=False, properties=properties)
                while self._client.loop() == mqtt.MQTT_ERR_SUCCESS:
                    pass
                reason = "connection lost"
            except (OSError, ValueError) as exc:
                reason = str(exc) or type(exc).__name__
            if self._stopping.is_set():
                return
            if self._connected.is_set():
                self._connected.clear()
                wait_s, told = FIRST_WAIT_S, ""
            if reason != told:
                log.warning("no broker at %s:%d (%s); serving goes on, trying again", host, port, reason)
                told = reason
            # Full jitter, so that a fleet does not come back in one instant.
            self._stopping.wait(random.uniform(wait_s / 2, wait_s))  # noqa: S311 - not a secret
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    def _on_connect(
        self, client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if reason.is_failure:
            log.warning("the broker refuses this device: %s", reason)
            client.disconnect()
            return
        channels = (wire.DESIRED, wire.JOB_NOTIFY, wire.JOB_ACK, wire.TELEMETRY_ACK)
        client.subscribe([(self._topic(channel), SubscribeOptions(qos=1)) for channel in channels])
        self._connected.set()
        self._inbox.put(("connected", b""))

    def _on_disconnect(
        self, _client: mqtt.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        if not self._stopping.is_set():
            log.info("broker connection ended: %s", reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self._inbox.put((message.topic, bytes(message.payload)))

    # -- pump ----------------------------------------------------------------------------------

    def _pump(self) -> None:
        while not self._stopping.is_set():
            try:
                item = self._inbox.get(timeout=RESEND_S / 3)
            except queue.Empty:
                item = ("", b"")
            if item is None:
                return
            try:
                self._handle(*item)
                if self._connected.is_set():
                    self._send()
            except EdgekitError as exc:
                log.warning("%s", exc)

    def _handle(self, topic: str, payload: bytes) -> None:
        if topic == "connected":
            log.info("connected to the fleet at %s:%d", self._fleet.broker_host, self._fleet.broker_port)
            self._sent.clear()
            self._published = None
            self._windows.clear()
            self._publish(wire.PRESENCE, Presence(True, self._boot), retain=True)
            return
        parts = wire.split_topic(topic)
        if parts is None or parts[:2] != (self._tenant, self._device) or not payload:
            return
        match parts[2]:
            case wire.JOB_NOTIFY:
                self._on_job(_parse(JobNotify, payload, "job/notify"))
            case wire.DESIRED:
                self._on_job(_parse(Desired, payload, "state/desired").notify)
            case wire.JOB_ACK:
                self._store.acknowledge(_parse(JobAck, payload, "job/ack").seq)
            case wire.TELEMETRY_ACK:
                ack = _parse(TelemetryAck, payload, "telemetry/ack")
                self._store.acknowledge_window(ack.boot, ack.seq)

    def _send(self) -> None:
        now = time.monotonic()
        if self._reported is not None and self._reported != self._published:
            self._published = self._reported
            self._publish(wire.REPORTED, self._reported, retain=True)
        waiting = self._store.outbox()
        self._sent = {update.seq: self._sent.get(update.seq, now - RESEND_S) for update in waiting}
        for update in waiting:
            if now - self._sent[update.seq] >= RESEND_S:
                self._sent[update.seq] = now
                self._publish(wire.JOB_UPDATE, update)
        # The oldest few, so that only those are on their way; what was sent is not merged any more.
        windows = dict(self._store.windows(IN_FLIGHT))
        self._windows = {row: self._windows.get(row, now - RESEND_S) for row in windows}
        due = [row for row, sent in self._windows.items() if now - sent >= RESEND_S]
        self._store.mark_sent(due)
        for row in due:
            self._windows[row] = now
            self._publish(wire.TELEMETRY, windows[row])

    def _publish(self, channel: str, message: object, *, retain: bool = False) -> mqtt.MQTTMessageInfo:
        return self._client.publish(self._topic(channel), codec.to_json(message), qos=1, retain=retain)

    def _topic(self, channel: str) -> str:
        return wire.topic(self._device, channel, self._tenant)


def _parse(cls: type[T], payload: bytes, what: str) -> T:
    return codec.from_json(cls, payload, what=what, max_bytes=MAX_MESSAGE_BYTES)
