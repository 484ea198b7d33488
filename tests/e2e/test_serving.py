"""The serving process as clients and supervisor know it: real process, sockets, engine, client library."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from edgekit.bundle.model import EngineRange
from edgekit.runtimes import Array
from edgekit_agent import ipc, launch
from edgekit_agent.messages import Load, Unload, Unloaded
from edgekit_agent.serve.limits import Limits
from tests.support.serving import Candidate, Stand, UnixConnection, keyword_spotter, linear, stand
from tests.support.stranger import install as install_stranger
from tests.unit.runtimes import kws

ROWS = range(200, 300)


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("spotter")) as made:
        loaded = keyword_spotter().into(made.serving)
        assert loaded.ok, loaded
        yield made


@pytest.fixture(scope="module")
def client(spotter: Stand) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(spotter.address)
    yield made
    made.close()


def stored(rows: slice | list[int], binary: bool) -> triton.InferInput:
    x = kws.data()[0][rows]
    tensor = triton.InferInput(kws.INPUT, list(x.shape), "INT8")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return tensor


def expected(rows: slice | list[int]) -> Array:
    session = kws.session("onnxruntime", intra_threads=1)
    real = (kws.data()[0][rows].astype(np.float32) - np.float32(83.0)) * np.float32(kws.SCALE.affine[0].scale)
    return session.run({kws.INPUT: real})[kws.OUTPUT]


def test_triton_client_reads_everything_about_the_model(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("kws")
    assert client.is_model_ready("kws", "1") and not client.is_model_ready("kws", "2")
    assert client.get_model_repository_index() == [{"name": "kws", "version": "1", "state": "READY"}]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("kws")
    assert metadata["versions"] == ["1"] and metadata["outputs"][0]["shape"] == [-1, 12]
    assert metadata["inputs"][0]["datatype"] == "FP32"
    assert metadata["inputs"][0]["parameters"]["stored_datatype"] == "INT8"
    config = client.get_model_config("kws", "1")
    wanted = {"name": kws.INPUT, "data_type": "TYPE_FP32", "dims": [49, 10, 1]}
    assert config["input"][0].items() >= wanted.items()
    assert config["max_batch_size"] == Limits().max_batch


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_triton_client_gets_right_labels_on_100_samples(
    client: triton.InferenceServerClient, binary: bool
) -> None:
    labels, truth = kws.data()[1], expected(list(ROWS))
    outputs = [triton.InferRequestedOutput(kws.OUTPUT, binary_data=binary)]
    right = 0
    for row in ROWS:
        answer = client.infer("kws", [stored([row], binary)], outputs=outputs, request_id=f"r{row}")
        scores = answer.as_numpy(kws.OUTPUT)
        np.testing.assert_allclose(scores, truth[[row - ROWS.start]], atol=1e-5)
        right += int(np.argmax(scores) == labels[row])
        assert answer.get_response()["id"] == f"r{row}"
    assert right >= 88  # fp32 has 0.9125 on rows 200..999


def test_one_batch_compressed_and_as_engine_type(client: triton.InferenceServerClient) -> None:
    truth = expected(list(ROWS))
    for compression in (None, "gzip", "deflate"):
        answer = client.infer("kws", [stored(list(ROWS), True)], request_compression_algorithm=compression)
        np.testing.assert_allclose(answer.as_numpy(kws.OUTPUT), truth, atol=1e-5)
    real = (kws.data()[0][list(ROWS)].astype(np.float32) - np.float32(83.0)) * np.float32(
        kws.SCALE.affine[0].scale
    )
    tensor = triton.InferInput(kws.INPUT, list(real.shape), "FP32")
    tensor.set_data_from_numpy(real)
    answer = client.infer("kws", [tensor])
    np.testing.assert_allclose(answer.as_numpy(kws.OUTPUT), truth, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_classification(client: triton.InferenceServerClient, binary: bool) -> None:
    output = triton.InferRequestedOutput(kws.OUTPUT, binary_data=binary, class_count=2)
    answer = client.infer("kws", [stored(slice(200, 203), True)], outputs=[output])
    found = answer.as_numpy(kws.OUTPUT)
    assert found.shape == (3, 2)
    truth = expected(slice(200, 203))
    for row, scores in zip(found, truth, strict=True):
        text = row[0].decode() if isinstance(row[0], bytes) else row[0]
        score, index, label = text.split(":")
        assert (
            int(index) == int(np.argmax(scores)) and label == keyword_spotter().load.config.labels[int(index)]
        )
        assert float(score) == pytest.approx(float(scores.max()), abs=1e-5)


def test_client_mistakes_reach_the_client_library(client: triton.InferenceServerClient) -> None:
    wrong = triton.InferInput(kws.INPUT, [1, 49, 10, 2], "INT8")
    wrong.set_data_from_numpy(np.zeros((1, 49, 10, 2), np.int8))
    for name, tensor, text in (
        ("nope", stored([200], True), "unknown model"),
        ("kws", wrong, "expected shape"),
    ):
        with pytest.raises(InferenceServerException, match=text):
            client.infer(name, [tensor])


def test_statistics_and_metrics_agree(tmp_path: Path) -> None:
    with stand(tmp_path) as made, triton.InferenceServerClient(made.address) as client:
        assert keyword_spotter().into(made.serving).ok
        for _ in range(3):
            client.infer("kws", [stored(slice(200, 202), True)])
        with pytest.raises(InferenceServerException):
            client.infer("nope", [stored([200], True)])
        model = client.get_inference_statistics("kws")["model_stats"][0]
        assert (model["inference_count"], model["execution_count"]) == (6, 3)
        assert model["inference_stats"]["success"]["count"] == 3
        assert model["inference_stats"]["compute_infer"]["ns"] > 0
        found = made.serving.stats()
        (release,) = found.releases
        assert (found.serving, release.requests, release.errors, release.rejected) == ("kws:1", 4, 0, 1)
        assert sum(release.latency_buckets) == 3 and sum(release.classes.values()) == release.inferences == 6
        text = get(made, "/metrics").decode()
        assert 'edgekit_requests_total{model="kws",version="1"} 4' in text
        assert 'edgekit_latency_ms_bucket{model="kws",version="1",le="+Inf"} 3' in text


def test_unix_socket_speaks_the_same(spotter: Stand) -> None:
    connection = UnixConnection(spotter.path)
    connection.request("GET", "/v2/models/kws")
    assert json.loads(connection.getresponse().read())["name"] == "kws"
    connection.close()


# --- releases come and go


def get(made: Stand, path: str) -> bytes:
    connection = http.client.HTTPConnection(made.address, timeout=30)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def infer(connection: http.client.HTTPConnection, values: list[float]) -> tuple[int, dict[str, Any]]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": values}
    connection.request("POST", "/v2/models/kws/infer", json.dumps({"inputs": [tensor]}))
    response = connection.getresponse()
    return response.status, json.loads(response.read())


class Traffic:
    """Clients on kept connections that count what is not a right answer of either release."""

    def __init__(self, made: Stand, clients: int = 3) -> None:
        self.answers: list[tuple[str, float]] = []
        self.failures: list[str] = []
        self._made, self._stop = made, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._made.address, timeout=30)
        connection.connect()
        kept = connection.sock
        while not self._stop.is_set():
            try:
                status, body = infer(connection, [0.0, 1.0, 0.0, 0.0])
            except (OSError, http.client.HTTPException) as exc:
                self.failures.append(repr(exc))
                return
            if status != 200 or connection.sock is not kept:
                self.failures.append(f"{status} {body}")
                return
            self.answers.append((body["model_version"], body["outputs"][0]["data"][1]))
        connection.close()


def test_swap_under_load_loses_no_request_and_no_connection(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        assert linear(1.0, "1").into(made.serving).ok
        with Traffic(made) as traffic:
            for turn in range(2, 9):
                assert linear(float(turn), str(turn)).into(made.serving).ok
        assert traffic.failures == []
        assert {version for version, _ in traffic.answers} >= {"1", "4", "7"}
        assert all(value == float(version) for version, value in traffic.answers)


def test_bad_candidate_changes_nothing(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        good, other = linear(1.0, "1"), linear(2.0, "2")
        assert good.into(made.serving).ok
        liar = other.changed(golden_files=other.load.golden_files)
        liar = type(liar)(liar.load, liar.files, good.golden)
        with Traffic(made) as traffic:
            answer = liar.into(made.serving)
            assert (answer.ok, answer.code) == (False, "GoldenError") and "differ" in answer.message
            assert liar.probe().message == answer.message
            broken = Candidate(other.load, {**other.files, "graph.json": b"{"}, other.golden)
            answer = broken.into(made.serving)
            assert (answer.ok, answer.code) == (False, "EngineError")
        assert traffic.failures == [] and {version for version, _ in traffic.answers} == {"1"}


def test_replace_and_unload_answer_503_meanwhile(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        connection = http.client.HTTPConnection(made.address, timeout=30)
        assert infer(connection, [1, 0, 0, 0])[0] == 503
        assert linear(1.0).into(made.serving).ok
        assert linear(3.0, "2").changed(replace=True).into(made.serving).ok
        assert infer(connection, [1, 0, 0, 0])[1]["outputs"][0]["data"] == [3.0, 0.0, 0.0, 0.0]
        identity = made.serving.client.next_id()
        made.serving.client.call(Unload(identity), Unloaded, timeout_s=10)
        connection.request("GET", "/v2/health/ready")
        response = connection.getresponse()
        response.read()
        assert response.status == 503
        status, body = infer(connection, [1, 0, 0, 0])
        assert (status, body) == (503, {"error": "no model is loaded"})
        connection.close()
        stats = made.serving.stats()
        assert stats.serving == "" and stats.releases[-1].release == "" and stats.releases[-1].errors == 2


@pytest.mark.faults
def test_connections_wait_while_serving_is_killed_and_respawned(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        model = linear(2.0)
        assert model.into(made.serving).ok
        for restarts in range(1, 3):
            os.kill(made.serving.process.pid, signal.SIGKILL)
            made.serving.process.wait()
            with pytest.raises(ipc.Closed):
                made.serving.stats()
            waiting = http.client.HTTPConnection(made.address, timeout=30)
            waiting.connect()  # nobody accepts now, the backlog does
            answers: list[tuple[int, dict[str, Any]]] = []
            thread = threading.Thread(target=lambda to=waiting, a=answers: a.append(infer(to, [0, 0, 1, 0])))
            thread.start()
            made.serving.kill()
            made.serving = launch.start(
                [made.tcp, made.unix], Limits(), restarts=restarts, wait_for_load=True
            )
            assert model.into(made.serving).ok
            thread.join(30)
            assert [status for status, _ in answers] == [200]
            waiting.close()
        assert b"edgekit_serving_restarts_total 2" in get(made, "/metrics")


@pytest.mark.faults
def test_serving_dies_with_its_supervisor(tmp_path: Path) -> None:
    code = (
        "import socket, sys, time\n"
        "from edgekit_agent import launch\n"
        "from edgekit_agent.serve.limits import Limits\n"
        "import threading\n"
        "made = []\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        # started from a thread that ends at once: serving must outlive it
        "t = threading.Thread(target=lambda: made.append(launch.start([s], Limits())))\n"
        "t.start(); t.join(); made[0].ping(timeout_s=30)\n"
        "sys.stdout.write(f'{made[0].process.pid}\\n'); sys.stdout.flush(); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = psutil.Process(int(supervisor.stdout.readline()))
        os.kill(child.pid, signal.SIGINT)  # the terminal's Ctrl-C reaches the whole group
        assert child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        supervisor.kill()
    child.wait(timeout=20)


def test_stop_drains_and_leaves_the_listening_socket_open(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        assert linear(1.0).into(made.serving).ok
        idle = made.connect()
        made.serving.stop()
        assert made.serving.process.returncode == 0
        assert idle.recv(1) == b""
        idle.close()
        late = http.client.HTTPConnection(made.address, timeout=30)
        late.connect()
        made.serving = launch.start([made.tcp, made.unix], Limits(), wait_for_load=True)
        assert linear(1.0).into(made.serving).ok
        assert infer(late, [1, 0, 0, 0])[0] == 200
        late.close()


# --- engines that misbehave, installed as a stranger's engine would be


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine found by entry point in the children only: it must not touch the test's own process."""
    monkeypatch.setenv("PYTHONPATH", str(install_stranger(tmp_path)))


def strange(mode: str, version: str = "1") -> Candidate:
    """Like linear(1.0), on the stranger's engine."""
    base = linear(1.0, version)
    config = dataclasses.replace(
        base.load.config, engine=EngineRange("stranger"), options={"mode": mode, "intra_threads": 1}
    )
    return base.changed(config=config)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crash", "killed by SIGSEGV"),
        ("exit", "ended with status 7"),
        ("raise", "ZeroDivisionError: no reason"),
        ("hang", "did not finish within 8 s"),
        ("eat", "Unable to allocate|MemoryError|not enough memory"),
    ],
)
def test_a_probe_survives_any_engine(stranger: None, mode: str, words: str) -> None:
    answer = strange(mode).probe(timeout_s=8 if mode == "hang" else 60, memory_mib=700)
    assert not answer.ok and answer.code == "EngineError"
    assert re.search(words, answer.message), answer.message


@pytest.mark.faults
def test_an_engine_that_crashes_takes_only_serving_down(stranger: None, tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        candidate = strange("run-crash")
        assert candidate.probe().ok and candidate.into(made.serving).ok
        connection = http.client.HTTPConnection(made.address, timeout=30)
        assert infer(connection, [1, 2, 3, 4])[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            infer(connection, [13, 0, 0, 0])
        connection.close()
        assert made.serving.process.wait(20) == -signal.SIGSEGV
        made.serving.kill()
        made.serving = launch.start([made.tcp, made.unix], Limits(), restarts=1, wait_for_load=True)
        assert linear(1.0).into(made.serving).ok
        assert infer(connection, [1, 2, 3, 4])[0] == 200
        connection.close()


def test_errors_of_the_engine_are_500_and_counted(stranger: None, tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        assert strange("run-raise").into(made.serving).ok
        connection = http.client.HTTPConnection(made.address, timeout=30)
        status, body = infer(connection, [13, 0, 0, 0])
        assert status == 500 and set(body) == {"error"} and "thirteen" not in body["error"]
        assert infer(connection, [1, 0, 0, 0])[0] == 200
        assert strange("nan", "2").into(made.serving).ok
        status, body = infer(connection, [13, 0, 0, 0])
        assert status == 500 and "NaN" in body["error"]
        connection.close()
        assert [(r.release, r.errors, r.requests) for r in made.serving.stats().releases] == [
            ("kws:1", 1, 2),
            ("kws:2", 1, 1),
        ]


@pytest.mark.faults
def test_a_slow_engine_is_visible_and_the_queue_is_bounded(stranger: None, tmp_path: Path) -> None:
    limits = Limits(max_queue=2, inline_ms=0)
    with stand(tmp_path, limits) as made:
        assert strange("slow").into(made.serving).ok
        held = [http.client.HTTPConnection(made.address, timeout=60) for _ in range(3)]
        slow = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [13, 3, 0, 0]}
        for connection in held:
            connection.request("POST", "/v2/models/kws/infer", json.dumps({"inputs": [slow]}))
        deadline = time.monotonic() + 20
        while made.serving.ping(timeout_s=10).in_flight < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        pong = made.serving.ping(timeout_s=10)
        assert pong.in_flight == 3 and pong.oldest_run_s > 0
        extra = http.client.HTTPConnection(made.address, timeout=30)
        extra.request("POST", "/v2/models/kws/infer", json.dumps({"inputs": [slow]}))
        response = extra.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
        assert "waiting" in json.loads(response.read())["error"]
        # A swap while they run: the new release answers at once, the old ones get the old one's answer.
        assert linear(5.0, "2").into(made.serving).ok
        assert infer(extra, [1, 0, 0, 0])[1]["model_version"] == "2"
        for connection in held:
            answer = json.loads(connection.getresponse().read())
            assert answer["model_version"] == "1" and answer["outputs"][0]["data"][0] == 13
            connection.close()
        extra.close()


def test_plaintext_stays_private(tmp_path: Path) -> None:
    with stand(tmp_path) as made:
        assert linear(1.0).into(made.serving).ok
        limits = Path(f"/proc/{made.serving.process.pid}/limits").read_text()
        core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
        assert core.split()[4:6] == ["0", "0"]
        assert Path(f"/proc/{made.serving.process.pid}/mem").stat().st_uid == 0  # not dumpable


def test_only_sealed_memory_is_loaded(tmp_path: Path) -> None:
    model = linear(1.0)
    loose = tmp_path / "loose"
    loose.write_bytes(b"x")
    with stand(tmp_path) as made, loose.open("rb") as file:
        load: Load = model.load
        fds = [file.fileno()] * (len(load.files) + len(load.golden_files))
        answer = made.serving.load(load, fds, timeout_s=30)
        assert (answer.ok, answer.code) == (False, "FormatError") and "sealed" in answer.message
