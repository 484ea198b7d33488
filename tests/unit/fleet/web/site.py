"""The dashboard on a real HTTP server, over a real database full of whatever the test wants."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import uvicorn
from sqlalchemy import insert, update
from starlette.applications import Starlette

from edgekit.wire import JobState, JobUpdate
from edgekit_fleet import db as tables
from edgekit_fleet.api.errors import HANDLERS
from edgekit_fleet.api.guard import Guard, cookie_name
from edgekit_fleet.auth import Gatekeeper
from edgekit_fleet.config import Keys, State, init
from edgekit_fleet.db import Database
from edgekit_fleet.releases import make_assignment
from edgekit_fleet.rollout.create import RolloutRequest, create
from edgekit_fleet.rollout.engine import RolloutEngine
from edgekit_fleet.rollout.jobs import apply_update
from edgekit_fleet.rollout.strategies import Phase, Strategy
from edgekit_fleet.web import ROUTES

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
GATE = {"gate": "accuracy", "passed": True, "reason": "accuracy 0.9137 >= 0.99 x 0.9125"}
VARIANT: dict[str, Any] = {
    "variant": "jetson.onnxruntime.int8",
    "profile": "jetson",
    "engine": "onnxruntime",
    "precision": "int8",
    "size_bytes": 61234,
    "accuracy": 0.9137,
    "baseline_accuracy": 0.9125,
    "latency_p95_ms": 0.41,
    "gates": [GATE],
    "gate_skipped": False,
}


@dataclass
class Site:
    """A fleet without broker, and what a browser does with its pages."""

    db: Database
    keys: Keys
    engine: RolloutEngine
    gate: Gatekeeper
    state: State
    port: int = 0
    headers: dict[str, str] = field(default_factory=dict)

    def release(self, digest: str, name: str, version: str, **more: object) -> None:
        path = self.state.releases / f"{digest[7:]}.edgekit"
        path.write_bytes(b"not a bundle")
        row = {"digest": digest, "name": name, "version": version, "file_sha256": "", "signer": "5" * 64}
        size: dict[str, Any] = {"size_bytes": 123456, "path": str(path.relative_to(self.state.folder))}
        values = {**row, **size, "variants": [VARIANT], "created_at": time.time(), **more}
        with self.db.write() as connection:
            connection.execute(insert(tables.releases), values)

    def device(self, name: str, **more: object) -> None:
        row = {"id": name, "profile": "jetson", "serial": name, "fingerprint": ""}
        sealing = self.keys.recipient.to_pem().decode()
        runs = {"release": "kws:1", "bundle_digest": OLD, "created_at": time.time(), "online": True}
        with self.db.write() as connection:
            values = {**row, "sealing_key_pem": sealing, **runs, "last_seen": time.time(), **more}
            connection.execute(insert(tables.devices), values)

    def telemetry(self, device: str, seq: int, **more: object) -> None:
        values = {
            "edgekit_requests_total": 50.0,
            "edgekit_request_errors_total": 1.0,
            "edgekit_rss_mib": 80.5,
            "edgekit_input_drift_psi": 0.31,
        }
        buckets = [0, 0, 10, 30, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0]
        row = {
            "device": device,
            "boot": "b",
            "seq": seq,
            "received_at": time.time() - 100 + seq,
            "windows": 1,
        }
        rest = {
            "window_s": 1.0,
            "values": values,
            "latency_buckets": buckets,
            "classes": {"yes": 30, "no": 20},
        }
        with self.db.write() as connection:
            connection.execute(insert(tables.telemetry), {**row, **rest, **more})

    def rollout(self, release: str = "kws:2", *phases: Phase) -> int:
        strategy = Strategy(phases or (Phase("canary", "1", soak_s=30), Phase("everyone")))
        request = RolloutRequest(release, strategy=strategy)
        return int(create(self.db, self.engine, request, time.time())["id"])

    def report(self, rollout: int, state: JobState, **more: str) -> str:
        """Every device that was told reports; the name of the last."""
        table = tables.jobs.c
        with self.db.write() as connection:
            where = (table.rollout == rollout) & table.notified_at.is_not(None)
            for row in connection.execute(tables.jobs.select().where(where)).all():
                update_ = JobUpdate(row.id, time.monotonic_ns(), state, **more)
                apply_update(connection, row.device, update_, time.time())
                last = str(row.device)
        self.engine.tick(time.time())
        return last

    def runs(self, device: str, **values: object) -> None:
        with self.db.write() as connection:
            connection.execute(update(tables.devices).where(tables.devices.c.id == device).values(values))

    def login(self) -> str:
        """As the login page does: a session cookie. The CSRF token for forms."""
        session, cookie = self.gate.new_session()
        self.headers["Cookie"] = f"{cookie_name(self.port)}={cookie}"
        return self.gate.csrf(session)

    def get(self, path: str) -> tuple[int, str, Mapping[str, str]]:
        return self._request("GET", path)

    def post(self, path: str, **form: str) -> tuple[int, str, Mapping[str, str]]:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self._request("POST", path, urlencode(form), headers)

    def _request(
        self, method: str, path: str, body: str | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str, Mapping[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {}), "Accept": "text/html"})
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, text, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    """A dashboard on a free port of this machine, behind the real guard."""
    state = State(folder / "state")
    keys = init(state)
    db = Database.file(state.database)
    db.create()
    engine = RolloutEngine(db, lambda connection, *rest: make_assignment(connection, keys, *rest))
    made = Site(db, keys, engine, Gatekeeper(keys.admin_token, keys.cookie), state)
    app = Starlette(routes=ROUTES, exception_handlers=HANDLERS)
    app.state.fleet = SimpleNamespace(db=db, keys=keys, engine=engine, state=state, gate=made.gate)
    config = uvicorn.Config(lambda *_: None, port=0, log_level="error", lifespan="off", ws="none")
    with config.bind_socket() as listener:
        made.port = listener.getsockname()[1]
        config.app = Guard(app, made.gate, cookie_name(made.port))
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield made
        finally:
            server.should_exit = True
            thread.join()
            db.close()


class Page(HTMLParser):
    """Elements and visible text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]
