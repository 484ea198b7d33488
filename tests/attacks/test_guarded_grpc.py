"""TLS, clients' certificates and bearer tokens over HTTP/2: the same doors are shut as over HTTP/1.1."""

from __future__ import annotations

import dataclasses
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from edgekit_agent import tokens
from tests.attacks.test_guarded import Papers, papers_in
from tests.support.serving import Stand, linear, stand

X = np.ones((1, 4), np.float32)


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    (tmp_path / "papers").mkdir()
    return papers_in(tmp_path / "papers")


@pytest.fixture
def agent(papers: Papers, tmp_path: Path) -> Iterator[Stand]:
    """TLS and tokens."""
    safety = dataclasses.replace(papers.safety, tokens=str(papers.tokens))
    with stand(tmp_path, safety=safety) as made:
        assert linear(2.0).into(made.serving).ok
        yield made


def client(made: Stand, papers: Papers, *, certificate: bool = False) -> Any:
    folder = papers.folder
    pair = [(folder / name).read_bytes() for name in ("client.key", "client.pem")] if certificate else []
    credentials = grpc.ssl_channel_credentials(Path(papers.ca).read_bytes(), *pair)
    return triton.InferenceServerClient(made.address, ssl=True, creds=credentials)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def tensor() -> Any:
    made = triton.InferInput("x", list(X.shape), "FP32")
    made.set_data_from_numpy(X)
    return made


def test_each_role_opens_what_it_is_for(agent: Stand, papers: Papers) -> None:
    asked = client(agent, papers)
    infer, observe = bearer(papers.infer), bearer(papers.observe)
    assert asked.infer("kws", [tensor()], headers=infer).as_numpy("y").tolist() == [[2.0] * 4]
    assert asked.is_server_live() and asked.is_server_ready(), "probes need no token"
    for headers in (infer, observe):
        assert asked.get_model_metadata("kws", headers=headers).name == "kws"
    assert asked.get_inference_statistics("kws", headers=observe).model_stats[0].name == "kws"
    refused: list[tuple[Callable[[], Any], str, str]] = [
        (lambda: asked.infer("kws", [tensor()]), "UNAUTHENTICATED", "token is needed"),
        (lambda: asked.infer("kws", [tensor()], headers=bearer("ekt_x")), "UNAUTHENTICATED", "unknown"),
        (lambda: asked.infer("kws", [tensor()], headers=observe), "PERMISSION_DENIED", "role infer"),
        (lambda: asked.get_inference_statistics(headers=infer), "PERMISSION_DENIED", "role observe"),
        (lambda: asked.get_model_metadata("kws"), "UNAUTHENTICATED", "token is needed"),
        (lambda: asked.register_system_shared_memory("a", "/a", 4), "UNAUTHENTICATED", "token is needed"),
    ]
    for call, code, text in refused:
        with pytest.raises(InferenceServerException, match=text) as caught:
            call()
        assert caught.value.status() == f"StatusCode.{code}"
    asked.close()


def test_a_token_that_is_revoked_ends_its_stream(agent: Stand, papers: Papers) -> None:
    asked = client(agent, papers)
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    asked.start_stream(lambda result, error: got.put((result, error)), headers=bearer(papers.infer))
    asked.async_stream_infer("kws", [tensor()])
    result, error = got.get(timeout=20)
    assert error is None and result.as_numpy("y").tolist() == [[2.0] * 4]
    tokens.revoke(papers.tokens, papers.infer.split("_")[1])
    _, error = got.get(timeout=20)
    assert "UNAUTHENTICATED" in str(error)
    asked.stop_stream()
    asked.close()


def test_ordinary_requests_over_http2_need_the_token_too(agent: Stand, papers: Papers) -> None:
    def curl(*options: str) -> str:
        run = [
            "curl",
            "-sS",
            "--max-time",
            "20",
            "--cacert",
            papers.ca,
            "-w",
            " %{http_version} %{http_code}",
        ]
        run += [*options, f"https://{agent.address}/v2/models/kws"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    assert curl().endswith("} 2 401")
    assert curl("-H", f"Authorization: Bearer {papers.infer}").endswith("} 2 200")
    # 100 kB are not taken from somebody who may not send them.
    assert curl("-d", "x" * 100_000, "-H", "Expect:").endswith("} 2 401")


def test_a_client_without_a_certificate_does_not_get_in(papers: Papers, tmp_path: Path) -> None:
    with stand(tmp_path, safety=dataclasses.replace(papers.safety, client_ca=papers.ca)) as made:
        assert linear(2.0).into(made.serving).ok
        known = client(made, papers, certificate=True)
        assert known.infer("kws", [tensor()]).as_numpy("y").tolist() == [[2.0] * 4]
        known.close()
        stranger = client(made, papers)
        with pytest.raises(InferenceServerException) as caught:
            stranger.infer("kws", [tensor()], client_timeout=10)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        stranger.close()


def test_the_unix_socket_needs_no_token(agent: Stand) -> None:
    local = triton.InferenceServerClient(f"unix:{agent.path}")
    assert local.infer("kws", [tensor()]).as_numpy("y").tolist() == [[2.0] * 4]
    local.close()


def test_a_token_that_is_revoked_ends_calls_on_the_same_connection(agent: Stand, papers: Papers) -> None:
    """Also those whose header the connection knows by heart."""
    asked = client(agent, papers)
    for _ in range(3):
        assert asked.infer("kws", [tensor()], headers=bearer(papers.infer)).as_numpy("y").tolist() == [
            [2.0] * 4
        ]
    tokens.revoke(papers.tokens, papers.infer.split("_")[1])
    end = time.monotonic() + 20
    with pytest.raises(InferenceServerException) as caught:
        while time.monotonic() < end:
            asked.infer("kws", [tensor()], headers=bearer(papers.infer))
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"
    asked.close()
