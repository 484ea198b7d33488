"""One client cannot starve another: floods of requests, connections and large bodies, against a real process.

Clients are told apart by address here: the flood comes from 127.0.0.5.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.model import EngineRange
from edgekit.client import Client
from edgekit.errors import Overloaded
from edgekit_agent import tokens
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.safety import Safety
from tests.attacks.test_http import POST, statuses
from tests.support.serving import Candidate, Stand, linear, stand
from tests.support.stranger import install

GREEDY = "127.0.0.5"
SLOW = [13.0, 0.02, 0.0, 0.0]
"""An input that takes the stranger's engine 20 ms."""


def sleeper() -> Candidate:
    base = linear(1.0)
    config = dataclasses.replace(
        base.load.config, engine=EngineRange("stranger"), options={"mode": "slow", "intra_threads": 1}
    )
    return base.changed(config=config)


def message(values: list[float], extra: str = "") -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": values}
    body = json.dumps({"inputs": [tensor]}).encode()
    head = f"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


ONE_BY_ONE = Limits(max_joined=1, inline_ms=0)


class Flood:
    """Connections that ask again as soon as they are answered, and count the statuses."""

    def __init__(self, port: int, connections: int, sent: bytes, host: str = GREEDY) -> None:
        self.statuses: Counter[int] = Counter()
        self._port, self._count, self._sent, self._host = port, connections, sent, host
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._stop = threading.Event()

    def __enter__(self) -> Flood:
        self._thread.start()
        deadline = time.monotonic() + 20
        while sum(self.statuses.values()) < 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask() for _ in range(self._count)))

    async def _ask(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", self._port, local_addr=(self._host, 0)
                )
                try:
                    await self._talk(reader, writer)
                finally:
                    writer.close()
            await asyncio.sleep(0.01)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not self._stop.is_set():
            writer.write(self._sent)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.lower().strip().split(b"\r\n")[1:])
            await reader.readexactly(int(fields[b"content-length"]))
            self.statuses[int(head.split()[1])] += 1
            if fields.get(b"connection") == b"close":
                return


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """An engine that takes its time, one request after the other."""
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path)))
    with stand(tmp_path, ONE_BY_ONE) as made:
        assert sleeper().into(made.serving).ok
        yield made


def latencies(asked: Client, count: int, values: list[float]) -> list[float]:
    """Of so many requests, one after the other; none may fail."""
    found = []
    for _ in range(count):
        begin = time.monotonic()
        asked.infer(np.array([values], np.float32))
        found.append(time.monotonic() - begin)
    return found


def test_a_flood_of_requests(slow: Stand) -> None:
    """The greedy client's queue is 48 deep, which is a second's work; the modest one waits for two runs.
    Two of twenty may take longer: a machine that stands still for a moment proves nothing."""
    with Client(f"http://{slow.address}", retries=0, shared_memory=False) as modest:
        modest.infer(np.array([SLOW], np.float32))
        with Flood(slow.port, 90, message(SLOW)) as flood:
            found = latencies(modest, 20, SLOW)
        assert sorted(found)[10] < 0.2 and sorted(found)[17] < 0.5, found
        assert set(flood.statuses) == {200, 429} and flood.statuses[200] > 20, flood.statuses


def test_a_flood_under_another_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both come from one address, but with tokens of their own."""
    file = tmp_path / "tokens.json"
    greedy, _ = tokens.create(file, "greedy", ("infer",))
    modest, _ = tokens.create(file, "modest", ("infer",))
    monkeypatch.setenv("PYTHONPATH", str(install(tmp_path)))
    with stand(tmp_path, ONE_BY_ONE, safety=Safety(tokens=str(file))) as made:
        assert sleeper().into(made.serving).ok
        sent = message(SLOW, f"Authorization: Bearer {greedy}\r\n")
        with Client(f"http://{made.address}", token=modest, retries=0) as asked:
            asked.infer(np.array([SLOW], np.float32))
            with Flood(made.port, 60, sent, "127.0.0.1") as flood:
                found = latencies(asked, 20, SLOW)
        assert sorted(found)[10] < 0.2 and sorted(found)[17] < 0.5, found
        assert set(flood.statuses) == {200, 429}, flood.statuses


def test_a_flood_of_connections(tmp_path: Path) -> None:
    """One address gets most of the connections; what it leaves idle goes to others when all is full."""
    with stand(tmp_path, Limits(max_connections=16)) as made:
        assert linear(1.0).into(made.serving).ok
        held = [connected(made.port, f"127.0.0.{5 + number // 12}") for number in range(24)]
        time.sleep(0.5)
        for _ in range(3):
            sock = connected(made.port, "127.0.0.1")
            sock.sendall(POST.replace(b"Host: x\r\n", b"Host: x\r\nConnection: close\r\n"))
            said = b""
            while data := sock.recv(65536):
                said += data
            sock.close()
            assert statuses(said) == [200]
        for sock in held:
            sock.close()


def connected(port: int, host: str) -> socket.socket:
    sock = socket.socket()
    sock.settimeout(20)
    sock.bind((host, 0))
    sock.connect(("127.0.0.1", port))
    return sock


def test_a_flood_of_large_bodies(tmp_path: Path) -> None:
    """What is on its way in is bounded in all; a client that takes its part does not take the others'."""
    limits = Limits(max_body_bytes=4 << 20, max_buffered_bytes=16 << 20, max_batch=1 << 20)
    head = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n"
    with stand(tmp_path, limits) as made:
        assert linear(1.0).into(made.serving).ok
        before = made.serving.stats().rss_mib
        held = [connected(made.port, GREEDY) for _ in range(20)]
        for sock in held:
            with contextlib.suppress(ConnectionError):
                sock.sendall(head + bytes(3_900_000))
        deadline = time.monotonic() + 20
        open_ones, refused = list(held), 0
        while refused < 17 and time.monotonic() < deadline:
            readable, _, _ = select.select(open_ones, [], [], 1)
            for sock in readable:
                open_ones.remove(sock)
                refused += sock.recv(12) == b"HTTP/1.1 503"
        assert refused == 17 and made.serving.stats().rss_mib - before < 40
        with Client(f"http://{made.address}", retries=0, shared_memory=False) as modest:
            rows = np.ones((200_000, 4), np.float32)
            assert np.array_equal(modest.infer(rows), rows)
        for sock in held:
            sock.close()
        deadline = time.monotonic() + 20
        while made.serving.stats().connections > 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        with Client(f"http://{made.address}", retries=0, shared_memory=False) as again:
            assert np.array_equal(again.infer(rows), rows)  # what was held is free again


def test_what_is_full_is_told_as_such(slow: Stand) -> None:
    """A client of the greedy one's address shares its lot: 429, which the client library calls Overloaded."""
    told = pytest.raises(Overloaded, match="requests of yours")
    flood = Flood(slow.port, 90, message(SLOW), "127.0.0.1")
    with flood, Client(f"http://{slow.address}", retries=0) as hasty, told:
        latencies(hasty, 500, SLOW)
