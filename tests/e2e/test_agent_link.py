"""The agent's link to the fleet, in this process, on a real broker."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgekit import codec, wire
from edgekit.wire import JobState, JobUpdate
from edgekit_agent import fetch, link
from edgekit_agent.config import FleetSection
from edgekit_agent.store import Store
from tests.support.devices import wait_for
from tests.support.standin import DEVICE, Broker, standin


class WatchedSocket(ssl.SSLSocket):
    """Notes which threads write and read."""

    writers: ClassVar[set[str]] = set()
    readers: ClassVar[set[str]] = set()

    def send(self, data: Any, flags: int = 0) -> int:
        self.writers.add(threading.current_thread().name)
        return super().send(data, flags)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        self.readers.add(threading.current_thread().name)
        return super().recv(buflen, flags)


def test_one_thread_touches_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's ssl corrupts memory when one thread reads while another writes: the agent would die."""

    def watched(*paths: str) -> ssl.SSLContext:
        context = fetch.tls(*paths)
        context.sslsocket_class = WatchedSocket
        return context

    monkeypatch.setattr(link, "tls", watched)
    with standin(tmp_path) as place:
        broker = Broker(place.identity, tmp_path / "broker")
        broker.start()
        state = tmp_path / "state"
        state.mkdir()
        place.identity.device(DEVICE, state)
        store = Store(state)
        ca, certificate, key = (str(state / name) for name in ("ca.pem", "device.pem", "device.key"))
        fleet = FleetSection("127.0.0.1", broker.port, place.server.url, ca, certificate, key)
        made = link.Link(fleet, DEVICE, wire.TENANT, "boot-1", store, lambda notify: None)
        arrived: set[int] = set()

        def complete(wanted: set[int]) -> bool:
            while not broker.received.empty():
                channel, payload = broker.received.get()
                if channel == wire.JOB_UPDATE:
                    arrived.add(codec.from_json(JobUpdate, payload, what=channel).seq)
            return wanted <= arrived

        try:
            made.start()
            for restart in range(2):
                wait_for("the connection", lambda: made.connected)
                for number in range(50):
                    store.post(f"job-{restart}-{number}", JobState.IN_PROGRESS)
                    made.wake()
                posted = {update.seq for update in store.outbox()}
                wait_for("all of them", lambda: complete(posted))  # noqa: B023 - called at once
                if not restart:
                    broker.stop()
                    wait_for("the end of the connection", lambda: not made.connected)
                    broker.start()
        finally:
            made.stop()
            store.close()
            broker.close()
    assert WatchedSocket.writers == WatchedSocket.readers == {"link-network"}
