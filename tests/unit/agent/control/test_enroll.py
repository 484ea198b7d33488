"""Enrolment against a real TLS endpoint that answers as a fleet does."""

from __future__ import annotations

import base64
import dataclasses
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edgekit.crypto.keys import RecipientKey, SealingKey, SigningKey
from edgekit.errors import AuthError, InputError, SystemFault
from edgekit_agent import config, enroll
from edgekit_agent.config import ServeSection
from tests.support.standin import Identity


class Endpoint:
    def __init__(self, folder: Path) -> None:
        self.identity = Identity(folder / "identity")
        self.requests: list[dict[str, Any]] = []
        self.refuse: tuple[int, bytes] | None = None
        self.rename = ""
        self.builder, self.assignment = SigningKey.generate(), SigningKey.generate()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, outer.identity.ca.certificate_pem)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(body)
                self.reply(*(outer.refuse or (200, json.dumps(outer.answer(body)).encode())))

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(HTTPServer):
            def get_request(self) -> tuple[Any, Any]:
                raw, address = super().get_request()
                return outer.context.wrap_socket(raw, server_side=True), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self.context = self.identity.server_context(mutual=False)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._server = Server(("127.0.0.1", 0), Handler)
        self.token = enroll.Token(
            f"https://127.0.0.1:{self._server.server_address[1]}", self.identity.ca.pin, "secret"
        )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["device"] or "chosen"
        return {
            "device": name,
            "tenant": "default",
            "certificate_pem": self.identity.ca.sign_csr(
                body["csr_pem"].encode(), self.rename or name
            ).decode(),
            "ca_pem": self.identity.ca.certificate_pem.decode(),
            "broker_host": "127.0.0.1",
            "broker_port": 8883,
            "device_url": "https://127.0.0.1:8444",
            "assignment_key_pem": self.assignment.public().to_pem().decode(),
            "builder_keys_pem": [self.builder.public().to_pem().decode()],
        }

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def join(self, state: Path, token: enroll.Token | None = None, device: str = "d1") -> Path:
        return enroll.enroll(
            token or self.token, state, device=device, profile_name="cpu", emulated=True,
            serve=ServeSection(port=0),
        )  # fmt: skip


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    made = Endpoint(tmp_path)
    yield made
    made.close()


def nothing_left(folder: Path) -> bool:
    return sorted(path.name for path in folder.iterdir()) == ["identity"]


def test_enrolled_state_folder(endpoint: Endpoint, tmp_path: Path) -> None:
    state = tmp_path / "state"
    loaded = config.load(endpoint.join(state))
    assert (loaded.device.id, loaded.device.profile, loaded.device.emulated) == ("d1", "generic-cpu", True)
    assert loaded.fleet is not None and loaded.fleet.broker_port == 8883
    assert state.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.iterdir())
    sent = endpoint.requests[0]
    assert (
        RecipientKey.from_pem(sent["sealing_key_pem"].encode())
        == SealingKey.load(Path(loaded.fleet.sealing_key)).public()
    )
    assert sent["token"] == "secret" and "PRIVATE" not in json.dumps(sent)
    with pytest.raises(InputError, match="enrolled device already"):
        endpoint.join(state)


def test_the_fleet_chooses_the_name(endpoint: Endpoint, tmp_path: Path) -> None:
    assert config.load(endpoint.join(tmp_path / "s", device="")).device.id == "chosen"


def test_another_ca_than_the_pinned_one(endpoint: Endpoint, tmp_path: Path) -> None:
    token = dataclasses.replace(endpoint.token, ca_sha256="0" * 64)
    with pytest.raises(AuthError, match="its CA differs"):
        endpoint.join(tmp_path / "s", token)
    assert not endpoint.requests and nothing_left(tmp_path)


def test_used_token(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.refuse = (401, b'{"error": "the token was used", "hint": "make a new one"}')
    with pytest.raises(AuthError) as caught:
        endpoint.join(tmp_path / "s")
    assert (caught.value.message, caught.value.hint) == ("the token was used", "make a new one")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("answer", [(500, b"oops"), (200, b"{}"), (200, b"not json")])
def test_senseless_answer(endpoint: Endpoint, tmp_path: Path, answer: tuple[int, bytes]) -> None:
    endpoint.refuse = answer
    with pytest.raises((InputError, SystemFault)):
        endpoint.join(tmp_path / "s")
    assert nothing_left(tmp_path)


def test_certificate_for_another_device(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.rename = "somebody-else"
    with pytest.raises(Exception, match="another device"):
        endpoint.join(tmp_path / "s")
    assert nothing_left(tmp_path)


def test_no_fleet(tmp_path: Path) -> None:
    token = enroll.Token("https://127.0.0.1:9", "0" * 64, "s")
    with pytest.raises(SystemFault, match="no fleet answers"):
        enroll.enroll(
            token, tmp_path / "s", device="", profile_name="auto", emulated=False, serve=ServeSection()
        )
    assert not list(tmp_path.iterdir())


def encoded(plain: object) -> str:
    return "ek1." + base64.urlsafe_b64encode(json.dumps(plain).encode()).rstrip(b"=").decode()


def test_token_round_trip() -> None:
    plain = {"url": "https://h:1", "ca_sha256": "a" * 64, "secret": "s"}
    assert enroll.parse_token(encoded(plain)) == enroll.Token("https://h:1", "a" * 64, "s")
    assert enroll.parse_token(encoded(plain), "https://other:2/").url == "https://other:2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ek1.",
        "ek1.%%%",
        "ek2.e30",
        "ek1.e30",
        encoded({"url": "http://h", "ca_sha256": "", "secret": ""}),
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(AuthError):
        enroll.parse_token(text)
