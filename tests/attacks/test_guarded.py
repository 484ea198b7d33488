"""TLS, clients' certificates and bearer tokens, against real serving processes: who gets in, who does not."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.client import Client
from edgekit.crypto.x509 import CertificateAuthority, make_csr, new_device_key
from edgekit.errors import AuthError, ConfigError, SystemFault
from edgekit_agent import tokens
from edgekit_agent.config import ServeSection
from edgekit_agent.listeners import bind
from edgekit_agent.serve.grpc.h2 import frames, hpack
from edgekit_agent.serve.handshakes import MAX_PENDING_PER_HOST
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.safety import Safety
from edgekit_agent.serve.server import PARSERS
from tests.attacks.test_http import BODY, POST, statuses
from tests.support.clients import KINDS, client
from tests.support.serving import Stand, linear, stand

X = np.ones((1, 4), np.float32)


@dataclasses.dataclass(frozen=True)
class Papers:
    """An authority, a server's pair, a client's pair, and tokens of each role."""

    folder: Path
    authority: CertificateAuthority
    infer: str
    observe: str

    @property
    def ca(self) -> str:
        return str(self.folder / "ca.pem")

    @property
    def safety(self) -> Safety:
        return Safety(str(self.folder / "server.pem"), str(self.folder / "server.key"))

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.json"

    def renew(self) -> None:
        key, certificate = self.authority.issue_server(["localhost"], ["127.0.0.1"])
        (self.folder / "server.key").write_bytes(key)
        (self.folder / "server.pem").write_bytes(certificate)


def papers_in(folder: Path) -> Papers:
    authority = CertificateAuthority.create("test")
    authority.save(folder)
    key = new_device_key()
    (folder / "client.key").write_bytes(key)
    (folder / "client.pem").write_bytes(authority.sign_csr(make_csr(key, "app"), "app"))
    file = folder / "tokens.json"
    infer, observe = (tokens.create(file, role, (role,))[0] for role in tokens.ROLES)
    made = Papers(folder, authority, infer, observe)
    made.renew()
    return made


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return papers_in(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module", params=PARSERS)
def agent(
    request: pytest.FixtureRequest, papers: Papers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stand]:
    """TLS and tokens."""
    safety = dataclasses.replace(papers.safety, tokens=str(papers.tokens))
    with stand(tmp_path_factory.mktemp("agent"), parser=request.param, safety=safety) as made:
        assert linear(2.0).into(made.serving).ok
        yield made


def address(made: Stand) -> str:
    return f"https://{made.address}"


def tls(made: Stand, papers: Papers) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=papers.ca)
    return context.wrap_socket(made.connect(), server_hostname="127.0.0.1")


def ask(made: Stand, papers: Papers, message: bytes) -> list[int]:
    """The statuses of the answers, until the agent closes."""
    with tls(made, papers) as sock:
        sock.sendall(message)
        said = b""
        while data := sock.recv(65536):
            said += data
    return statuses(said)


@pytest.mark.parametrize("kind", KINDS)
def test_each_role_opens_what_it_is_for(kind: str, agent: Stand, papers: Papers) -> None:
    with client(kind, address(agent), ca=papers.ca, token=papers.infer) as asked:
        assert asked.infer(X).tolist() == [[2.0] * 4] and asked.model().name == "kws"
        with pytest.raises(AuthError, match="role observe"):
            asked.stats()
    with client(kind, address(agent), ca=papers.ca, token=papers.observe) as asked:
        assert asked.stats()[0].name == "kws" and asked.model().name == "kws"
        with pytest.raises(AuthError, match="role infer"):
            asked.infer(X)
    with client(kind, address(agent), ca=papers.ca) as asked:
        assert asked.ready()  # a probe needs no token
        with pytest.raises(AuthError, match="token is needed"):
            asked.infer(X)
    refused = pytest.raises(AuthError, match="unknown, revoked or expired")
    with client(kind, address(agent), ca=papers.ca, token=papers.infer[:-1] + "~") as asked, refused:
        asked.infer(X)
    with client(kind, agent.path) as asked:
        assert asked.infer(X).tolist() == [[2.0] * 4]  # guarded by its file permissions


@pytest.mark.parametrize(
    "path", ["/metrics", "/%6detrics", "/v2/models/stats", "/v2/models/kws/st%61ts", "/v2/logging"]
)
def test_roles_hold_however_a_path_is_written(agent: Stand, papers: Papers, path: str) -> None:
    line = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
    assert ask(agent, papers, f"{line}{papers.infer}\r\n\r\n".encode()) == [403]
    assert ask(agent, papers, f"{line}{papers.observe}\r\n\r\n".encode()) != [403]


def test_a_body_is_not_taken_from_whom_nobody_knows(agent: Stand, papers: Papers) -> None:
    head = b"POST /v2/models/kws/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n"
    begin = time.monotonic()
    assert ask(agent, papers, head) == [401]  # it answers, and closes, although nothing of the body was sent
    assert time.monotonic() - begin < 10


def test_two_tokens_are_none(agent: Stand, papers: Papers) -> None:
    both = f"Authorization: Bearer {papers.observe}\r\nAuthorization: Bearer {papers.infer}\r\n\r\n"
    assert ask(agent, papers, b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + both.encode()) == [400]


def test_a_revoked_token_ends_on_a_kept_connection(tmp_path: Path, papers: Papers) -> None:
    file = tmp_path / "tokens.json"
    text, token = tokens.create(file, "short", ("infer",))
    with stand(tmp_path, safety=Safety(tokens=str(file))) as made:
        assert linear(1.0).into(made.serving).ok
        with Client(f"http://{made.address}", token=text, retries=0) as asked:
            for _ in range(5):
                asked.infer(X)
            tokens.revoke(file, token.id)
            deadline = time.monotonic() + 20
            with pytest.raises(AuthError):
                while time.monotonic() < deadline:
                    asked.infer(X)
                    time.sleep(0.05)
            fresh, _ = tokens.create(file, "next", ("infer",))
        deadline = time.monotonic() + 20
        with Client(f"http://{made.address}", token=fresh) as asked:
            while not let_in(asked) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert asked.infer(X).tolist() == [[1.0] * 4]


def let_in(asked: Client) -> bool:
    try:
        asked.infer(X)
    except AuthError:
        return False
    return True


def test_without_tls_nothing_is_said(agent: Stand, papers: Papers) -> None:
    with agent.connect() as sock:
        sock.sendall(POST)
        said = b""
        try:
            while data := sock.recv(65536):
                said += data
        except ConnectionResetError:
            pass
    assert b"HTTP" not in said


def two(body: bytes) -> bytes:
    """The request as HTTP/2."""
    fields = [(b":method", b"POST"), (b":scheme", b"https"), (b":path", b"/v2/models/kws/infer")]
    head = frames.frame(frames.HEADERS, frames.END_HEADERS, 1, hpack.encode([*fields, (b":authority", b"x")]))
    data = frames.frame(frames.DATA, frames.END_STREAM, 1, body)
    return frames.PREFACE + frames.settings({}) + head + data


@pytest.mark.parametrize("sent", [POST, two(BODY)], ids=["HTTP/1.1", "HTTP/2"])
def test_an_end_of_tls_during_a_request_is_nothing_for_the_log(
    papers: Papers, tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: bytes
) -> None:
    """The request and the end of TLS arrive together, while the engine has a thread of its own."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=papers.ca)
    made_tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with stand(tmp_path, Limits(inline_ms=0), safety=papers.safety) as made:
        assert linear(1.0).into(made.serving).ok
        with made.connect() as sock:
            done = False
            while not done:
                with contextlib.suppress(ssl.SSLWantReadError):
                    made_tls.do_handshake()
                    made_tls.write(sent)
                    done = True
                    made_tls.unwrap()
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
            with contextlib.suppress(ConnectionError):
                while sock.recv(65536):
                    pass
        with Client(address(made), ca=papers.ca) as asked:
            assert asked.infer(X).tolist() == [[1.0] * 4]
    assert "asyncio" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*TLSv1.*:DeprecationWarning")
@pytest.mark.parametrize("weak", ["TLS 1.1", "no forward secrecy", "CBC"])
def test_weak_tls_is_refused(agent: Stand, papers: Papers, weak: str) -> None:
    context = ssl.create_default_context(cafile=papers.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    if weak == "TLS 1.1":
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
    else:
        context.set_ciphers(
            "AES256-GCM-SHA384:@SECLEVEL=0" if weak != "CBC" else "ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0"
        )
    with agent.connect() as sock, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(sock, server_hostname="127.0.0.1")


def test_a_stranger_is_not_taken_for_the_agent(agent: Stand, papers: Papers, tmp_path: Path) -> None:
    other = papers_in(tmp_path)
    refused = pytest.raises(AuthError, match="TLS failed")
    with Client(address(agent), ca=other.ca, token=papers.infer) as asked, refused:
        asked.infer(X)


@pytest.mark.parametrize("kind", KINDS)
def test_clients_certificates(kind: str, papers: Papers, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = papers_in(tmp_path / "other")
    safety = dataclasses.replace(papers.safety, client_ca=papers.ca)
    with stand(tmp_path, safety=safety) as made:
        assert linear(2.0).into(made.serving).ok
        own = {"cert": str(papers.folder / "client.pem"), "key": str(papers.folder / "client.key")}
        with client(kind, address(made), ca=papers.ca, **own) as asked:
            assert asked.infer(X).tolist() == [[2.0] * 4]
        strange = {"cert": str(other.folder / "client.pem"), "key": str(other.folder / "client.key")}
        for pair in ({}, strange):
            refused = pytest.raises((SystemFault, AuthError))  # TLS 1.3 tells a client after its handshake
            with client(kind, address(made), ca=papers.ca, retries=0, **pair) as asked, refused:
                asked.infer(X)


def test_a_renewed_certificate_is_taken_up(tmp_path: Path) -> None:
    papers = papers_in(tmp_path)
    with stand(tmp_path, safety=papers.safety) as made:
        assert linear(1.0).into(made.serving).ok

        def serial() -> str:
            with tls(made, papers) as sock:
                certificate = sock.getpeercert()
                assert certificate is not None
                return str(certificate["serialNumber"])

        with Client(address(made), ca=papers.ca) as kept:
            kept.infer(X)
            first = serial()
            (tmp_path / "server.pem").write_bytes(b"half a file")
            time.sleep(1.5)
            assert serial() == first
            papers.renew()
            deadline = time.monotonic() + 20
            while serial() == first and time.monotonic() < deadline:
                time.sleep(0.1)
            assert serial() != first
            kept.infer(X)


def test_handshakes_that_never_end_keep_nobody_out(agent: Stand, papers: Papers) -> None:
    """Five hundred of one address: sixteen of them are held, and others are served at once."""
    silent = []
    try:
        for _ in range(500):
            sock = socket.socket()
            sock.bind(("127.0.0.9", 0))
            sock.connect(("127.0.0.1", agent.port))
            silent.append(sock)
        with Client(address(agent), ca=papers.ca, token=papers.infer) as asked:
            begin = time.monotonic()
            asked.infer(X)
            assert time.monotonic() - begin < 5
        held = 0
        for sock in silent:
            sock.setblocking(False)
            try:
                held += bool(sock.recv(1))
            except BlockingIOError:
                held += 1
            except ConnectionError:
                pass
        assert held <= MAX_PENDING_PER_HOST
    finally:
        for sock in silent:
            sock.close()


# --- where an agent refuses to listen


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "without TLS"),
        ({"tokens": "tokens.json"}, "without TLS"),
        ({"tls_cert": "server.pem", "tls_key": "server.key"}, "for everybody"),
        ({"allow_plaintext": True}, "for everybody"),
        ({"allow_anonymous": True}, "without TLS"),
    ],
)
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_off_loopback_nothing_is_open_by_accident(
    papers: Papers, host: str, changes: dict[str, object], text: str
) -> None:
    section = section_of(papers, host, changes)
    with pytest.raises(ConfigError, match=text) as caught:
        bind(section)
    assert "--" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_cert": "server.pem", "tls_key": "server.key", "tokens": "tokens.json"},
        {"tls_cert": "server.pem", "tls_key": "server.key", "client_ca": "ca.pem"},
        {"tls_cert": "server.pem", "tls_key": "server.key", "allow_anonymous": True},
        {"allow_plaintext": True, "allow_anonymous": True},
    ],
)
def test_off_loopback_when_it_is_guarded_or_said_plainly(papers: Papers, changes: dict[str, object]) -> None:
    listeners = bind(section_of(papers, "0.0.0.0", changes))
    assert listeners.endpoint.startswith("https" if "tls_cert" in changes else "http:")
    listeners.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_cert": "missing.pem", "tls_key": "server.key"},
        {"tls_cert": "server.pem", "tls_key": "client.key"},
        {"tls_cert": "server.pem", "tls_key": "server.key", "client_ca": "tokens.json"},
        {"tokens": "missing.json"},
        {"tokens": "ca.pem"},
    ],
)
def test_files_that_cannot_guard_are_refused_before_anything_listens(
    papers: Papers, changes: dict[str, object]
) -> None:
    with pytest.raises(ConfigError):
        bind(section_of(papers, "127.0.0.1", changes))


def section_of(papers: Papers, host: str, changes: dict[str, object]) -> ServeSection:
    """Names of files become paths."""
    real = {name: str(papers.folder / one) if isinstance(one, str) else one for name, one in changes.items()}
    return dataclasses.replace(ServeSection(host=host, port=0), **real)  # type: ignore[arg-type]
