"""Every call of tritonclient.http against a started agent, with real shared memory."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from edgekit_agent.serve.limits import Limits
from tests.support.serving import Stand, linear, stand

Client: TypeAlias = triton.InferenceServerClient
X = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
COMPUTE = ("compute_input", "compute_infer", "compute_output")
REGIONS = (f"edgekit-test-{os.getpid()}-{number}" for number in itertools.count())
"""Names of memory objects; two test runs on one machine must not meet."""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("triton"), Limits(max_body_bytes=1 << 20)) as made:
        assert linear(2.0).into(made.serving).ok
        yield made


@pytest.fixture(scope="module")
def client(agent: Stand) -> Iterator[Client]:
    made = Client(agent.address, concurrency=2)
    yield made
    made.close()


def tensor(values: np.ndarray[Any, Any] = X, binary: bool = True) -> triton.InferInput:
    made = triton.InferInput("x", list(values.shape), "FP32")
    made.set_data_from_numpy(values, binary_data=binary)
    return made


def refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InferenceServerException, match=words):
        call()


def health(client: Client) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("kws") and client.is_model_ready("kws", "1")
    assert not client.is_model_ready("nope") and not client.is_model_ready("kws", "9")


def metadata(client: Client) -> None:
    assert {"system_shared_memory", "trace", "logging", "statistics"} <= {
        *client.get_server_metadata()["extensions"]
    }
    assert client.get_model_metadata("kws", "1")["inputs"][0] == {
        "name": "x",
        "datatype": "FP32",
        "shape": [-1, 4],
    }
    config = client.get_model_config("kws")
    assert config["input"][0]["data_type"] == "TYPE_FP32" and config["input"][0]["dims"] == [4]
    refused(lambda: client.get_model_metadata("nope"), "unknown model")
    refused(lambda: client.get_model_config("kws", "9"), "version 9 is not found")


def repository(client: Client) -> None:
    assert client.get_model_repository_index() == [{"name": "kws", "version": "1", "state": "READY"}]
    refused(lambda: client.load_model("kws"), "releases come from the fleet")
    refused(lambda: client.load_model("kws", config="{}", files={"file:1/m": b"x"}), "come from the fleet")
    refused(lambda: client.unload_model("kws"), "releases come from the fleet")
    assert client.is_model_ready("kws")


def inference(client: Client) -> None:
    for binary in (True, False):
        wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
        answer = client.infer("kws", [tensor(binary=binary)], outputs=wanted, request_id="7")
        assert np.array_equal(answer.as_numpy("y"), X * 2) and answer.get_response()["id"] == "7"
    for name in ("gzip", "deflate"):
        answer = client.infer(
            "kws", [tensor()], request_compression_algorithm=name, response_compression_algorithm=name
        )
        assert np.array_equal(answer.as_numpy("y"), X * 2)
        many = np.tile(X, (100, 1))
        for binary in (True, False):
            wanted = [triton.InferRequestedOutput("y", binary_data=binary)]
            answer = client.infer("kws", [tensor(many)], outputs=wanted, response_compression_algorithm=name)
            assert np.array_equal(answer.as_numpy("y"), many * 2)
    calls = [client.async_infer("kws", [tensor(X + number)]) for number in range(4)]
    for number, call in enumerate(calls):
        assert np.array_equal(call.get_result().as_numpy("y"), (X + number) * 2)
    _, size = Client.generate_request_body([tensor()])
    assert size and Client.parse_response_body(b'{"outputs":[]}').get_response() == {"outputs": []}
    refused(lambda: client.infer("nope", [tensor()]), "unknown model")
    refused(lambda: client.infer("kws", [tensor()], model_version="9"), "version 9")
    refused(lambda: client.infer("kws", [tensor(X[:, :3].copy())]), "expected shape")


def statistics(client: Client) -> None:
    client.infer("kws", [tensor()])
    (model,) = client.get_inference_statistics("kws")["model_stats"]
    (everything,) = client.get_inference_statistics()["model_stats"]
    assert model["name"] == everything["name"] == "kws"
    assert model["inference_count"] >= 2 * model["execution_count"] > 0
    assert sum(batch["compute_infer"]["count"] for batch in model["batch_stats"]) == model["execution_count"]
    assert all(batch[step]["ns"] > 0 for batch in model["batch_stats"] for step in COMPUTE)
    samples = sum(batch["compute_infer"]["count"] * batch["batch_size"] for batch in model["batch_stats"])
    assert samples >= model["inference_count"] > 0
    refused(lambda: client.get_inference_statistics("nope"), "unknown model")


def settings(client: Client) -> None:
    assert client.get_trace_settings()["trace_level"] == client.get_trace_settings("kws")["trace_level"]
    assert client.update_trace_settings(settings={"trace_level": ["OFF"]})["trace_level"] == ["OFF"]
    assert client.update_trace_settings("kws", {"trace_rate": None})["trace_rate"] == "1000"
    refused(lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}), "not traced")
    refused(lambda: client.get_trace_settings("nope"), "unknown model")
    before = client.get_log_settings()
    assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    assert client.update_log_settings({"log_verbose_level": 0, "log_info": False}) == before
    refused(lambda: client.update_log_settings({"log_error": False}), "cannot be changed")


def system_memory(client: Client) -> None:
    key = next(REGIONS)
    region = shm.create_shared_memory_region("r", key, 256)
    try:
        shm.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("r", f"/{key}", 256)
        wanted = [{"name": "r", "key": f"/{key}", "offset": 0, "byte_size": 256}]
        assert client.get_system_shared_memory_status() == wanted
        assert client.get_system_shared_memory_status("r") == wanted
        refused(lambda: client.register_system_shared_memory("r", f"/{key}", 256), "already in manager")
        given = triton.InferInput("x", [2, 4], "FP32")
        given.set_shared_memory("r", 32)
        output = triton.InferRequestedOutput("y")
        output.set_shared_memory("r", 32, offset=64)
        answer = client.infer("kws", [given], outputs=[output])
        assert answer.get_output("y")["shape"] == [2, 4] and "data" not in answer.get_output("y")
        found = shm.get_contents_as_numpy(region, np.float32, [2, 4], offset=64)
        assert np.array_equal(found, X * 2)
        # one way only
        assert np.array_equal(client.infer("kws", [given]).as_numpy("y"), X * 2)
        shm.set_shared_memory_region(region, [np.zeros((2, 4), np.float32)], offset=64)
        client.infer("kws", [tensor()], outputs=[output])
        assert np.array_equal(shm.get_contents_as_numpy(region, np.float32, [2, 4], offset=64), X * 2)
        mistakes_with_memory(client, given, output)
        client.unregister_system_shared_memory("r")
        refused(lambda: client.infer("kws", [given]), "Unable to find shared memory region")
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        shm.destroy_shared_memory_region(region)
    refused(lambda: client.register_system_shared_memory("gone", f"/{key}", 256), "Unable to open")
    refused(lambda: client.get_system_shared_memory_status("gone"), "Unable to find system shared memory")


def mistakes_with_memory(
    client: Client, given: triton.InferInput, output: triton.InferRequestedOutput
) -> None:
    output.set_shared_memory("r", 31, offset=64)
    refused(lambda: client.infer("kws", [given], outputs=[output]), "at least 32 bytes")
    output.set_shared_memory("r", 32, offset=240)
    refused(lambda: client.infer("kws", [given], outputs=[output]), "Invalid offset")
    given.set_shared_memory("r", 32, offset=240)
    refused(lambda: client.infer("kws", [given]), "Invalid offset")
    given.set_shared_memory("r", 33)
    refused(lambda: client.infer("kws", [given]), "must be 32")
    given.set_shared_memory("other", 32)
    refused(lambda: client.infer("kws", [given]), "Unable to find shared memory region: 'other'")
    large = triton.InferInput("x", [1 << 20, 4], "FP32")
    large.set_shared_memory("r", 1 << 24)
    refused(lambda: client.infer("kws", [large]), "more than|Invalid offset")
    given.set_shared_memory("r", 32)


def cuda_memory(client: Client) -> None:
    assert client.get_cuda_shared_memory_status() == []
    refused(lambda: client.register_cuda_shared_memory("c", b"handle", 0, 64), "CUDA shared memory is not")
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("c")


CHECKS: dict[Callable[[Client], None], set[str]] = {
    health: {"is_server_live", "is_server_ready", "is_model_ready"},
    metadata: {"get_server_metadata", "get_model_metadata", "get_model_config"},
    repository: {"get_model_repository_index", "load_model", "unload_model"},
    inference: {"infer", "async_infer", "generate_request_body", "parse_response_body"},
    statistics: {"get_inference_statistics"},
    settings: {
        "get_trace_settings", "update_trace_settings", "get_log_settings", "update_log_settings",
    },
    system_memory: {
        "register_system_shared_memory", "unregister_system_shared_memory", "get_system_shared_memory_status",
    },
    cuda_memory: {
        "register_cuda_shared_memory", "unregister_cuda_shared_memory", "get_cuda_shared_memory_status",
    },
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_call(client: Client, check: Callable[[Client], None]) -> None:
    check(client)


def test_no_call_is_left_out() -> None:
    calls = {name for name in vars(Client) if not name.startswith("_")}
    assert calls - {"close"} == set().union(*CHECKS.values())


def test_the_asyncio_client(agent: Stand) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(agent.address) as client:
            assert await client.is_server_ready() and await client.is_model_ready("kws")
            answers = await asyncio.gather(*(client.infer("kws", [tensor(X + n)]) for n in range(8)))
            for number, answer in enumerate(answers):
                assert np.array_equal(answer.as_numpy("y"), (X + number) * 2)
            assert (await client.get_log_settings())["log_error"] is True

    asyncio.run(main())


OTHER_USER = """
import encodings.idna, http.client, json, os, sys
os.setuid(65534)
connection = http.client.HTTPConnection(sys.argv[1])

def call(method, path, document=None):
    connection.request(method, path, json.dumps(document) if document else None)
    response = connection.getresponse()
    print(response.status, response.read().decode())

call("GET", "/v2/systemsharedmemory/status")
where = {"shared_memory_region": "r", "shared_memory_byte_size": 32}
given = {"name": "x", "datatype": "FP32", "shape": [2, 4], "parameters": where}
call("POST", "/v2/models/kws/infer", {"inputs": [given]})
given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
call("POST", "/v2/models/kws/infer", {"inputs": [given], "outputs": [{"name": "y", "parameters": where}]})
call("POST", "/v2/systemsharedmemory/region/r/register", {"key": sys.argv[2], "byte_size": 32})
call("POST", "/v2/systemsharedmemory/unregister")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
def test_one_user_does_not_reach_the_memory_of_another(agent: Stand, client: Client, tmp_path: Path) -> None:
    key = next(REGIONS)
    region = shm.create_shared_memory_region("r", key, 64)
    try:
        shm.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("r", f"/{key}", 64)
        done = subprocess.run(
            [sys.executable, "-c", OTHER_USER, agent.address, f"/{key}"],
            capture_output=True, text=True, timeout=60, cwd="/", check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        status, read, write, register, unregister = done.stdout.splitlines()
        assert (status, unregister) == ("200 []", "200 ")
        assert read.startswith("400") and "Unable to find shared memory region: 'r'" in read
        assert write.startswith("400") and "Unable to find shared memory region: 'r'" in write
        assert register.startswith("400") and "Unable to open shared memory region" in register
        assert np.array_equal(shm.get_contents_as_numpy(region, np.float32, [2, 4]), X)
        assert len(client.get_system_shared_memory_status()) == 1
        client.unregister_system_shared_memory()
    finally:
        shm.destroy_shared_memory_region(region)
