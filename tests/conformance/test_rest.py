"""The REST protocols of a started agent, as their clients and their documents' curl lines use them."""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgekit_agent.serve.limits import Limits
from tests.support.serving import Stand, UnixConnection, linear, several, stand

RAW = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "<f4").tobytes()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Serves y = 2 x for rows of 4, with labels, as kws 0.1.0."""
    limits = Limits(max_body_bytes=100_000, max_batch=16)
    with stand(tmp_path_factory.mktemp("rest"), limits) as made:
        loaded = linear(2.0, "0.1.0").into(made.serving)
        assert loaded.ok, loaded
        yield made


class Client:
    """One kept connection; it must be the same one at the end."""

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection
        connection.connect()
        self._sock = connection.sock

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and document; text and other bytes as they are."""
        if body is not None and not isinstance(body, bytes | str):
            body = json.dumps(body)
        self._connection.request(method, path, body, headers or {})
        response = self._connection.getresponse()
        data = response.read()
        self.headers = response.headers
        if response.headers["Content-Encoding"]:
            assert len(data) < 500
            data = zlib.decompress(data, 32 + zlib.MAX_WBITS)
        kind = response.headers["Content-Type"]
        return response.status, json.loads(data) if kind == "application/json" and data else data

    def close(self) -> None:
        assert self._connection.sock is self._sock, "the connection did not survive"
        self._connection.close()


@pytest.fixture
def call(agent: Stand) -> Iterator[Client]:
    made = Client(http.client.HTTPConnection(agent.address, timeout=30))
    yield made
    assert made("GET", "/v2/health/live")[0] == 200
    made.close()


# --- TensorFlow Serving


@pytest.mark.parametrize(
    "path",
    [
        "kws", "kws/versions/1000", "kws/versions/0", "kws/versions/0.1.0", "kws/labels/stable",
    ],
)  # fmt: skip
def test_tensorflow_serving(call: Client, path: str) -> None:
    status = {"version": "1000", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert call("GET", f"/v1/models/{path}")[1]["model_version_status"] == [status]
    rows = {"instances": [[1, 2, 3, 4], [0, 0.5, 0, 0]]}
    wanted = [[2.0, 4.0, 6.0, 8.0], [0.0, 1.0, 0.0, 0.0]]
    assert call("POST", f"/v1/models/{path}:predict", rows) == (200, {"predictions": wanted})
    named = {"signature_name": "serving_default", "instances": [{"x": row} for row in rows["instances"]]}
    assert call("POST", f"/v1/models/{path}:predict", named) == (200, {"predictions": wanted})
    for inputs in (rows["instances"], {"x": rows["instances"]}):
        assert call("POST", f"/v1/models/{path}:predict", {"inputs": inputs}) == (200, {"outputs": wanted})
    examples = {"examples": [{"x": [0, 1, 0, 0]}]}
    classes = [["a", 0.0], ["b", 2.0], ["c", 0.0], ["d", 0.0]]
    assert call("POST", f"/v1/models/{path}:classify", examples) == (200, {"results": [classes]})
    found = call("GET", f"/v1/models/{path}/metadata")[1]
    assert found["model_spec"] == {"name": "kws", "signature_name": "", "version": "1000"}
    signature = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    dims = [{"size": "-1", "name": ""}, {"size": "4", "name": ""}]
    assert signature["inputs"]["x"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": dims, "unknown_rank": False},
        "name": "x:0",
    }
    assert signature["method_name"] == "tensorflow/serving/predict" and "y" in signature["outputs"]


def test_regression_has_one_value_for_a_sample(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("one")) as made:
        assert linear(3.0, width=1).into(made.serving).ok
        call = Client(http.client.HTTPConnection(made.address, timeout=30))
        body = {"signature_name": "tensorflow/serving/regress", "examples": [{"x": 1.0}, {"x": [2.0]}]}
        assert call("POST", "/v1/models/kws:regress", body) == (200, {"results": [3.0, 6.0]})
        call.close()


def test_curl_as_in_tensorflow_servings_guide(call: Client) -> None:
    """`curl -d` says that JSON is a form; TensorFlow Serving does not look."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, body = call("POST", "/v1/models/kws:predict", '{"instances": [[1.0, 2.0, 5.0, 0.0]]}', form)
    assert (status, body) == (200, {"predictions": [[2.0, 4.0, 10.0, 0.0]]})
    status, body = call("POST", "/v1/models/half:predict", '{"instances": [1.0, 5.0]}', form)
    assert (status, body) == (404, {"error": "Servable not found for request: Latest(half)"})
    status, body = call("GET", "/v1/models/half/versions/9")
    assert (status, body) == (404, {"error": "Could not find version 9 of model half"})


# --- KServe


def test_kserve_v1(call: Client) -> None:
    assert call("GET", "/v1/models") == (200, {"models": ["kws"]})
    status, body = call("GET", "/v1/models/kws")
    assert (status, body["name"], body["ready"]) == (200, "kws", True)
    status, body = call("POST", "/v1/models/kws:predict", {"instances": [[1, 0, 0, 0]]}, JSON)
    assert (status, body) == (200, {"predictions": [[2.0, 0.0, 0.0, 0.0]]})
    assert call("GET", "/v1/models/nope")[0] == 404


# --- TorchServe


def test_torchserve_health_and_descriptions(call: Client) -> None:
    assert call("GET", "/ping") == (200, {"status": "Healthy"})
    for method, path in (("OPTIONS", "/"), ("GET", "/api-description")):
        status, body = call(method, path)
        assert (status, body["openapi"]) == (200, "3.0.1")
        assert {"/ping", "/predictions/{model_name}"} <= body["paths"].keys()
    status, body = call("OPTIONS", "/predictions/kws")
    schema = body["paths"]["/predictions/kws"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["x"]["items"]["maxItems"] == 4
    assert call("GET", "/models") == (200, {"models": [{"modelName": "kws", "modelUrl": "kws:0.1.0"}]})
    assert call("GET", "/models?limit=5&next_page_token=1") == (200, {"models": []})
    for path in ("/models/kws", "/models/kws/0.1.0", "/models/kws/all", "/models/kws?customized=true"):
        status, (body,) = call("GET", path)
        assert (body["modelName"], body["modelVersion"]) == ("kws", "0.1.0")
        assert body["workers"][0]["status"] == "READY" and body["workers"][0]["memoryUsage"] > 1 << 20
        assert body["jobQueueStatus"]["pendingRequests"] == 0


def multipart(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n'.encode()
        + b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n"
        for name, data in parts
    )  # fmt: skip
    return body + b"--edge--\r\n", {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.mark.parametrize("path", ["/predictions/kws", "/predictions/kws/0.1.0"])
def test_torchserve_predictions(call: Client, path: str) -> None:
    one, two = [2.0, 4.0, 6.0, 8.0], [10.0, 12.0, 14.0, 16.0]
    assert call("POST", path, [1, 2, 3, 4], JSON) == (200, one)
    assert call("POST", path, {"x": [[1, 2, 3, 4]]}, JSON) == (200, [one])
    assert call("POST", path, {"data": [1, 2, 3, 4]}, JSON) == (200, one)
    assert call("PUT", path, RAW[:16]) == (200, one)  # curl -T
    assert call("POST", path, RAW, {"Content-Type": "application/octet-stream"}) == (200, [one, two])
    assert call("POST", path, *multipart(("data", RAW[:16]))) == (200, one)
    assert call("POST", path, *multipart(("data", RAW[:16]), ("data", b"[5,6,7,8]"))) == (200, [one, two])
    assert call("POST", path, {"instances": [[1, 2, 3, 4]]}, JSON) == (200, {"predictions": [one]})
    zipped = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    assert call("POST", path, zlib.compress(b"[1, 2, 3, 4]"), zipped) == (200, one)


# --- Triton's generate extension


def test_generate(call: Client) -> None:
    wanted = {"model_name": "kws", "model_version": "0.1.0", "y": [2.0, 4.0, 6.0, 8.0]}
    for path in ("/v2/models/kws", "/v2/models/kws/versions/0.1.0"):
        body = {"id": "7", "x": [1, 2, 3, 4], "parameters": {"temperature": 0.5}, "stream": False}
        assert call("POST", f"{path}/generate", body) == (200, {"id": "7", **wanted})
        status, events = call("POST", f"{path}/generate_stream", {"parameters": {"x": [1, 2, 3, 4]}})
        assert status == 200 and call.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert events.startswith(b"data: ") and events.endswith(b"\n\n")
        assert json.loads(events[6:]) == wanted


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, deflate", "br", ""])
def test_answers_are_compressed_for_who_asks_for_that_alone(call: Client, coding: str) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [16, 4], "data": [1.5] * 64}
    headers = {"Accept-Encoding": coding} if coding else {}
    status, body = call("POST", INFER, {"inputs": [tensor]}, headers)
    assert status == 200
    assert call.headers["Content-Encoding"] == (coding if coding in ("gzip", "deflate") else None)
    assert body["outputs"][0]["data"] == [3.0] * 64


# --- models with several inputs and outputs


def test_several_inputs_and_outputs(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("several")) as made:
        model = several()
        assert model.into(made.serving).ok
        call = Client(http.client.HTTPConnection(made.address, timeout=30))
        rows = [{"a": [1, 2], "b": [10, 20]}, {"a": [3, 4], "b": [30, 40]}]
        answer = [
            {"sum": [11.0, 22.0], "difference": [-9.0, -18.0]},
            {"sum": [33.0, 44.0], "difference": [-27.0, -36.0]},
        ]
        columns = {name: [row[name] for row in rows] for name in ("a", "b")}
        outputs = {name: [row[name] for row in answer] for name in ("sum", "difference")}
        predict = "/v1/models/kws:predict"
        assert call("POST", predict, {"instances": rows}) == (200, {"predictions": answer})
        assert call("POST", predict, {"inputs": columns}) == (200, {"outputs": outputs})
        assert call("POST", predict, {"instances": [[1, 2]]})[0] == 400
        assert call("POST", "/predictions/kws", columns, JSON) == (200, outputs)
        assert call("POST", "/predictions/kws", rows[0], JSON) == (200, answer[0])
        parts = multipart(("a", b"[1, 2]"), ("b", np.array([10, 20], "<f4").tobytes()))
        assert call("POST", "/predictions/kws", *parts) == (200, answer[0])
        _, body = call("POST", "/v2/models/kws/generate", rows[0])
        assert (body["sum"], body["difference"]) == (answer[0]["sum"], answer[0]["difference"])
        call.close()


# --- clients' mistakes

PREDICT, TORCH, GENERATE = "/v1/models/kws:predict", "/predictions/kws", "/v2/models/kws/generate"
INFER = "/v2/models/kws/infer"
MISTAKES: list[tuple[str, str, Any, dict[str, str], int]] = [
    # TensorFlow Serving and KServe
    ("POST", PREDICT, b"", {}, 400),
    ("POST", PREDICT, b"{bad", {}, 400),
    ("POST", PREDICT, b'{"instances": [[1,2,3,4]]', {}, 400),
    ("POST", PREDICT, b'{"instances": "\xff"}', {}, 400),
    ("POST", PREDICT, b"[" * 50_000, {}, 400),
    ("POST", PREDICT, b"[]", {}, 400),
    ("POST", PREDICT, {}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, 4]], "inputs": [[1, 2, 3, 4]]}, {}, 400),
    ("POST", PREDICT, {"instances": []}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3]]}, {}, 400),
    ("POST", PREDICT, {"instances": [1, 2, 3, 4]}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, "4"]]}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, None]]}, {}, 400),
    ("POST", PREDICT, {"instances": [{"y": [1, 2, 3, 4]}]}, {}, 400),
    ("POST", PREDICT, {"instances": [[0, 0, 0, 0]] * 17}, {}, 400),
    ("POST", PREDICT, b'{"instances": [[1, 2, 3, NaN]]}', {}, 400),
    ("POST", PREDICT, b'{"instances": [[1, 2, 3, Infinity]]}', {}, 400),
    ("POST", PREDICT, b'{"instances": [[1, 2, 3, 1e999]]}', {}, 400),
    ("POST", PREDICT, b'{"instances": [[1, 2, 3, 1e39]]}', {}, 400),
    ("POST", PREDICT, {"instances": [[3.4e38, 0, 0, 0]], "signature_name": 7}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, 4]], "signature_name": "other"}, {}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, 4]]}, {"Content-Encoding": "gzip"}, 400),
    ("POST", PREDICT, {"instances": [[1, 2, 3, 4]]}, {"Content-Encoding": "br"}, 400),
    ("POST", PREDICT, RAW, {"Content-Type": "application/octet-stream"}, 400),
    ("GET", PREDICT, None, {}, 405),
    ("POST", "/v1/models/kws", {}, {}, 405),
    ("DELETE", "/v1/models", None, {}, 405),
    ("POST", "/v1/models/nope:predict", {"instances": [[1, 2, 3, 4]]}, {}, 404),
    ("POST", "/v1/models/kws/versions/9:predict", {"instances": [[1, 2, 3, 4]]}, {}, 404),
    ("POST", "/v1/models/kws/versions/x:predict", {"instances": [[1, 2, 3, 4]]}, {}, 404),
    ("POST", "/v1/models/kws/labels/canary:predict", {"instances": [[1, 2, 3, 4]]}, {}, 400),
    ("GET", "/v1/models/kws/labels/canary", None, {}, 400),
    ("GET", "/v1/models/kws/versions/9", None, {}, 404),
    ("GET", "/v1/models/nope/metadata", None, {}, 404),
    ("GET", "/v1/models/%00%ff/metadata", None, {}, 404),
    ("POST", "/v1/models/kws:explain", {}, {}, 404),
    ("POST", "/v1/models/kws:classify", {"examples": [{"x": [1]}]}, {}, 400),
    ("POST", "/v1/models/kws:classify", {"examples": [{"x": [1, 2, 3, 4]}] * 17}, {}, 400),
    ("POST", "/v1/models/kws:regress", {"examples": [{"x": [1, 2, 3, 4]}]}, {}, 400),
    # TorchServe
    ("POST", TORCH, b"", {}, 400),
    ("POST", TORCH, b"[1, 2, 3", JSON, 400),
    ("POST", TORCH, b"[1, 2, 3, \xff]", JSON, 400),
    ("POST", TORCH, b"[1, 2, 3, NaN]", JSON, 400),
    ("POST", TORCH, [1, 2, 3], JSON, 400),
    ("POST", TORCH, ["1", 2, 3, 4], JSON, 400),
    ("POST", TORCH, {"y": [1, 2, 3, 4]}, JSON, 400),
    ("POST", TORCH, [[0, 0, 0, 0]] * 17, JSON, 400),
    ("POST", TORCH, RAW[:-1], {}, 400),
    ("POST", TORCH, np.array([np.nan] * 4, "<f4").tobytes(), {}, 400),
    ("POST", TORCH, b"--edge", {"Content-Type": "multipart/form-data; boundary=edge"}, 400),
    ("POST", TORCH, b"x", {"Content-Type": "multipart/form-data"}, 400),
    ("POST", TORCH, multipart(("z", b"[1,2,3,4]"))[0], multipart()[1], 400),
    ("POST", TORCH, multipart(("x", b"[1,2,3,4]"))[0][:-6], multipart()[1], 400),
    ("DELETE", TORCH, None, {}, 405),
    ("GET", TORCH, None, {}, 405),
    ("POST", "/ping", None, {}, 405),
    ("POST", "/predictions/nope", [1, 2, 3, 4], JSON, 404),
    ("POST", "/predictions/kws/9", [1, 2, 3, 4], JSON, 404),
    ("OPTIONS", "/predictions/nope", None, {}, 404),
    ("GET", "/models/nope", None, {}, 404),
    ("GET", "/models/kws/9", None, {}, 404),
    ("GET", "/models?limit=x", None, {}, 400),
    ("GET", "/models?limit=-1", None, {}, 400),
    ("GET", "/models?" + "a=1&" * 100, None, {}, 400),
    ("POST", "/models?url=evil.mar", None, {}, 405),
    ("PUT", "/models/kws?min_worker=3", None, {}, 405),
    ("DELETE", "/models/kws", None, {}, 405),
    # Triton
    ("POST", GENERATE, b"{", {}, 400),
    ("POST", GENERATE, {"text_input": "x"}, {}, 400),
    ("POST", GENERATE, {"x": [1, 2, 3]}, {}, 400),
    ("POST", GENERATE, {"x": "text"}, {}, 400),
    ("POST", GENERATE, {"x": [1, 2, 3, 4], "parameters": 7}, {}, 400),
    ("POST", GENERATE, {"x": [1, 2, 3, 4], "other": {}}, {}, 400),
    ("POST", GENERATE, b'{"x": [1, 2, 3, -Infinity]}', {}, 400),
    ("GET", GENERATE, None, {}, 405),
    ("POST", "/v2/models/nope/generate", {"x": [1, 2, 3, 4]}, {}, 404),
    ("POST", "/v2/models/kws/versions/9/generate_stream", {"x": [1, 2, 3, 4]}, {}, 404),
    ("POST", "/v2/repository/models/kws/load", {}, {}, 400),
    ("POST", "/v2/repository/models/kws/unload", {}, {}, 400),
    ("GET", "/v2/repository/models/kws/unload", None, {}, 405),
    ("POST", "/v2/logging", {"log_file": "/tmp/x"}, {}, 400),
    ("POST", "/v2/logging", b"[]", {}, 400),
    ("POST", "/v2/logging", b'{"log_info": ' + b"1" * 70_000 + b"}", {}, 400),
    ("POST", "/v2/trace/setting", {"trace_level": ["TIMESTAMPS"]}, {}, 400),
    ("GET", "/v2/models/nope/trace/setting", None, {}, 404),
    ("POST", "/v2/systemsharedmemory/region/r/register", {"key": "/nope", "byte_size": 10}, {}, 400),
    ("POST", "/v2/systemsharedmemory/region/r/register", {"key": "/nope", "byte_size": "10"}, {}, 400),
    ("POST", "/v2/systemsharedmemory/region/r/register", {"key": 7, "byte_size": 10}, {}, 400),
    ("GET", "/v2/systemsharedmemory/region/r/status", None, {}, 400),
    ("POST", "/v2/cudasharedmemory/region/r/register", {}, {}, 400),
    ("POST", INFER, b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,NaN]}]}', {}, 400),
    (
        "POST",
        INFER,
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,1e999]}]}',
        {},
        400,
    ),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    MISTAKES,
    ids=[f"{number}-{method}-{path[:40]}" for number, (method, path, *_) in enumerate(MISTAKES)],
)
def test_a_mistake_is_the_clients_in_the_protocols_words(
    call: Client, method: str, path: str, body: Any, headers: dict[str, str], status: int
) -> None:
    found, document = call(method, path, body, headers)
    assert found == status, document
    if path.startswith(("/predictions", "/models", "/ping")):
        assert set(document) == {"code", "type", "message"} and document["code"] == status
        text = document["message"]
        assert document["type"].endswith("Exception")
    else:
        assert set(document) == {"error"}
        text = document["error"]
    assert text and "\n" not in text and len(text) < 400
    assert (status == 405) == ("Allow" in call.headers)
    good = {"instances": [[1, 0, 0, 0]]}
    assert call("POST", PREDICT, good) == (200, {"predictions": [[2.0, 0.0, 0.0, 0.0]]})


def test_mistakes_are_no_errors_of_the_release(agent: Stand, call: Client) -> None:
    """Else a client could have the fleet take a release back."""
    before = agent.serving.stats().releases[-1]
    nan = np.array([[np.nan, 0, 0, 0]], "<f4").tobytes()
    head = json.dumps(
        {
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
            ]
        }
    ).encode()
    binary = {"Inference-Header-Content-Length": str(len(head))}
    assert call("POST", INFER, head + nan, binary)[0] == 400
    assert call("POST", TORCH, nan)[0] == 400
    after = agent.serving.stats().releases[-1]
    assert after.errors == before.errors and after.rejected == before.rejected + 2


def test_nothing_is_served_says_every_protocol(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("empty")) as made:
        call = Client(http.client.HTTPConnection(made.address, timeout=30))
        assert call("GET", "/v1/models") == (200, {"models": []})
        assert call("GET", "/models") == (200, {"models": []})
        assert call("GET", "/ping") == (503, {"status": "Unhealthy"})
        for method, path, body in (
            ("GET", "/v1/models/kws", None),
            ("POST", PREDICT, {"instances": [[1, 2, 3, 4]]}),
            ("POST", TORCH, [1, 2, 3, 4]),
            ("GET", "/models/kws", None),
            ("POST", GENERATE, {"x": [1, 2, 3, 4]}),
        ):
            status, document = call(method, path, body)
            assert (status, call.headers["Retry-After"]) == (503, "1"), path
            assert "no model is loaded" in (document.get("error") or document["message"])
        call.close()


def test_the_unix_socket_speaks_every_protocol(agent: Stand) -> None:
    call = Client(UnixConnection(agent.path))
    assert call("POST", PREDICT, {"instances": [[1, 0, 0, 0]]})[0] == 200
    assert call("POST", TORCH, [1, 0, 0, 0], JSON)[0] == 200
    assert call("GET", "/v2/systemsharedmemory/status") == (200, [])
    call.close()


def test_only_chosen_protocols_are_spoken(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("some"), protocols=("kserve",)) as made:
        assert linear(2.0).into(made.serving).ok
        call = Client(http.client.HTTPConnection(made.address, timeout=30))
        assert call("POST", PREDICT, {"instances": [[1, 0, 0, 0]]})[0] == 200
        assert call("GET", "/v1/models/kws")[1]["ready"] is True
        for path in ("/v1/models/kws/metadata", "/ping", "/v2", "/v2/logging"):
            assert call("GET", path) == (404, {"error": "Not Found"})
        call.close()
