"""The fleet's side of MQTT: one client, `fleet`, that takes in reports and sends out the outbox.

In: a message is acknowledged to the broker after its transaction has committed; until then the broker
keeps it. Out: outbox rows are published at QoS 1 in order. A row that the broker acknowledged is kept
for KEEP_SENT_S more, because a broker that is killed forgets its last second; after every reconnect the
rows that are still there are sent again (devices recognise what they know by job, counter or seq).
"""

from __future__ import annotations

import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError, OperationalError

from edgekit import wire
from edgekit.codec import to_json
from edgekit_fleet.broker import WORKER
from edgekit_fleet.db import Database, outbox, retained
from edgekit_fleet.ingest import Ingest, Message, Reply

log = logging.getLogger(__name__)

BATCH = 500
WINDOW = 300
"""Outbox messages on their way at one time."""
KEEP_SENT_S = 10.0
SESSION_EXPIRY_S = 30 * 24 * 3600
CHANNELS = (wire.PRESENCE, wire.REPORTED, wire.TELEMETRY, wire.JOB_UPDATE)


@dataclass(frozen=True)
class WorkerOptions:
    host: str
    port: int
    ca: Path
    certificate: Path
    key: Path


class Worker:
    """Three threads: paho's network loop, the ingester, the sender."""

    def __init__(self, options: WorkerOptions, db: Database) -> None:
        self.ingest = Ingest(db)
        self.published = 0
        self._options = options
        self._db = db
        self._incoming: queue.Queue[tuple[int, mqtt.MQTTMessage]] = queue.Queue(maxsize=20_000)
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._epoch = 0
        """Counts connections: message ids mean nothing on another one."""
        self._acknowledged: list[int] = []
        self._in_flight: dict[int, int] = {}
        """Message id to outbox row; the sender's alone."""
        self._resend = False
        self._refill = False
        self._client = self._make_client()
        self._threads = [
            threading.Thread(target=self._guard, args=(loop,), name=name, daemon=True)
            for name, loop in (("ingest", self._ingest_step), ("outbox", self._send_step))
        ]

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    def start(self) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        self._client.connect_async(
            self._options.host, self._options.port, keepalive=20, clean_start=False, properties=properties
        )
        self._db.on_change(self._wake.set)
        self._client.loop_start()
        for thread in self._threads:
            thread.start()

    def wait_connected(self, timeout_s: float) -> bool:
        return self._connected.wait(timeout_s)

    def stop(self) -> None:
        """Finish the batches at hand, then disconnect; what is left stays with broker and outbox."""
        self._stopping.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(timeout=10)
        with suppress(OSError, ValueError):
            self._client.disconnect()
        self._client.loop_stop()

    def _make_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=WORKER, protocol=mqtt.MQTTv5, manual_ack=True
        )
        context = ssl.create_default_context(cafile=str(self._options.ca))
        context.load_cert_chain(self._options.certificate, self._options.key)
        client.tls_set_context(context)
        client.reconnect_delay_set(min_delay=1, max_delay=3)
        client.max_inflight_messages_set(900)  # the broker allows 1000
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        return client

    # -- paho's thread -----------------------------------------------------------------------

    def _on_connect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            log.warning("the broker refuses the fleet: %s", reason)
            return
        options = SubscribeOptions(qos=1)
        self._client.subscribe([(wire.topic("+", channel, "+"), options) for channel in CHANNELS])
        with self._lock:
            self._epoch += 1
            self._resend = True
            self._refill = self._refill or not flags.session_present
        self._connected.set()
        self._wake.set()

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: Any,
        _flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._connected.clear()
        if not self._stopping.is_set():
            log.warning("disconnected from the broker: %s", reason)

    def _on_message(self, _client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        # Full queue: the network loop waits, and TCP makes the broker wait in turn.
        while not self._stopping.is_set():
            with suppress(queue.Full):
                self._incoming.put((self._epoch, message), timeout=0.5)
                return

    def _on_publish(
        self, _client: mqtt.Client, _userdata: Any, mid: int, _reason: ReasonCode, _properties: Properties
    ) -> None:
        # paho holds a lock of its own here: only note it, the sender looks what it was.
        with self._lock:
            self._acknowledged.append(mid)
        self._wake.set()

    # -- our threads -------------------------------------------------------------------------

    def _guard(self, step: Callable[[], None]) -> None:
        """Repeat `step`; a database that is away for a moment is tried again, nothing was acknowledged."""
        while not self._stopping.is_set():
            try:
                step()
            except DBAPIError as exc:
                log.error("database: %s", exc.orig)
                self._stopping.wait(1.0)
            except Exception:
                log.exception("worker: unexpected error")
                self._stopping.wait(1.0)

    def _ingest_step(self) -> None:
        batch = self._take_batch()
        if not batch:
            return
        messages = [Message(m.topic, bytes(m.payload), bool(m.retain)) for _, m in batch]
        replies = self._apply(messages)
        if replies is None:
            return  # stopping; the broker still has them
        for epoch, message in batch:
            if epoch == self._epoch:
                self._client.ack(message.mid, message.qos)
        for reply in replies:
            self._client.publish(reply.topic, to_json(reply.message), qos=1)
            self.published += 1

    def _apply(self, messages: Sequence[Message]) -> list[Reply] | None:
        """Until the database takes them; None when we stop before that."""
        while True:
            try:
                return self.ingest.apply(messages)
            except OperationalError as exc:  # locked, or its disk is full
                log.error("database: %s; %d messages wait", exc.orig, len(messages))
                if self._stopping.wait(1.0):
                    return None
            except Exception as exc:
                if len(messages) > 1:
                    return self._one_by_one(messages)
                log.error("a message that cannot be stored is dropped: %s", messages[0].topic, exc_info=exc)
                self.ingest.counts.dropped["error"] += 1
                return []

    def _one_by_one(self, messages: Sequence[Message]) -> list[Reply]:
        """A batch that fails for another reason than a busy database: its good messages must not suffer."""
        return [reply for message in messages for reply in self._apply([message]) or []]

    def _take_batch(self) -> list[tuple[int, mqtt.MQTTMessage]]:
        try:
            batch = [self._incoming.get(timeout=0.2)]
        except queue.Empty:
            return []
        with suppress(queue.Empty):
            while len(batch) < BATCH:
                batch.append(self._incoming.get_nowait())
        return batch

    def _send_step(self) -> None:
        self._wake.wait(1.0)
        self._wake.clear()
        self._settle()
        if not self.connected:
            return
        with self._lock:
            resend, refill = self._resend, self._refill
            self._resend = self._refill = False
        if refill:
            self._publish_retained()
        if resend:
            self._in_flight.clear()
            with self._db.write() as connection:
                connection.execute(update(outbox).values(sent_at=None))
        self._publish_outbox()

    def _settle(self) -> None:
        """Note what the broker acknowledged; drop what was acknowledged long enough ago."""
        with self._lock:
            acknowledged, self._acknowledged = self._acknowledged, []
        done = [row for mid in acknowledged if (row := self._in_flight.pop(mid, None)) is not None]
        now = time.time()
        old = outbox.c.sent_at < now - KEEP_SENT_S
        with self._db.read() as connection:
            stale = connection.scalar(select(outbox.c.id).where(old).limit(1))
        if done or (stale is not None and self.connected):
            with self._db.write() as connection:
                connection.execute(update(outbox).where(outbox.c.id.in_(done)).values(sent_at=now))
                if self.connected:
                    connection.execute(delete(outbox).where(old))

    def _publish_outbox(self) -> None:
        busy = set(self._in_flight.values())
        if len(busy) >= WINDOW:
            return
        query = select(outbox).where(outbox.c.sent_at.is_(None), outbox.c.id.not_in(busy))
        with self._db.read() as connection:
            rows = connection.execute(query.order_by(outbox.c.id).limit(WINDOW - len(busy))).all()
        for row in rows:
            if self._resend:  # reconnected meanwhile: begin anew, in order
                return
            info = self._client.publish(row.topic, row.payload, qos=1, retain=row.retain)
            if info.rc != mqtt.MQTT_ERR_SUCCESS:
                return
            self._in_flight[info.mid] = row.id
            self.published += 1

    def _publish_retained(self) -> None:
        """The broker has lost its memory: tell it again what every device should do."""
        with self._db.read() as connection:
            rows = connection.execute(select(retained)).all()
        for row in rows:
            self._client.publish(row.topic, row.payload, qos=1, retain=True)
