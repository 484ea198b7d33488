"""edgekit.Client and AsyncClient against real serving processes, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit.client import AsyncClient, Client
from edgekit.errors import (
    AuthError,
    DataError,
    EdgekitError,
    EngineError,
    ModelError,
    Overloaded,
    SystemFault,
    TimedOut,
)
from edgekit_agent import launch
from edgekit_agent.messages import Unload, Unloaded
from edgekit_agent.serve.limits import Limits
from tests.support.clients import KINDS, Scripted, client, nobody
from tests.support.serving import Stand, UnixConnection, keyword_spotter, linear, stand
from tests.unit.runtimes import kws


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("spotter")) as made:
        assert keyword_spotter().into(made.serving).ok
        yield made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["unix", "tcp"])
def where(request: pytest.FixtureRequest, spotter: Stand) -> str:
    return f"unix:{spotter.path}" if request.param == "unix" else f"http://{spotter.address}"


def expected(rows: slice) -> Any:
    session = kws.session("onnxruntime", intra_threads=1)
    real = (kws.data()[0][rows].astype(np.float32) - np.float32(83.0)) * np.float32(kws.SCALE.affine[0].scale)
    return session.run({kws.INPUT: real})[kws.OUTPUT]


# --- what it is for


def test_answers_are_the_sessions_own(kind: str, where: str) -> None:
    x, truth = kws.data()[0][200:210], expected(slice(200, 210))
    with client(kind, where) as asked:
        scores = asked.infer(x)
        assert scores.dtype == np.float32 and scores.flags.writeable and scores.flags.aligned
        np.testing.assert_allclose(scores, truth, atol=1e-5)
        answer = asked.infer({kws.INPUT: x[:1]}, model="kws", version="1", request_id="r7")
        assert (answer.model, answer.version, answer.request_id) == ("kws", "1", "r7")
        np.testing.assert_allclose(answer[kws.OUTPUT], truth[:1], atol=1e-5)
        real = (x.astype(np.float64) - 83.0) * kws.SCALE.affine[0].scale
        np.testing.assert_allclose(asked.infer(real, outputs=[kws.OUTPUT]), truth, atol=1e-5)


def test_what_it_tells_of_the_model(kind: str, where: str) -> None:
    with client(kind, where) as asked:
        assert asked.ready() and asked.ready("kws") and not asked.ready("nope")
        about = asked.model()
        assert (about.name, about.versions) == ("kws", ("1",)) and asked.model("kws", "1") == about
        (tensor,) = about.inputs
        assert (tensor.name, tensor.datatype, tensor.stored_datatype) == (kws.INPUT, "FP32", "INT8")
        assert tensor.shape == (-1, 49, 10, 1) and about.outputs[0].shape == (-1, 12)
        before = asked.stats("kws")[0]
        asked.infer(kws.data()[0][:3])
        (after,) = asked.stats()
        assert (after.name, after.inferences - before.inferences) == ("kws", 3)
        assert after.success.count == before.success.count + 1 and after.compute_infer.mean_ms > 0


def test_mistakes_are_typed_errors(kind: str, where: str) -> None:
    x = kws.data()[0][:1]
    with client(kind, where) as asked:
        for wrong, options, error, text in (
            (x, {"model": "nope"}, ModelError, "unknown model"),
            (x, {"version": "9"}, ModelError, "version 9"),
            (x, {"outputs": ["nope"]}, DataError, "unknown output"),
            (x[:, 1:], {}, DataError, "expected shape"),
            (x.astype(np.int64), {}, DataError, "may mean either"),
            ({"nope": x}, {}, DataError, "no input 'nope'"),
            ({}, {}, DataError, "no inputs"),
            (np.zeros((300, 49, 10, 1), np.int8), {}, DataError, "300 samples"),
        ):
            with pytest.raises(error, match=text):
                asked.infer(wrong, **options)
        with pytest.raises(ModelError):
            asked.model("nope")
        with pytest.raises(ModelError):
            asked.stats("nope")
        np.testing.assert_allclose(asked.infer(x), expected(slice(0, 1)), atol=1e-5)


def test_the_unix_socket_is_taken_where_it_is_there(kind: str, spotter: Stand, tmp_path: Path) -> None:
    tcp = f"http://{spotter.address}"
    for first, unix in ((spotter.path, True), (tmp_path / "missing", False)):
        deadline = time.monotonic() + 20
        while _unix_connections(spotter.path) and time.monotonic() < deadline:
            time.sleep(0.01)  # the last test's
        with client(kind, [first, tcp]) as asked:
            assert asked.model().name == "kws"
            assert _unix_connections(spotter.path) == unix


def _unix_connections(path: Path) -> int:
    """Connected sockets at a path (proc(5), net/unix: state 03)."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(line[-1] == str(path) and line[5] == "03" for line in lines)


def test_edgekit_endpoint_names_the_agent(spotter: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_ENDPOINT", f"unix:{spotter.path},http://{spotter.address}")
    with edgekit.Client() as asked:
        assert asked.model().name == "kws"


# --- many at once


def test_threads_share_a_client(spotter: Stand) -> None:
    x, truth = kws.data()[0][:64], expected(slice(0, 64))

    def ask(row: int) -> Any:
        return shared.infer(x[row : row + 1])

    with Client(spotter.path, connections=4) as shared, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, [*range(64)] * 5))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate([truth] * 5), atol=1e-5)


def test_tasks_share_a_client(spotter: Stand) -> None:
    x, truth = kws.data()[0][:64], expected(slice(0, 64))

    async def main() -> list[Any]:
        async with AsyncClient(f"http://{spotter.address}", connections=4) as shared:
            return await asyncio.gather(*(shared.infer(x[row : row + 1]) for row in range(64)))

    np.testing.assert_allclose(np.concatenate(asyncio.run(main())), truth, atol=1e-5)


def test_a_cancelled_call_does_not_disturb_the_next(spotter: Stand) -> None:
    x, truth = kws.data()[0][:128], expected(slice(0, 128))

    async def main() -> Any:
        async with AsyncClient(spotter.path, connections=1) as shared:
            await shared.infer(x[:1])
            for _ in range(20):
                task = asyncio.create_task(shared.infer(x))
                await asyncio.sleep(0.001)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            return await shared.infer(x[5:6])

    np.testing.assert_allclose(asyncio.run(main()), truth[5:6], atol=1e-5)


def test_a_forked_child_has_connections_of_its_own(spotter: Stand) -> None:
    x, truth = kws.data()[0][:2], expected(slice(0, 2))
    with Client(spotter.path) as shared:
        shared.infer(x[:1])
        child = os.fork()
        if child == 0:  # no pytest in here, whatever happens
            fine = False
            try:
                fine = all(np.allclose(shared.infer(x[:1]), truth[:1], atol=1e-5) for _ in range(50))
            finally:
                os._exit(0 if fine else 1)
        for _ in range(50):
            np.testing.assert_allclose(shared.infer(x[1:]), truth[1:], atol=1e-5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- agents come and go


def test_serving_is_killed_and_started_again_in_between(kind: str, tmp_path: Path) -> None:
    x = np.array([[1, 2, 3, 4]], np.float32)
    with stand(tmp_path) as made, client(kind, [made.path, f"http://{made.address}"]) as asked:
        for gain in (1.0, 2.0, 3.0):
            assert linear(gain).into(made.serving).ok
            assert asked.infer(x).tolist() == (x * np.float32(gain)).tolist()
            made.serving.kill()
            made.serving = launch.start([made.tcp, made.unix], Limits(), restarts=1, wait_for_load=True)


def test_an_agent_that_starts_late_is_found(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "serve.sock"
    answers: list[Any] = []
    with client(kind, path, retries=200) as asked:
        assert not asked.ready()
        waiting = threading.Thread(target=lambda: answers.append(asked.infer([[1.0, 2.0, 3.0, 4.0]])))
        waiting.start()
        time.sleep(0.3)
        with stand(tmp_path) as made:
            assert linear(2.0).into(made.serving).ok
            waiting.join(30)
            assert answers[0].tolist() == [[2.0, 4.0, 6.0, 8.0]]


def test_waiting_until_something_is_served(kind: str, tmp_path: Path) -> None:
    with stand(tmp_path) as made, client(kind, made.path, retries=0) as asked:
        with pytest.raises(TimedOut, match=r"0\.3 s"):
            asked.wait_ready(0.3)
        with pytest.raises(Overloaded):
            asked.infer([[0.0]])
        loading = threading.Timer(0.3, lambda: linear(1.0).into(made.serving))
        loading.start()
        asked.wait_ready(30, "kws")
        assert asked.ready() and asked.infer(np.ones((1, 4))).tolist() == [[1.0] * 4]
        loading.join()


def test_while_nothing_is_loaded_a_call_is_tried_again(kind: str, tmp_path: Path) -> None:
    with stand(tmp_path) as made, client(kind, made.path) as asked:
        assert linear(1.0).into(made.serving).ok
        assert asked.infer(np.ones((1, 4))).tolist() == [[1.0] * 4]
        made.serving.client.call(Unload(made.serving.client.next_id()), Unloaded, timeout_s=30)
        loading = threading.Timer(0.5, lambda: linear(3.0, "2").into(made.serving))
        loading.start()
        assert asked.infer(np.ones((1, 4))).tolist() == [[3.0] * 4]
        loading.join()
        made.serving.client.call(Unload(made.serving.client.next_id()), Unloaded, timeout_s=30)
        with pytest.raises(Overloaded, match="no model"):
            asked.infer(np.ones((1, 4)), timeout_s=0.5)


def test_another_release_is_noticed(kind: str, tmp_path: Path) -> None:
    with stand(tmp_path) as made, client(kind, made.path) as asked:
        assert linear(2.0).into(made.serving).ok
        assert asked.infer(np.ones((1, 4))).shape == (1, 4)
        assert linear(2.0, "2", width=6).into(made.serving).ok
        assert asked.infer(np.ones((1, 6))).shape == (1, 6)
        assert linear(2.0, "3").changed(name="other").into(made.serving).ok
        assert asked.infer(np.ones((1, 4))).shape == (1, 4) and asked.model().name == "other"


def test_nobody_is_there(kind: str, tmp_path: Path) -> None:
    with nobody() as address, client(kind, [tmp_path / "missing", address], retries=1) as asked:
        assert not asked.ready()
        with pytest.raises(SystemFault, match="no agent can be reached") as caught:
            asked.infer([1.0])
        assert "missing" in str(caught.value) and address in str(caught.value) and caught.value.hint


def test_a_closed_client_says_so(kind: str, spotter: Stand) -> None:
    with client(kind, spotter.path) as asked:
        assert asked.ready()
        asked.close() if kind == "sync" else None
        if kind == "sync":
            with pytest.raises(SystemFault, match="closed"):
                asked.model()


# --- large tensors on the same machine

WIDE = Limits(max_batch=1 << 20)


def regions(made: Stand) -> list[dict[str, Any]]:
    """Shared memory that the agent holds for this user."""
    connection = UnixConnection(made.path)
    connection.request("GET", "/v2/systemsharedmemory/status")
    found: list[dict[str, Any]] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def left_behind() -> list[Path]:
    return list(Path("/dev/shm").glob("edgekit-client-*"))


def rows(seed: int, count: int = 50_000) -> Any:
    return np.random.default_rng(seed).random((count, 4), np.float32)


def test_large_tensors_go_through_shared_memory(kind: str, tmp_path: Path) -> None:
    with stand(tmp_path, WIDE) as made:
        assert linear(2.0).into(made.serving).ok
        with client(kind, f"http://{made.address}") as asked:
            for seed in range(3):
                assert np.array_equal(asked.infer(rows(seed)), rows(seed) * 2)
            (region,) = regions(made)
            assert region["name"].startswith("edgekit-client-") and region["byte_size"] >= rows(0).nbytes
            assert not left_behind()
            with pytest.raises(DataError, match="expected shape"):
                asked.infer(rows(0).reshape(-1, 5))
            assert np.array_equal(asked.infer(rows(1)), rows(1) * 2)
        deadline = time.monotonic() + 10
        while regions(made) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not regions(made) and not left_behind()
        with client(kind, f"http://{made.address}", shared_memory=False) as asked:
            assert np.array_equal(asked.infer(rows(4)), rows(4) * 2) and not regions(made)


def test_shared_memory_survives_a_restart_of_the_agent(kind: str, tmp_path: Path) -> None:
    with stand(tmp_path, WIDE) as made, client(kind, made.path) as asked:
        for gain in (1.0, 2.0):
            assert linear(gain).into(made.serving).ok
            # The first one after the restart finds no region and is sent once more, over the socket.
            for seed in (7, 8):
                assert np.array_equal(asked.infer(rows(seed)), rows(seed) * np.float32(gain))
            assert len(regions(made)) == 1
            made.serving.kill()
            made.serving = launch.start([made.tcp, made.unix], WIDE, restarts=1, wait_for_load=True)


def test_threads_do_not_see_each_others_tensors(tmp_path: Path) -> None:
    with stand(tmp_path, WIDE) as made, Client(made.path) as shared, ThreadPoolExecutor(6) as pool:
        assert linear(2.0).into(made.serving).ok
        found = list(pool.map(lambda seed: shared.infer(rows(seed, 20_000 + seed)), range(40)))
        assert all(np.array_equal(one, rows(seed, 20_000 + seed) * 2) for seed, one in enumerate(found))
        assert 1 <= len(regions(made)) <= 8


def test_a_program_that_dies_leaves_no_memory_behind(tmp_path: Path) -> None:
    code = (
        "import os, sys, numpy as np, edgekit\n"
        "c = edgekit.Client(sys.argv[1])\n"
        "c.infer(np.ones((50_000, 4), np.float32))\n"
        "print('done', flush=True)\n"
        "sys.stdin.read()\n"
        "os._exit(1)\n"
    )
    with stand(tmp_path, WIDE) as made:
        assert linear(2.0).into(made.serving).ok
        words = [sys.executable, "-c", code, str(made.path)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdout is not None and program.stdout.readline() == b"done\n"
            assert len(regions(made)) == 1
            program.kill()
        deadline = time.monotonic() + 10
        while regions(made) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not regions(made) and not left_behind()


# --- servers that misbehave


def answer(status: str = "200 OK", body: bytes = b"{}", fields: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body


ABOUT = answer(
    body=json.dumps(
        {
            "name": "m",
            "versions": ["1"],
            "platform": "p",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
        }
    ).encode()
)
GOOD = answer(
    body=b'{"model_name":"m","model_version":"1","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[7]}]}'
)


def test_patience_is_bounded_and_follows_retry_after(kind: str) -> None:
    busy = answer("503 Service Unavailable", b'{"error":"too many requests"}', "Retry-After: 0\r\n")
    with Scripted(ABOUT, busy, busy, GOOD) as server, client(kind, server.address, model="m") as asked:
        assert asked.infer([1.0]).tolist() == [7.0]
        assert len(server.requests) == 4
    with Scripted(ABOUT, *[busy] * 3) as server, client(kind, server.address, model="m", retries=2) as asked:
        with pytest.raises(Overloaded, match="too many requests"):
            asked.infer([1.0])
        assert len(server.requests) == 4
    later = busy.replace(b"After: 0", b"After: 99")
    with Scripted(ABOUT, later) as server, client(kind, server.address, model="m", timeout_s=20) as asked:
        begin = time.monotonic()
        with pytest.raises(Overloaded):
            asked.infer([1.0])
        assert time.monotonic() - begin < 10  # no time to wait for: told at once
    final = answer("503 Service Unavailable", b'{"error":"not enough memory"}')
    with Scripted(ABOUT, final) as server, client(kind, server.address, model="m") as asked:
        with pytest.raises(Overloaded, match="memory"):
            asked.infer([1.0])
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [("400 Bad Request", DataError), ("401 Unauthorized", AuthError), ("403 Forbidden", AuthError),
     ("404 Not Found", ModelError), ("413 Too Large", DataError), ("500 Oops", EngineError),
     ("504 Late", TimedOut), ("302 Found", SystemFault)],
)  # fmt: skip
def test_every_status_has_an_error(kind: str, status: str, error: type[EdgekitError]) -> None:
    with Scripted(answer(status, b'{"error":"because"}')) as server, client(kind, server.address) as asked:
        with pytest.raises(error, match="because") as caught:
            asked.model("m")
        assert type(caught.value) is error


@pytest.mark.parametrize(
    "bad",
    [
        b"220 smtp.example.com ESMTP\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x46\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        answer(body=b"not json"),
        answer(body=b"[1]"),
        answer(body=b'{"name": "m"}'),
        answer(body=b"{}", fields="Inference-Header-Content-Length: 9\r\n"),
    ],
)
def test_what_is_no_agent_is_called_that(kind: str, bad: bytes) -> None:
    told = pytest.raises(SystemFault, match="did not answer like an agent")
    with Scripted(bad) as server, client(kind, server.address) as asked, told:
        asked.model("m")


@pytest.mark.parametrize("cut", [0, 5, len(GOOD) - 1])
def test_a_lost_answer_is_not_asked_for_again(kind: str, cut: int) -> None:
    """The request may be what ended the server."""
    with Scripted(GOOD[:cut], GOOD, close=True) as server, client(kind, server.address) as asked:
        with pytest.raises(SystemFault, match="ended the connection"):
            asked.model("m")
        assert len(server.requests) == 1


def test_a_kept_connection_that_ends_is_replaced_once(kind: str) -> None:
    """Here the server ends it only when the second request comes, as one does that was just killed."""
    with Scripted(ABOUT, b"", GOOD) as server, client(kind, server.address, model="m") as asked:
        asked.model()
        assert asked.infer([1.0]).tolist() == [7.0]
        assert [request.split()[0] for request in server.requests] == [b"GET", b"POST", b"POST"]


def test_silence_ends_at_the_deadline(kind: str) -> None:
    for sent in ((), (b"HTTP/1.1 200 OK\r\n",), (GOOD[:-4],)):
        with Scripted(*sent) as server, client(kind, server.address) as asked:
            begin = time.monotonic()
            with pytest.raises(TimedOut):
                asked.model("m", timeout_s=0.3)
            assert 0.25 < time.monotonic() - begin < 5


def test_what_is_left_of_a_late_answer_reaches_nobody(kind: str) -> None:
    """After a timeout the connection is given up: its answer would be taken for the next one's."""
    with Scripted(ABOUT) as server, client(kind, server.address) as asked:
        asked.model("m")
        with pytest.raises(TimedOut):
            asked.model("m", timeout_s=0.2)
    with Scripted(ABOUT + GOOD, ABOUT) as server, client(kind, server.address) as asked:
        with contextlib.suppress(SystemFault):  # two answers to one question
            asked.model("m")
        assert asked.model("m").name == "m"


def test_interim_answers_are_skipped(kind: str) -> None:
    with Scripted(b"HTTP/1.1 100 Continue\r\n\r\n" + ABOUT) as server, client(kind, server.address) as asked:
        assert asked.model("m").name == "m"


def test_a_refusal_is_read_although_the_body_was_not(kind: str, tmp_path: Path) -> None:
    with (
        stand(tmp_path, Limits(max_body_bytes=1000)) as made,
        client(kind, f"http://{made.address}") as asked,
    ):
        assert linear(1.0, width=4).into(made.serving).ok
        with pytest.raises(DataError, match="larger than the 1000 bytes"):
            asked.infer(np.zeros((100_000, 4), np.float32))
        assert asked.infer(np.ones((1, 4))).tolist() == [[1.0] * 4]


# --- documentation

DOCS = Path(__file__).parents[2] / "docs" / "client.md"


def test_the_documentations_snippets_run(
    spotter: Stand, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one namespace, as a reader would."""
    monkeypatch.setenv("EDGEKIT_ENDPOINT", str(spotter.path))
    snippets = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(snippets) >= 4
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, str(DOCS), "exec"), names)
    printed = capsys.readouterr().out
    assert "(1, 12) kws 1" in printed and "expected shape" in printed
