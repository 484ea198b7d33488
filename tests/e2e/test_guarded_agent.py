"""`edgekit-agent` as on a real network: on every address, with TLS and tokens, asked by edgekit.Client."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.client import Client
from edgekit.crypto.x509 import CertificateAuthority
from edgekit.errors import AuthError, SystemFault
from tests.support.agent_process import AGENT
from tests.support.bundles import Keys
from tests.support.devices import X, answers, release, variant


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A bundle, its keys and a server's certificate."""
    keys = Keys()
    (tmp_path / "builder.pub").write_bytes(keys.signer.public().to_pem())
    release(tmp_path, "1.0.0", variant(1.0), keys=keys, encrypt=False)
    authority = CertificateAuthority.create("site")
    authority.save(tmp_path)
    key, certificate = authority.issue_server(["localhost"], ["127.0.0.1"])
    (tmp_path / "server.key").write_bytes(key)
    (tmp_path / "server.pem").write_bytes(certificate)
    return tmp_path


def command(*words: str | Path) -> Any:
    done = subprocess.run([AGENT, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def serving(place: Path, *words: str) -> list[str]:
    (bundle,) = place.glob("*.edgekit")
    return [AGENT, "serve", str(bundle), "--trust", str(place / "builder.pub"), "--port", "0", *words]


@contextlib.contextmanager
def agent(place: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    with (place / "log").open("w") as log:
        process = subprocess.Popen(serving(place, *words), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, (place / "log").read_text()
        yield process, json.loads(line)
    finally:
        process.terminate()
        process.wait(30)
        assert process.stdout is not None
        process.stdout.close()


def test_on_every_address_with_tls_and_tokens(place: Path) -> None:
    tokens = place / "tokens.json"
    made = command("token", "create", "--tokens", tokens, "--name", "app")
    guard = ["--tls-cert", str(place / "server.pem"), "--tls-key", str(place / "server.key")]
    with agent(place, "--host", "0.0.0.0", *guard, "--tokens", str(tokens)) as (_, said):
        port = said["endpoint"].rpartition(":")[2]
        assert said["endpoint"].startswith("https://0.0.0.0:")
        address, ca = f"https://127.0.0.1:{port}", str(place / "ca.pem")
        with Client(address, token=made["token"], ca=ca) as known, Client(address, ca=ca) as unknown:
            np.testing.assert_array_equal(known.infer(X), answers(1.0))
            assert unknown.ready()
            with pytest.raises(AuthError):
                unknown.infer(X)
            command("token", "revoke", made["id"], "--tokens", tokens)
            with pytest.raises(AuthError):
                while True:
                    known.infer(X)


def test_it_does_not_begin_to_listen_unguarded(place: Path) -> None:
    words = serving(place, "--host", "0.0.0.0")
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "without TLS" in done.stderr and "--tls-cert" in done.stderr
    assert not done.stdout


def test_an_agent_that_is_told_to_stop_answers_what_it_has_begun(place: Path) -> None:
    """Under load, each call is answered, or never reached anybody; none is lost on the way."""
    answered, problems = [0] * 4, []
    stop = threading.Event()

    def ask(number: int, address: str) -> None:
        with Client(address, retries=0) as asked:
            while not stop.is_set():
                try:
                    np.testing.assert_array_equal(asked.infer(X), answers(1.0))
                    answered[number] += 1
                except SystemFault as exc:
                    problems.append(exc.message)
                    return

    with agent(place, "--unix", str(place / "serve.sock")) as (process, said):
        where = [said["endpoint"], f"unix:{place / 'serve.sock'}"] * 2
        threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(where)]
        for thread in threads:
            thread.start()
        while min(answered) < 50:
            assert all(thread.is_alive() for thread in threads), problems
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        stop.set()
        assert process.wait(30) == 0
    assert len(problems) == 4 and all("no agent can be reached" in problem for problem in problems), problems
