"""Load generators that others wrote, by their own count of right answers: perf_analyzer and h2load.

No figure of theirs is judged: how fast the agent is say the benchmarks.
"""

from __future__ import annotations

import csv
import json
import re
import secrets
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb

from tests.support import perf_analyzer
from tests.support.serving import Stand, keyword_spotter, linear, stand
from tests.unit.runtimes import kws

pytestmark = pytest.mark.xdist_group("toolenv")
BRIEF = ("-p", "500", "-r", "3", "-s", "10000")
"""Three windows of 500 ms that need not agree; in one without any answer it would give up."""
COUNT = 100
X = [1.5, 2.5, 3.5, 4.5]
IN, OUT = (f"{name}_{secrets.token_hex(6)}" for name in "xy")
"""perf_analyzer calls its objects in shared memory after the tensors, and whoever runs these tests on this
machine at the same time would shorten ours."""


@dataclass(frozen=True)
class Agent:
    """Serves y = 2 x for rows of 4 as kws 3, and what to send it lies in `folder`."""

    stand: Stand
    folder: Path
    client: triton.InferenceServerClient

    def answered(self) -> tuple[int, int]:
        """Requests that the release answered well, and others, by Triton's statistics."""
        found = self.client.get_inference_statistics("kws").model_stats[0].inference_stats
        return found.success.count, found.fail.count


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("load")
    for name, gain in (("right", 2), ("wrong", 3)):
        rows = {"data": [{IN: X}], "validation_data": [{OUT: [gain * value for value in X]}]}
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "sample.bin").write_bytes(np.array(X, np.float32).tobytes())
    torchserve = {"data": [{"TORCHSERVE_INPUT": [str(folder / "sample.bin")]}]}
    (folder / "torchserve.json").write_text(json.dumps(torchserve))
    with stand(folder) as made:
        assert linear(2.0, "3", names=(IN, OUT)).into(made.serving).ok
        client = triton.InferenceServerClient(made.address)
        yield Agent(made, folder, client)
        client.close()


def analyzed(agent: Agent, words: str) -> str:
    """The report of perf_analyzer, which counted as many good answers as the agent, or fewer (those before
    and after its measurement it does not count), and no others."""
    before = agent.answered()
    filled = words.format(address=agent.stand.address, folder=agent.folder, input=IN)
    done = perf_analyzer.run("-m", "kws", "-u", agent.stand.address, *BRIEF, *filled.split())
    assert done.code == 0, done.text
    good, bad = (now - then for now, then in zip(agent.answered(), before, strict=True))
    assert 0 < counted("Client", done.text) <= good and bad == 0, done.text
    return done.text


def counted(side: str, text: str) -> int:
    """The number of requests below a heading of the report."""
    found = re.search(rf"{side}: \n(?:.*\n)*?.*[Rr]equest count: (\d+)", text)
    assert found, text
    return int(found[1])


@pytest.mark.parametrize(
    "words",
    [
        "-i http --concurrency-range 4 --input-data {folder}/right.json",
        "-i http --async --concurrency-range 8 --shape {input}:4 -b 4",
        "-i http --input-tensor-format json --output-tensor-format json --input-data {folder}/right.json",
        "-i http --shared-memory system --concurrency-range 2",
        "-i grpc --concurrency-range 4 --input-data {folder}/right.json",
        "-i grpc --async --concurrency-range 8 -b 4 --grpc-compression-algorithm gzip",
        "-i grpc --shared-memory system --concurrency-range 2 -b 2",
        "-i grpc --streaming --async --concurrency-range 4 --input-data {folder}/right.json",
    ],
)
def test_perf_analyzer(agent: Agent, words: str) -> None:
    """It finds the server's figures too; with right.json it compares each answer with the given values."""
    assert counted("Server", analyzed(agent, words)) > 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_sees_wrong_answers(agent: Agent, protocol: str) -> None:
    """What the test above relies on."""
    wrong = str(agent.folder / "wrong.json")
    words = ["-m", "kws", "-u", agent.stand.address, "-i", protocol, "--input-data", wrong]
    done = perf_analyzer.run(*words, *BRIEF)
    assert done.code != 0 and "Output doesn't match expected output" in done.text


def test_perf_analyzer_reads_the_metrics(agent: Agent) -> None:
    """It knows Triton's names; those of graphics cards it misses, and says so."""
    report = agent.folder / "report.csv"
    words = f"-f {report} --verbose-csv --collect-metrics --metrics-interval 50"
    text = analyzed(agent, f"{words} --metrics-url {{address}}/metrics")
    assert set(re.findall(r"Unable to parse '(\w+)'", text)) <= {
        f"nv_gpu_{name}" for name in ("utilization", "power_usage", "memory_used_bytes", "memory_total_bytes")
    }
    with report.open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["Server Compute Infer"]) > 0


@pytest.mark.parametrize(
    "words",
    [
        "--service-kind tfserving -i grpc --shape {input}:1,4 --concurrency-range 4",
        "--service-kind torchserve -i http --input-data {folder}/torchserve.json --concurrency-range 4",
    ],
)
def test_perf_analyzer_with_other_protocols(agent: Agent, words: str) -> None:
    """Serving's Predict, and TorchServe's upload as a form."""
    analyzed(agent, words)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_perf_analyzer_with_a_real_model(protocol: str, tmp_path: Path) -> None:
    """The keyword spotter with a dotted version, whose server figures perf_analyzer cannot look up."""
    with stand(tmp_path) as made:
        assert keyword_spotter("1.2.3").into(made.serving).ok
        with_shape = f"-i {protocol} --shape {kws.INPUT}:49,10,1 -b 2 --concurrency-range 4"
        client = triton.InferenceServerClient(made.address)
        analyzed(Agent(made, tmp_path, client), with_shape)
        client.close()


def h2load(agent: Agent, *words: str) -> str:
    options = [
        "-n",
        str(COUNT),
        "-c",
        "8",
        "-t",
        "1",
        *words[:-1],
        f"http://{agent.stand.address}{words[-1]}",
    ]
    done = subprocess.run(["h2load", *options], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


HEALTHY = f"{COUNT} total, {COUNT} started, {COUNT} done, {COUNT} succeeded, 0 failed, 0 errored, 0 timeout"


@pytest.mark.parametrize("streams", ["1", "5"])
def test_h2load_grpc(agent: Agent, streams: str) -> None:
    """HTTP/2 of yet another make; 8 connections of 5 streams are fewer requests than one client may have
    waiting. It reads no grpc-status: that each request was answered tell the agent's statistics."""
    request = pb.ModelInferRequest(model_name="kws")
    request.inputs.add(name=IN, datatype="FP32", shape=[1, 4])
    request.raw_input_contents.append(np.array(X, np.float32).tobytes())
    message = request.SerializeToString()
    body = agent.folder / "message"
    body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    good, bad = agent.answered()
    path = "/inference.GRPCInferenceService/ModelInfer"
    text = h2load(agent, "-p", "h2c", "-m", streams, "-d", str(body), *headers, path)
    assert HEALTHY in text and f"{COUNT} 2xx" in text
    assert agent.answered() == (good + COUNT, bad)


@pytest.mark.parametrize("version", ["--no-tls-proto=h2c", "--h1"])
def test_h2load_rest(agent: Agent, version: str) -> None:
    tensor = {"name": IN, "datatype": "FP32", "shape": [1, 4], "data": X}
    body = agent.folder / "body.json"
    body.write_text(json.dumps({"inputs": [tensor]}))
    good, bad = agent.answered()
    text = h2load(agent, version, "-m", "4", "-d", str(body), "/v2/models/kws/infer")
    assert HEALTHY in text and f"{COUNT} 2xx" in text
    assert ("http/1.1" if version == "--h1" else "h2c") in text
    assert agent.answered() == (good + COUNT, bad)
