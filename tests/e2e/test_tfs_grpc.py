"""TensorFlow Serving's gRPC as its official stubs know it, against a serving process."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgekit.runtimes import Array
from edgekit_agent.serve.grpc import tfs_messages as m
from tests.support.ports import free_port
from tests.support.serving import Stand, keyword_spotter, linear, stand
from tests.support.started import started
from tests.support.tfs import use_official_stubs
from tests.unit.agent.serve.grpc.test_wire import compare
from tests.unit.runtimes import kws

pytestmark = pytest.mark.xdist_group("toolenv")
ROWS = slice(200, 210)


@pytest.fixture(scope="module", autouse=True)
def stubs() -> None:
    use_official_stubs()


@pytest.fixture(scope="module")
def spotter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("spotter")) as made:
        loaded = keyword_spotter("1.2.3").into(made.serving)
        assert loaded.ok, loaded
        yield made


@pytest.fixture(scope="module")
def channel(spotter: Stand) -> Iterator[Any]:
    with grpc.insecure_channel(spotter.address) as made:
        yield made


@pytest.fixture(scope="module")
def prediction(channel: Any) -> Any:
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel: Any) -> Any:
    from tensorflow_serving.apis import model_service_pb2_grpc

    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(**spec: Any) -> Any:
    from tensorflow_serving.apis import predict_pb2

    made = predict_pb2.PredictRequest()
    made.model_spec.name = spec.get("name", "kws")
    made.model_spec.signature_name = spec.get("signature", "serving_default")
    if "version" in spec:
        made.model_spec.version.value = spec["version"]
    if "label" in spec:
        made.model_spec.version_label = spec["label"]
    return made


def put(tensor: Any, array: Array, dtype: int, field: str = "tensor_content") -> None:
    tensor.dtype = dtype
    for size in array.shape:
        tensor.tensor_shape.dim.add().size = size
    if field == "tensor_content":
        tensor.tensor_content = array.tobytes()
    else:
        getattr(tensor, field).extend(array.ravel().tolist())


def real() -> Array:
    scale = kws.SCALE.affine[0]
    return (kws.data()[0][ROWS].astype(np.float32) - np.float32(scale.offset)) * np.float32(scale.scale)


def expected() -> Array:
    return kws.session("onnxruntime", intra_threads=1).run({kws.INPUT: real()})[kws.OUTPUT]


def values(tensor: Any) -> Array:
    """As the classic snippet reads an answer: the field of its type."""
    return np.array(tensor.float_val, np.float32).reshape([dim.size for dim in tensor.tensor_shape.dim])


def refused(call: Any, asked: Any, code: str, text: str, **options: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(asked, timeout=20, **options)
    assert caught.value.code().name == code, caught.value
    assert text in caught.value.details()


def test_the_classic_snippet(spotter: Stand) -> None:
    """As it stands in a thousand places; only the address is ours."""
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    channel = grpc.insecure_channel(spotter.address)
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "kws"
    request.model_spec.signature_name = "serving_default"
    put(request.inputs[kws.INPUT], real(), types_pb2.DT_FLOAT)
    result = stub.Predict(request, 10.0)
    scores = np.array(result.outputs[kws.OUTPUT].float_val).reshape(10, 12)
    np.testing.assert_allclose(scores, expected(), atol=1e-6)
    assert result.model_spec.version.value == 1002003
    channel.close()


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize(("field", "dtype"), [("tensor_content", 1), ("float_val", 1), ("int_val", 6)])
def test_predict(prediction: Any, field: str, dtype: int, compression: Any) -> None:
    asked = request()
    array = kws.data()[0][ROWS] if field == "int_val" else real()
    put(asked.inputs[kws.INPUT], array, dtype, field)
    answer = prediction.Predict(asked, timeout=20, compression=compression)
    np.testing.assert_allclose(values(answer.outputs[kws.OUTPUT]), expected(), atol=1e-6)


def test_one_value_fills_a_tensor(prediction: Any) -> None:
    """tensor.proto: the last value is repeated; but not into more memory than a request may have."""
    asked = request()
    tensor = asked.inputs[kws.INPUT]
    tensor.dtype, sizes = 1, (2, 49, 10, 1)
    for size in sizes:
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.append(0.5)
    filled = kws.session("onnxruntime", intra_threads=1).run({kws.INPUT: np.full(sizes, 0.5, np.float32)})
    np.testing.assert_allclose(
        values(prediction.Predict(asked, timeout=20).outputs[kws.OUTPUT]), filled[kws.OUTPUT], atol=1e-6
    )
    tensor.tensor_shape.dim[0].size = 1 << 38
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "larger than")


@pytest.mark.parametrize(
    "spec", [{"version": 1002003}, {"label": "stable"}, {"signature": ""}, {"version": 0}]
)
def test_names_of_the_same_model(prediction: Any, spec: dict[str, Any]) -> None:
    asked = request(**spec)
    put(asked.inputs[kws.INPUT], real(), 1)
    asked.output_filter.append(kws.OUTPUT)
    assert list(prediction.Predict(asked, timeout=20).outputs) == [kws.OUTPUT]


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ({"name": "nope"}, "NOT_FOUND", "Servable not found for request: Latest(nope)"),
        ({"version": 7}, "NOT_FOUND", "Servable not found for request: Specific(kws, 7)"),
        ({"label": "canary"}, "INVALID_ARGUMENT", "version label: canary"),
        ({"signature": "train"}, "INVALID_ARGUMENT", '"train" not found in signature def'),
    ],
)
def test_models_that_there_are_not(prediction: Any, spec: dict[str, Any], code: str, text: str) -> None:
    asked = request(**spec)
    put(asked.inputs[kws.INPUT], real(), 1)
    refused(prediction.Predict, asked, code, text)
    refused(prediction.Predict, asked, code, text, compression=grpc.Compression.Gzip)


def test_requests_that_are_wrong(prediction: Any) -> None:
    asked = request()
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "is missing")
    put(asked.inputs[kws.INPUT], real()[:, :3], 1)
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "49")
    asked = request()
    put(asked.inputs[kws.INPUT], real(), 8)
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "data type 8 is not supported")
    asked = request()
    put(asked.inputs[kws.INPUT], real(), 1)
    asked.inputs[kws.INPUT].tensor_content += b"x"
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "tensor_content has")
    asked = request()
    put(asked.inputs[kws.INPUT], real(), 1)
    asked.output_filter.append("nope")
    refused(prediction.Predict, asked, "INVALID_ARGUMENT", "output tensor alias not found in signature: nope")


def examples(asked: Any, rows: Array, name: str = "x") -> Any:
    for row in rows:
        example = asked.input.example_list.examples.add()
        example.features.feature[name].float_list.value.extend(row.ravel().tolist())
    return asked


def test_classify_regress_and_both(prediction: Any, tmp_path: Any) -> None:
    from tensorflow_serving.apis import classification_pb2, inference_pb2, regression_pb2

    asked = classification_pb2.ClassificationRequest()
    asked.model_spec.name = "kws"
    got = prediction.Classify(examples(asked, real(), kws.INPUT), timeout=20)
    best = [max(row.classes, key=lambda one: one.score).label for row in got.result.classifications]
    labels = keyword_spotter().load.config.labels
    assert best == [labels[index] for index in expected().argmax(axis=1)]
    assert got.model_spec.signature_name == "serving_default"
    rows = np.array([[1.0], [2.5]], np.float32)
    with stand(tmp_path) as made, grpc.insecure_channel(made.address) as channel:
        assert linear(2.0, width=1).into(made.serving).ok
        stub = type(prediction)(channel)
        asked = regression_pb2.RegressionRequest()
        asked.model_spec.name = "kws"
        answer = stub.Regress(examples(asked, rows), timeout=20)
        assert [one.value for one in answer.result.regressions] == [2.0, 5.0]
        asked = inference_pb2.MultiInferenceRequest()
        for method in ("tensorflow/serving/regress", "tensorflow/serving/classify"):
            task = asked.tasks.add()
            task.model_spec.name, task.method_name = "kws", method
        answer = stub.MultiInference(examples(asked, rows), timeout=20)
        assert [one.value for one in answer.results[0].regression_result.regressions] == [2.0, 5.0]
        assert [row.classes[0].score for row in answer.results[1].classification_result.classifications] == [
            2.0,
            5.0,
        ]
        asked.tasks[1].method_name = "tensorflow/serving/predict"
        refused(stub.MultiInference, asked, "INVALID_ARGUMENT", "Unsupported signature method_name")
        asked = regression_pb2.RegressionRequest()
        asked.model_spec.name = "kws"
        refused(stub.Regress, asked, "INVALID_ARGUMENT", "Input is empty")
        refused(stub.Regress, examples(asked, rows, "z"), "INVALID_ARGUMENT", "unknown input 'z'")


def test_metadata(prediction: Any) -> None:
    from tensorflow_serving.apis import get_model_metadata_pb2

    asked = get_model_metadata_pb2.GetModelMetadataRequest()
    asked.model_spec.name = "kws"
    refused(prediction.GetModelMetadata, asked, "INVALID_ARGUMENT", "at least one metadata_field")
    asked.metadata_field.append("signature_def")
    answer = prediction.GetModelMetadata(asked, timeout=20)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert answer.metadata["signature_def"].Unpack(signatures)
    signature = signatures.signature_def["serving_default"]
    info = signature.inputs[kws.INPUT]
    assert info.dtype == 1 and [dim.size for dim in info.tensor_shape.dim] == [-1, 49, 10, 1]
    assert signature.method_name == "tensorflow/serving/predict" and kws.OUTPUT in signature.outputs
    asked.model_spec.name = "nope"
    refused(prediction.GetModelMetadata, asked, "NOT_FOUND", "Latest(nope)")


def test_status(models: Any) -> None:
    from tensorflow_serving.apis import get_model_status_pb2, model_management_pb2

    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "kws"
    (found,) = models.GetModelStatus(asked, timeout=20).model_version_status
    assert (found.version, found.state, found.status.error_code) == (1002003, 30, 0)
    asked.model_spec.version.value = 9
    refused(models.GetModelStatus, asked, "NOT_FOUND", "Specific(kws, 9)")
    reload = model_management_pb2.ReloadConfigRequest()
    refused(models.HandleReloadConfigRequest, reload, "PERMISSION_DENIED", "come from the fleet")


def test_tables_are_the_official_ones() -> None:
    from tensorflow.core.framework import types_pb2
    from tensorflow_serving.apis import (
        classification_pb2,
        get_model_metadata_pb2,
        get_model_status_pb2,
        inference_pb2,
        input_pb2,
        predict_pb2,
        regression_pb2,
    )

    official = {
        m.PREDICT_REQUEST: predict_pb2.PredictRequest,
        m.PREDICT_RESPONSE: predict_pb2.PredictResponse,
        m.INPUT: input_pb2.Input,
        m.EXAMPLES_REQUEST: classification_pb2.ClassificationRequest,
        m.CLASSIFY_RESPONSE: classification_pb2.ClassificationResponse,
        m.REGRESS_RESPONSE: regression_pb2.RegressionResponse,
        m.MULTI_REQUEST: inference_pb2.MultiInferenceRequest,
        m.MULTI_RESPONSE: inference_pb2.MultiInferenceResponse,
        m.METADATA_REQUEST: get_model_metadata_pb2.GetModelMetadataRequest,
        m.METADATA_RESPONSE: get_model_metadata_pb2.GetModelMetadataResponse,
        m.SIGNATURES: get_model_metadata_pb2.SignatureDefMap,
        m.STATUS_REQUEST: get_model_status_pb2.GetModelStatusRequest,
        m.STATUS_RESPONSE: get_model_status_pb2.GetModelStatusResponse,
    }
    for ours, theirs in official.items():
        compare(ours, theirs.DESCRIPTOR)
    names = {"FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING", "FP16": "HALF"}
    for name, number in m.DATA_TYPES.items():
        assert types_pb2.DataType.Name(number) == f"DT_{names.get(name, name)}"


def test_the_classic_snippet_on_the_usual_port(tmp_path: Path) -> None:
    """An agent that listens where TensorFlow Serving would, and says that a port was taken."""
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        usual, other = free_port(), taken.getsockname()[1]
        options = "--also-port", str(usual), "--also-port", str(other)
        with started(tmp_path, linear(2.0), *options) as agent:
            assert agent.port != usual
            with grpc.insecure_channel(f"localhost:{usual}") as channel:
                stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
                asked = request()
                put(asked.inputs["x"], np.ones((1, 4), np.float32), 1)
                answer = stub.Predict(asked, 10.0)
            assert list(answer.outputs["y"].float_val) == [2.0] * 4
            with urllib.request.urlopen(f"http://127.0.0.1:{usual}/v1/models/kws", timeout=10) as page:
                assert b"AVAILABLE" in page.read()
            lines = [line for line in agent.log.read_text().splitlines() if str(other) in line]
            assert len(lines) == 1 and "without this port" in lines[0]
