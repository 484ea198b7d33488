"""Clients that others wrote for TensorFlow Serving, KServe and TorchServe, and the documents' curl lines."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.support.serving import Stand, linear, stand

DOCUMENTS = Path(__file__).parents[2] / "docs"
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

client = ovmsclient.make_http_client(sys.argv[1])
x = np.array(json.loads(sys.argv[2]), np.float32)
for version in (0, 1000):
    for given in (x, x.tolist()):
        assert np.array_equal(client.predict({"x": given}, "kws", version), x * 2)
    assert client.get_model_status("kws", version)[1000]["state"] == "AVAILABLE"
    assert client.get_model_metadata("kws", version)["model_spec"]["version"] == "1000"
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


def test_ovmsclient(agent: Stand) -> None:
    """In a process of its own: it brings TensorFlow's messages, as the official stubs of other tests do."""
    done = subprocess.run(
        [sys.executable, "-c", OVMSCLIENT, agent.address, json.dumps(X.tolist())],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Servable not found for request: Specific(nope, 0)" in done.stdout
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


def curls() -> list[str]:
    """Every line of a block of the protocols' page that begins with curl."""
    text = (DOCUMENTS / "protocols.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("curl ")]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("line", curls())
def test_curl_lines_of_the_documents(agent: Stand, tmp_path: Path, line: str) -> None:
    (tmp_path / "sample.bin").write_bytes(X[0].tobytes())
    command = line.replace("curl ", "curl -sS -w '\\n%{http_code}' ", 1).replace(
        "localhost:8000", agent.address
    )
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    assert status == "200", body
    answer = json.loads(body)
    if isinstance(answer, dict) and "model_name" in answer:
        answer = answer["y"]
    elif isinstance(answer, dict):
        (answer,) = answer["predictions"]
    assert answer == [2.0, 4.0, 6.0, 8.0]


def test_the_documents_have_curl_lines() -> None:
    assert len(curls()) >= 3
