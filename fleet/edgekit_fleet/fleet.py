"""What the API works on: one object that holds the parts of a running fleet."""

from __future__ import annotations

import logging
import ssl
import threading
import time
from dataclasses import dataclass, field

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgekit.files import write_bytes
from edgekit_fleet import devices
from edgekit_fleet.auth import Gatekeeper
from edgekit_fleet.broker import Broker
from edgekit_fleet.config import Keys, State
from edgekit_fleet.db import Database
from edgekit_fleet.enroll import Address
from edgekit_fleet.releases import make_assignment
from edgekit_fleet.rollout.engine import RolloutEngine
from edgekit_fleet.tls import TlsFiles, write_identity
from edgekit_fleet.worker import Worker

log = logging.getLogger(__name__)


@dataclass
class Fleet:
    """A running fleet; `request.app.state.fleet` in every handler."""

    state: State
    keys: Keys
    db: Database
    gate: Gatekeeper
    engine: RolloutEngine
    address: Address
    files: TlsFiles
    device_tls: ssl.SSLContext
    broker: Broker
    worker: Worker
    started_at: float = field(default_factory=time.time)
    stopping: threading.Event = field(default_factory=threading.Event)

    def renew_revocations(self, *devices_to_end: str) -> None:
        """Put the present revocation list into force everywhere; end these devices' MQTT sessions."""
        renew_crl(self.db, self.keys, self.files)
        self.device_tls.load_verify_locations(cafile=str(self.files.crl))
        self.broker.reload()
        for device in devices_to_end:
            threading.Thread(target=self._end_session, args=(device,), daemon=True).start()

    def _end_session(self, device: str) -> None:
        """Take its session over with a certificate made for this moment: MQTT ends the older connection.

        Twice, because the broker reads the revocation list in its own time.
        """
        for wait_s in (0.5, 3.0):
            if self.stopping.wait(wait_s):
                return
            key, certificate = (self.files.crl.parent / f"end-{device}.{end}" for end in ("key", "pem"))
            try:
                write_identity(self.keys, device, key, certificate)
                _connect_once(self, certificate, key)
            except Exception as exc:  # it is a courtesy: the device's messages are dropped anyway
                log.warning("cannot end the session of %s: %s", device, exc)
            finally:
                key.unlink(missing_ok=True)
                certificate.unlink(missing_ok=True)


def make_engine(db: Database, keys: Keys) -> RolloutEngine:
    """The rollout engine with the fleet's keys bound to its assignments."""

    return RolloutEngine(db, lambda connection, *rest: make_assignment(connection, keys, *rest))


def renew_crl(db: Database, keys: Keys, files: TlsFiles) -> None:
    write_bytes(files.crl, devices.revocation_list(db, keys))


def _connect_once(fleet: Fleet, certificate: object, key: object) -> None:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    context = ssl.create_default_context(cafile=str(fleet.files.ca))
    context.load_cert_chain(str(certificate), str(key))
    client.tls_set_context(context)
    done = threading.Event()
    client.on_connect = lambda *_: done.set()
    host, port = fleet.broker.connect_address
    client.connect(host, port, clean_start=True)
    client.loop_start()
    done.wait(5)
    client.disconnect()
    client.loop_stop()
