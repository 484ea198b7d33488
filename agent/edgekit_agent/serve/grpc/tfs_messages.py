"""Messages of tensorflow.serving's PredictionService and ModelService as far as they are used.

Source: tensorflow/serving apis/*.proto, tensorflow/tensorflow core/framework and core/example; tests hold
every field against the descriptors of tensorflow-serving-api.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.wire import Message, choice, many, one, table

DATA_TYPES = {
    "FP32": 1,
    "FP64": 2,
    "INT32": 3,
    "UINT8": 4,
    "INT16": 5,
    "INT8": 6,
    "BYTES": 7,
    "INT64": 9,
    "BOOL": 10,
    "UINT16": 17,
    "FP16": 19,
    "UINT32": 22,
    "UINT64": 23,
}
"""tensorflow.DataType of the protocol's data types."""
AVAILABLE = 30
"""ModelVersionStatus.State."""

MODEL_SPEC = Message(
    "ModelSpec",
    one(1, "name"),
    choice(2, "version", message=Message("Int64Value", one(1, "value", "int64"))),
    one(3, "signature_name"),
    choice(4, "version_label"),
)
DIM = Message("Dim", one(1, "size", "int64"), one(2, "name"))
SHAPE = Message("TensorShapeProto", many(2, "dim", message=DIM), one(3, "unknown_rank", "bool"))
TENSOR = Message(
    "TensorProto",
    one(1, "dtype", "enum"),
    one(2, "tensor_shape", message=SHAPE),
    one(4, "tensor_content", "bytes"),
    many(5, "float_val", "float"),
    many(6, "double_val", "double"),
    many(7, "int_val", "int32"),
    many(8, "string_val", "bytes"),
    many(10, "int64_val", "int64"),
    many(11, "bool_val", "bool"),
    many(13, "half_val", "int32"),
    many(16, "uint32_val", "uint32"),
    many(17, "uint64_val", "uint64"),
)
PREDICT_REQUEST = Message(
    "PredictRequest",
    one(1, "model_spec", message=MODEL_SPEC),
    table(2, "inputs", one(2, "value", "bytes")),  # TENSORs, decoded when the model is known
    many(3, "output_filter"),
)
PREDICT_RESPONSE = Message(
    "PredictResponse",
    table(1, "outputs", one(2, "value", message=TENSOR)),
    one(2, "model_spec", message=MODEL_SPEC),
)

# --- examples, classes, regressions

FEATURE = Message(
    "Feature",
    choice(1, "bytes_list", message=Message("BytesList", many(1, "value", "bytes"))),
    choice(2, "float_list", message=Message("FloatList", many(1, "value", "float"))),
    choice(3, "int64_list", message=Message("Int64List", many(1, "value", "int64"))),
)
FEATURES = Message("Features", table(1, "feature", one(2, "value", message=FEATURE)))
EXAMPLE = Message("Example", one(1, "features", message=FEATURES))
INPUT = Message(
    "Input",
    choice(1, "example_list", message=Message("ExampleList", many(1, "examples", message=EXAMPLE))),
    choice(
        2,
        "example_list_with_context",
        message=Message(
            "ExampleListWithContext", many(1, "examples", message=EXAMPLE), one(2, "context", message=EXAMPLE)
        ),
    ),
)
EXAMPLES_REQUEST = Message(
    "ClassificationRequest", one(1, "model_spec", message=MODEL_SPEC), one(2, "input", "bytes")
)
"""Requests to classify and to regress; `input` is an INPUT."""
CLASSES = Message(
    "Classifications",
    many(1, "classes", message=Message("Class", one(1, "label"), one(2, "score", "float"))),
)
CLASSIFICATION = Message("ClassificationResult", many(1, "classifications", message=CLASSES))
REGRESSION = Message(
    "RegressionResult", many(1, "regressions", message=Message("Regression", one(1, "value", "float")))
)
CLASSIFY_RESPONSE = Message(
    "ClassificationResponse",
    one(1, "result", message=CLASSIFICATION),
    one(2, "model_spec", message=MODEL_SPEC),
)
REGRESS_RESPONSE = Message(
    "RegressionResponse", one(1, "result", message=REGRESSION), one(2, "model_spec", message=MODEL_SPEC)
)
TASK = Message("InferenceTask", one(1, "model_spec", message=MODEL_SPEC), one(2, "method_name"))
MULTI_REQUEST = Message("MultiInferenceRequest", many(1, "tasks", message=TASK), one(2, "input", "bytes"))
MULTI_RESPONSE = Message(
    "MultiInferenceResponse",
    many(
        1,
        "results",
        message=Message(
            "InferenceResult",
            one(1, "model_spec", message=MODEL_SPEC),
            choice(2, "classification_result", message=CLASSIFICATION),
            choice(3, "regression_result", message=REGRESSION),
        ),
    ),
)

# --- metadata and status

METADATA_REQUEST = Message(
    "GetModelMetadataRequest", one(1, "model_spec", message=MODEL_SPEC), many(2, "metadata_field")
)
METADATA_RESPONSE = Message(
    "GetModelMetadataResponse",
    one(1, "model_spec", message=MODEL_SPEC),
    table(
        2, "metadata", one(2, "value", message=Message("Any", one(1, "type_url"), one(2, "value", "bytes")))
    ),
)
TENSOR_INFO = Message(
    "TensorInfo",
    choice(1, "name"),
    one(2, "dtype", "enum"),
    one(3, "tensor_shape", message=SHAPE),
)
SIGNATURE = Message(
    "SignatureDef",
    table(1, "inputs", one(2, "value", message=TENSOR_INFO)),
    table(2, "outputs", one(2, "value", message=TENSOR_INFO)),
    one(3, "method_name"),
)
SIGNATURES = Message("SignatureDefMap", table(1, "signature_def", one(2, "value", message=SIGNATURE)))
STATUS_REQUEST = Message("GetModelStatusRequest", one(1, "model_spec", message=MODEL_SPEC))
STATUS_RESPONSE = Message(
    "GetModelStatusResponse",
    many(
        1,
        "model_version_status",
        message=Message(
            "ModelVersionStatus",
            one(1, "version", "int64"),
            one(2, "state", "enum"),
            one(
                3,
                "status",
                message=Message("StatusProto", one(1, "error_code", "enum"), one(2, "error_message")),
            ),
        ),
    ),
)
