"""gRPC as clients know it: Triton's own client library, every call it has, against a serving process."""

from __future__ import annotations

import asyncio
import queue
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from edgekit.runtimes import Array
from edgekit_agent.serve.limits import Limits
from tests.support.serving import Stand, keyword_spotter, linear, several, stand
from tests.support.standin import Identity
from tests.unit.agent.serve.test_http import serving
from tests.unit.runtimes import kws

ROWS = slice(200, 210)
KEY = f"edgekit-test-{secrets.token_hex(6)}"
"""Whoever runs these tests on the same machine has the same shared memory."""


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("spotter")) as made:
        loaded = keyword_spotter().into(made.serving)
        assert loaded.ok, loaded
        yield made


@pytest.fixture(scope="module")
def client(spotter: Stand) -> Iterator[Any]:
    made = triton.InferenceServerClient(spotter.address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """512 floats in and out, doubled."""
    with stand(tmp_path_factory.mktemp("wide")) as made:
        assert linear(2.0, width=512).into(made.serving).ok
        yield made


def stored(rows: slice = ROWS) -> Any:
    return tensor(kws.INPUT, kws.data()[0][rows], "INT8")


def tensor(name: str, array: Array, datatype: str = "FP32") -> Any:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def expected(rows: slice = ROWS) -> Array:
    session = kws.session("onnxruntime", intra_threads=1)
    real = (kws.data()[0][rows].astype(np.float32) - np.float32(83.0)) * np.float32(kws.SCALE.affine[0].scale)
    return session.run({kws.INPUT: real})[kws.OUTPUT]


# --- every call


def test_server_and_model(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("kws") and client.is_model_ready("kws", "1")
    assert not client.is_model_ready("nope") and not client.is_model_ready("kws", "2")
    server = client.get_server_metadata(as_json=True)
    assert server["name"] == "edgekit" and "binary_tensor_data" in server["extensions"]
    model = client.get_model_metadata("kws", as_json=True)
    assert model["versions"] == ["1"] and model["platform"] == "onnxruntime_onnx"
    assert model["inputs"] == [{"name": kws.INPUT, "datatype": "FP32", "shape": ["-1", "49", "10", "1"]}]
    config = client.get_model_config("kws", as_json=True)["config"]
    assert config["max_batch_size"] == 256 and config["backend"] == "onnxruntime"
    assert config["output"] == [{"name": kws.OUTPUT, "data_type": "TYPE_FP32", "dims": ["12"]}]
    assert config["version_policy"] == {"specific": {"versions": ["1"]}}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_answers_are_the_sessions_own(client: Any, compression: str | None) -> None:
    result = client.infer("kws", [stored()], request_id="42", compression_algorithm=compression)
    np.testing.assert_allclose(result.as_numpy(kws.OUTPUT), expected(), atol=1e-6)
    assert result.get_response().id == "42" and result.get_response().model_version == "1"


def test_typed_contents(client: Any, spotter: Stand) -> None:
    """What clients of other languages send: values in InferTensorContents, not raw octets."""
    rows = kws.data()[0][ROWS]
    request = pb.ModelInferRequest(model_name="kws", model_version="1", id="7")
    item = request.inputs.add(name=kws.INPUT, datatype="INT8", shape=rows.shape)
    item.contents.int_contents.extend(rows.ravel().tolist())
    with grpc.insecure_channel(spotter.address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
        got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(answer.outputs[0].shape)
        np.testing.assert_allclose(got, expected(), atol=1e-6)
        item.contents.int_contents[0] = 128
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "out of range for INT8" in caught.value.details()


def test_classes(client: Any) -> None:
    wanted = [triton.InferRequestedOutput(kws.OUTPUT, class_count=2)]
    texts = client.infer("kws", [stored()], outputs=wanted).as_numpy(kws.OUTPUT)
    best = expected().argmax(axis=1)
    assert texts.shape == (10, 2)
    assert [int(row[0].split(b":")[1]) for row in texts] == best.tolist()


def test_statistics_count(client: Any) -> None:
    before = client.get_inference_statistics("kws", as_json=True)["model_stats"][0]
    client.infer("kws", [stored()])
    with pytest.raises(InferenceServerException):
        client.infer("kws", [tensor(kws.INPUT, np.zeros((1, 3), np.float32))])
    after = client.get_inference_statistics(as_json=True)["model_stats"][0]
    assert int(after["inference_count"]) == int(before.get("inference_count", 0)) + 10
    success, fail = (
        int(after["inference_stats"][kind]["count"]) - int(before["inference_stats"][kind].get("count", 0))
        for kind in ("success", "fail")
    )
    assert (success, fail) == (1, 1)


def test_repository(client: Any) -> None:
    index = client.get_model_repository_index(as_json=True)
    assert index == {"models": [{"name": "kws", "version": "1", "state": "READY"}]}
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="releases come from the fleet") as caught:
            call("kws")
        assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    assert client.is_model_ready("kws")


def test_system_shared_memory(client: Any) -> None:
    """Registered, listed, read from, written to; without it, refused."""
    rows = kws.data()[0][ROWS]
    shared = pytest.importorskip("tritonclient.utils.shared_memory")
    region = shared.create_shared_memory_region("in", f"/{KEY}", rows.nbytes + 480)
    try:
        shared.set_shared_memory_region(region, [rows])
        client.register_system_shared_memory("in", f"/{KEY}", rows.nbytes + 480)
        status = client.get_system_shared_memory_status(as_json=True)["regions"]["in"]
        assert status == {"name": "in", "key": f"/{KEY}", "byte_size": str(rows.nbytes + 480)}
        tensor_in = triton.InferInput(kws.INPUT, list(rows.shape), "INT8")
        tensor_in.set_shared_memory("in", rows.nbytes)
        wanted = triton.InferRequestedOutput(kws.OUTPUT)
        wanted.set_shared_memory("in", 480, offset=rows.nbytes)
        answer = client.infer("kws", [tensor_in], outputs=[wanted]).get_response()
        # As Triton's answers: the C++ client takes each output's octets by its place.
        assert not answer.outputs[0].parameters and answer.raw_output_contents == [b""]
        got = shared.get_contents_as_numpy(region, np.float32, [10, 12], offset=rows.nbytes)
        np.testing.assert_allclose(got, expected(), atol=1e-6)
        client.unregister_system_shared_memory("in")
        assert client.get_system_shared_memory_status(as_json=True) == {}
        with pytest.raises(InferenceServerException) as caught:
            client.infer("kws", [tensor_in])
        assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    finally:
        shared.destroy_shared_memory_region(region)


def test_one_output_in_shared_memory_and_one_in_the_answer(tmp_path: Path) -> None:
    a, b = np.array([[3, 4]], np.float32), np.array([[1, 2]], np.float32)
    shared = pytest.importorskip("tritonclient.utils.shared_memory")
    with stand(tmp_path) as made:
        assert several().into(made.serving).ok
        client = triton.InferenceServerClient(made.address)
        region = shared.create_shared_memory_region("out", f"/{KEY}-two", 8)
        try:
            client.register_system_shared_memory("out", f"/{KEY}-two", 8)
            wanted = [triton.InferRequestedOutput(name) for name in ("sum", "difference")]
            wanted[0].set_shared_memory("out", 8)
            answer = client.infer("kws", [tensor("a", a), tensor("b", b)], outputs=wanted)
            assert (answer.as_numpy("difference") == a - b).all()
            assert (shared.get_contents_as_numpy(region, np.float32, [1, 2]) == a + b).all()
        finally:
            shared.destroy_shared_memory_region(region)
            client.close()


def test_trace_and_log_settings(client: Any) -> None:
    trace = client.get_trace_settings(as_json=True)["settings"]
    assert trace["trace_level"] == {"value": ["OFF"]}
    assert client.update_trace_settings(settings={"trace_rate": None}, as_json=True)["settings"] == trace
    with pytest.raises(InferenceServerException, match="not traced"):
        client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]})
    log = client.get_log_settings(as_json=True)["settings"]
    assert log["log_warning"] == {"bool_param": True}
    client.update_log_settings({"log_verbose_level": 1})
    assert client.get_log_settings(as_json=True)["settings"]["log_verbose_level"] == {"uint32_param": 1}
    assert client.update_log_settings({"log_verbose_level": 0}, as_json=True)["settings"] is not None
    with pytest.raises(InferenceServerException, match="log_error"):
        client.update_log_settings({"log_error": False})


def test_shared_memory_of_cards(client: Any) -> None:
    assert client.get_cuda_shared_memory_status(as_json=True) == {}
    client.unregister_cuda_shared_memory()
    with pytest.raises(InferenceServerException, match="not supported") as caught:
        client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64)
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_health_as_kubernetes_asks(spotter: Stand, tmp_path: Path) -> None:
    def check(address: str, service: bytes = b"") -> bytes:
        with grpc.insecure_channel(address) as channel:
            ask = channel.unary_unary("/grpc.health.v1.Health/Check")
            return bytes(ask(b"\x0a" + bytes((len(service),)) + service, timeout=20))

    assert check(spotter.address) == b"\x08\x01" == check(spotter.address, b"inference.GRPCInferenceService")
    with pytest.raises(grpc.RpcError) as caught:
        check(spotter.address, b"nope")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with stand(tmp_path) as empty:
        assert check(empty.address) == b"\x08\x02"
        with pytest.raises(InferenceServerException) as refused:
            triton.InferenceServerClient(empty.address).infer("kws", [stored()])
        assert refused.value.status() == "StatusCode.UNAVAILABLE"


# --- streams


def test_a_stream_answers_in_order(client: Any) -> None:
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    for number in range(40):
        name = "nope" if number == 20 else "kws"
        client.async_stream_infer(name, [stored(slice(number, number + 1))], request_id=str(number))
    answers = [got.get(timeout=60) for _ in range(40)]
    client.stop_stream()
    whole = expected(slice(0, 40))
    for number, (result, error) in enumerate(answers):
        if number == 20:
            assert "unknown model" in str(error)
        else:
            assert error is None and result.get_response().id == str(number)
            np.testing.assert_allclose(result.as_numpy(kws.OUTPUT), whole[number : number + 1], atol=1e-6)


def test_a_stream_carries_large_messages(wide: Stand) -> None:
    """More than a stream's window at once, both ways, several in flight."""
    client = triton.InferenceServerClient(wide.address)
    got: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: got.put((result, error)))
    x = np.random.default_rng(1).random((256, 512), np.float32)
    for number in range(12):
        client.async_stream_infer("kws", [tensor("x", x + number)])
    for number in range(12):
        result, error = got.get(timeout=60)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), (x + np.float32(number)) * 2)
    client.stop_stream()
    client.close()


# --- many, large, late


def test_many_calls_on_one_connection(wide: Stand) -> None:
    x = np.random.default_rng(2).random((64, 512), np.float32)

    async def main() -> None:
        client = triton_aio.InferenceServerClient(wide.address)
        calls = [client.infer("kws", [tensor("x", x + n)], request_id=str(n)) for n in range(60)]
        for number, result in enumerate(await asyncio.gather(*calls)):
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("y"), (x + np.float32(number)) * 2)
        await client.close()

    asyncio.run(main())


def test_many_clients_at_once(wide: Stand) -> None:
    failures: list[BaseException] = []
    x = np.random.default_rng(3).random((128, 512), np.float32)

    def work(number: int) -> None:
        try:
            client = triton.InferenceServerClient(wide.address)
            for _ in range(10):
                result = client.infer("kws", [tensor("x", x + number)])
                np.testing.assert_array_equal(result.as_numpy("y"), (x + np.float32(number)) * 2)
            client.close()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_message_larger_than_allowed(tmp_path: Path) -> None:
    with stand(tmp_path, Limits(max_body_bytes=100_000)) as small:
        linear(width=512).into(small.serving)
        client = triton.InferenceServerClient(small.address)
        large = tensor("x", np.zeros((100, 512), np.float32))
        for algorithm in (None, "gzip"):
            with pytest.raises(InferenceServerException, match=r"100000 (bytes )?allowed") as caught:
                client.infer("kws", [large], compression_algorithm=algorithm)
            assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert client.infer("kws", [tensor("x", np.ones((2, 512), np.float32))]).as_numpy("y").sum() == 1024
        client.close()


def test_a_deadline(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
        client.infer("kws", [stored(slice(0, 250))], client_timeout=1e-6)
    assert client.infer("kws", [stored()], client_timeout=20).as_numpy(kws.OUTPUT).shape == (10, 12)


@pytest.mark.parametrize(
    ("inputs", "model", "code", "text"),
    [
        ([], "kws", "INVALID_ARGUMENT", "no inputs"),
        ([("x", np.zeros((1, 512), np.float32), "FP32")], "nöpe", "NOT_FOUND", "nöpe"),
        ([("z", np.zeros((1, 512), np.float32), "FP32")], "kws", "INVALID_ARGUMENT", "'x' is missing"),
        ([("x", np.zeros((1, 511), np.float32), "FP32")], "kws", "INVALID_ARGUMENT", "512"),
        ([("x", np.zeros((1, 512), np.int32), "INT32")], "kws", "INVALID_ARGUMENT", "FP32"),
        ([("x", np.array([[b"text"]], object), "BYTES")], "kws", "INVALID_ARGUMENT", "FP32"),
        ([("x", np.zeros((257, 512), np.float32), "FP32")], "kws", "INVALID_ARGUMENT", "256"),
    ],
)
def test_what_is_wrong_is_said(wide: Stand, inputs: Any, model: str, code: str, text: str) -> None:
    client = triton.InferenceServerClient(wide.address)
    with pytest.raises(InferenceServerException, match=text) as caught:
        client.infer(model, [tensor(*item) for item in inputs])
    assert caught.value.status() == f"StatusCode.{code}"
    assert client.is_server_live()
    client.close()


# --- ways in


def test_the_unix_socket(spotter: Stand) -> None:
    client = triton.InferenceServerClient(f"unix:{spotter.path}")
    np.testing.assert_allclose(client.infer("kws", [stored()]).as_numpy(kws.OUTPUT), expected(), atol=1e-6)
    client.close()


def test_curl_over_http2(spotter: Stand) -> None:
    assert shutil.which("curl"), "curl is needed"
    for option in ("--http2-prior-knowledge", "--http1.1"):
        run = ["curl", "-sS", "--max-time", "20", option, f"http://{spotter.address}/v2/models/kws"]
        done = subprocess.run([*run, "-w", "%{http_version}"], capture_output=True, text=True, check=True)
        assert '"name":"kws"' in done.stdout
        assert done.stdout.endswith("2" if "2" in option[:8] else "1.1"), done.stdout


def test_tls_with_alpn(tmp_path: Path) -> None:
    """grpcio insists on ALPN h2; curl takes h2 by itself when it is offered, and 1.1 when told to."""
    identity = Identity(tmp_path / "tls")
    authority = identity.folder / "ca.pem"
    context = identity.server_context(mutual=False)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def call(port: int) -> Array:
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        client = triton.InferenceServerClient(f"localhost:{port}", ssl=True, creds=credentials)
        result = client.infer("kws", [tensor("x", np.ones((2, 4), np.float32))])
        client.close()
        return result.as_numpy("y")  # type: ignore[no-any-return]

    def curl(port: int, *options: str) -> str:
        run = ["curl", "-sS", "--max-time", "20", "--cacert", str(authority), *options]
        run += [f"https://localhost:{port}/v2", "-w", "%{http_version}"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout

    async def main() -> None:
        async with serving("httptools") as (server, _, _):
            loop = asyncio.get_running_loop()
            secure = await loop.create_server(server._connection, "127.0.0.1", 0, ssl=context)
            port = secure.sockets[0].getsockname()[1]
            assert (await asyncio.to_thread(call, port) == 1).all()
            assert (await asyncio.to_thread(curl, port)).endswith("}2")
            assert (await asyncio.to_thread(curl, port, "--http1.1")).endswith("}1.1")
            secure.close()

    asyncio.run(main())
