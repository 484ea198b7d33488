"""Clients that others wrote for TensorFlow Serving, KServe and TorchServe, and the documents' curl lines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.support import curl
from tests.support.serving import Stand, linear, stand

X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Serves y = 2 x for rows of 4 as kws 0.1.0."""
    with stand(tmp_path_factory.mktemp("clients")) as made:
        assert linear(2.0, "0.1.0").into(made.serving).ok
        yield made


OVMSCLIENT = """
import json, sys
import numpy as np
import ovmsclient
from ovmsclient.tfs_compat.base.errors import InvalidInputError, ModelNotFoundError

client = getattr(ovmsclient, f"make_{sys.argv[3]}_client")(sys.argv[1])
x = np.array(json.loads(sys.argv[2]), np.float32)
for version in (0, 1000):
    for given in (x, x.tolist()):
        assert np.array_equal(client.predict({"x": given}, "kws", version), x * 2)
    assert client.get_model_status("kws", version)[1000]["state"] == "AVAILABLE"
    metadata = client.get_model_metadata("kws", version)
    found = metadata["model_spec"]["version"] if sys.argv[3] == "http" else metadata["model_version"]
    assert int(found) == 1000
for error, call in (
    (ModelNotFoundError, lambda: client.predict({"x": x}, "nope")),
    (ModelNotFoundError, lambda: client.predict({"x": x}, "kws", 9)),
    (ModelNotFoundError, lambda: client.get_model_status("nope")),
    (ModelNotFoundError, lambda: client.get_model_metadata("kws", 9)),
    (InvalidInputError, lambda: client.predict({"x": x[:, :3]}, "kws")),
    (InvalidInputError, lambda: client.predict({"y": x}, "kws")),
    (InvalidInputError, lambda: client.predict({"x": np.array(["text"], np.bytes_)}, "kws")),
):
    try:
        call()
    except error as exc:
        print(exc)
    else:
        sys.exit(f"no {error.__name__}")
"""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_ovmsclient(agent: Stand, protocol: str) -> None:
    """In a process of its own: it brings TensorFlow's messages, as the official stubs of other tests do."""
    done = subprocess.run(
        [sys.executable, "-c", OVMSCLIENT, agent.address, json.dumps(X.tolist()), protocol],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    asked = {"http": "Specific(nope, 0)", "grpc": "Latest(nope)"}[protocol]
    assert f"Servable not found for request: {asked}" in done.stdout
    assert len(done.stdout.splitlines()) == 7


def test_requests_as_in_torchserves_guide(agent: Stand, tmp_path: Path) -> None:
    """TorchServe has no client library for HTTP: its guide uses `requests` and curl."""
    url = f"http://{agent.address}/predictions/kws"
    sample = tmp_path / "sample.bin"
    sample.write_bytes(X[0].tobytes())
    with requests.Session() as session:
        with sample.open("rb") as file:
            assert session.post(url, files={"data": file}).json() == (X[0] * 2).tolist()
        assert session.post(url, data=sample.read_bytes()).json() == (X[0] * 2).tolist()
        assert session.post(url, json=X.tolist()).json() == (X * 2).tolist()
        assert session.post(url, data={"data": "[1, 2, 3, 4]"}).json() == (X[0] * 2).tolist()
        two = [("data", X[0].tobytes()), ("data", b"[5, 6, 7, 8]")]
        answer = session.post(f"{url}/0.1.0", files=two)
        assert (answer.status_code, answer.json()) == (200, (X * 2).tolist())
        answer = session.post(url, files={"nope": b"1"})
        assert (answer.status_code, answer.json()["type"]) == (400, "BadRequestException")


CURL_LINES = [line for line in curl.lines() if not curl.with_a_file(line)]


@pytest.mark.parametrize("line", CURL_LINES)
def test_curl_lines_of_the_documents(agent: Stand, tmp_path: Path, line: str) -> None:
    (tmp_path / "sample.bin").write_bytes(X[0].tobytes())
    status, output = curl.run(line, agent.address, tmp_path)
    assert status == 200, output
    *headers, body = output.splitlines()
    answer = json.loads(body)
    if "traceparent" in line:
        trace = line.partition("traceparent: 00-")[2][:32]
        assert any(header.startswith(f"traceparent: 00-{trace}-") for header in headers)
    match answer:
        case {"inputs": [{"name": name, "shape": shape}]}:
            assert (name, shape) == ("x", [-1, 4])
        case {"model_name": "kws", "y": values} | {"predictions": [values]} | values:
            assert values == [2.0, 4.0, 6.0, 8.0]


def test_the_documents_have_curl_lines() -> None:
    """Of every kind; and each is run, here or by the tests of pipelines."""
    assert len(CURL_LINES) >= 5
    assert {curl.model(line) for line in CURL_LINES} == {"kws"}
    assert {curl.model(line) for line in curl.lines() if curl.with_a_file(line)} == {
        "kws",
        "resnet20",
        "detector",
        "minilm",
    }
