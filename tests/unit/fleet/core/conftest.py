"""A fleet's state folder, its keys and database, and devices in it; no process, no network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.crypto.keys import SealingKey, SigningKey
from edgekit.crypto.x509 import make_csr, new_device_key
from edgekit.wire import EnrollAnswer, EnrollRequest
from edgekit_fleet import config, enroll
from edgekit_fleet.config import Keys, State
from edgekit_fleet.db import Database
from edgekit_fleet.enroll import Address, TokenRequest

BUILDER = SigningKey.generate().public()
ADDRESS = Address("https://fleet:1", "https://fleet:2", "fleet", 3)


@dataclass
class Home:
    """What `edgekit-fleet init` and an empty database make."""

    state: State
    keys: Keys
    db: Database
    sealing: dict[str, SealingKey] = field(default_factory=dict)

    def token(self, **wanted: object) -> str:
        request = TokenRequest(**wanted)  # type: ignore[arg-type]
        return enroll.create_token(self.db, self.keys, ADDRESS, request, "test").token

    def request(self, token: str, device: str, profile: str = "") -> EnrollRequest:
        key = self.sealing.setdefault(device, SealingKey.generate())
        csr = make_csr(new_device_key(), "any").decode()
        return EnrollRequest(token, csr, key.public().to_pem().decode(), profile, device)

    def enroll(self, request: EnrollRequest) -> tuple[EnrollAnswer, bool]:
        return enroll.enroll(self.db, self.keys, ADDRESS, [BUILDER], request)

    def device(self, name: str) -> EnrollAnswer:
        return self.enroll(self.request(self.token(device=name), name))[0]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    state = State(tmp_path / "state")
    keys = config.init(state)
    db = Database.file(state.database)
    db.create()
    yield Home(state, keys, db)
    db.close()
