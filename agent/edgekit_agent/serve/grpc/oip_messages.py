"""Messages of inference.GRPCInferenceService as far as they are used.

Source: triton-inference-server/common protobuf/grpc_service.proto and model_config.proto; tests hold every
field against the descriptors of tritonclient.
"""

from __future__ import annotations

from edgekit_agent.serve.grpc.wire import Message, choice, many, one, table

EMPTY = Message("Empty")
NAMED = Message("Named", one(1, "name"), one(2, "version"))
"""Requests for ModelReady, ModelMetadata, ModelConfig, ModelStatistics."""
LIVE = Message("ServerLiveResponse", one(1, "live", "bool"))
READY = Message("ServerReadyResponse", one(1, "ready", "bool"))
SERVER_METADATA = Message("ServerMetadataResponse", one(1, "name"), one(2, "version"), many(3, "extensions"))
TENSOR_METADATA = Message("TensorMetadata", one(1, "name"), one(2, "datatype"), many(3, "shape", "int64"))
MODEL_METADATA = Message(
    "ModelMetadataResponse",
    one(1, "name"),
    many(2, "versions"),
    one(3, "platform"),
    many(4, "inputs", message=TENSOR_METADATA),
    many(5, "outputs", message=TENSOR_METADATA),
)

# --- inference

PARAMETER = Message(
    "InferParameter",
    choice(1, "bool_param", "bool"),
    choice(2, "int64_param", "int64"),
    choice(3, "string_param"),
    choice(4, "double_param", "double"),
    choice(5, "uint64_param", "uint64"),
)
_PARAMETERS = table(4, "parameters", one(2, "value", message=PARAMETER))
CONTENTS = Message(
    "InferTensorContents",
    many(1, "bool_contents", "bool"),
    many(2, "int_contents", "int32"),
    many(3, "int64_contents", "int64"),
    many(4, "uint_contents", "uint32"),
    many(5, "uint64_contents", "uint64"),
    many(6, "fp32_contents", "float"),
    many(7, "fp64_contents", "double"),
    many(8, "bytes_contents", "bytes"),
)
INPUT = Message(
    "InferInputTensor",
    one(1, "name"),
    one(2, "datatype"),
    many(3, "shape", "int64"),
    _PARAMETERS,
    one(5, "contents", "bytes"),  # a CONTENTS, decoded when the shape is known
)
REQUESTED = Message(
    "InferRequestedOutputTensor",
    one(1, "name"),
    table(2, "parameters", one(2, "value", message=PARAMETER)),
)
INFER_REQUEST = Message(
    "ModelInferRequest",
    one(1, "model_name"),
    one(2, "model_version"),
    one(3, "id"),
    _PARAMETERS,
    many(5, "inputs", message=INPUT),
    many(6, "outputs", message=REQUESTED),
    many(7, "raw_input_contents", "bytes"),
)
OUTPUT = Message(
    "InferOutputTensor", one(1, "name"), one(2, "datatype"), many(3, "shape", "int64"), _PARAMETERS
)
INFER_RESPONSE = Message(
    "ModelInferResponse",
    one(1, "model_name"),
    one(2, "model_version"),
    one(3, "id"),
    _PARAMETERS,
    many(5, "outputs", message=OUTPUT),
    many(6, "raw_output_contents", "bytes"),
)
STREAM_RESPONSE = Message(
    "ModelStreamInferResponse", one(1, "error_message"), one(2, "infer_response", message=INFER_RESPONSE)
)

# --- configuration

_TYPES = (
    "INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
    "FP32", "FP64", "STRING", "BF16",
)  # fmt: skip
DATA_TYPES = {f"TYPE_{name}": number for number, name in enumerate(_TYPES)}
MODEL_INPUT = Message("ModelInput", one(1, "name"), one(2, "data_type", "enum"), many(4, "dims", "int64"))
MODEL_OUTPUT = Message("ModelOutput", one(1, "name"), one(2, "data_type", "enum"), many(3, "dims", "int64"))
VERSION_POLICY = Message(
    "ModelVersionPolicy",
    choice(3, "specific", message=Message("Specific", many(1, "versions", "int64"))),
)
KINDS = {"KIND_AUTO": 0, "KIND_GPU": 1, "KIND_CPU": 2, "KIND_MODEL": 3}
INSTANCE_GROUP = Message(
    "ModelInstanceGroup", one(1, "name"), one(2, "count", "int32"), one(4, "kind", "enum")
)
MODEL_CONFIG = Message(
    "ModelConfig",
    one(1, "name"),
    one(2, "platform"),
    one(3, "version_policy", message=VERSION_POLICY),
    one(4, "max_batch_size", "int32"),
    many(5, "input", message=MODEL_INPUT),
    many(6, "output", message=MODEL_OUTPUT),
    many(7, "instance_group", message=INSTANCE_GROUP),
    one(8, "default_model_filename"),
    table(14, "parameters", one(2, "value", message=Message("ModelParameter", one(1, "string_value")))),
    one(17, "backend"),
)
CONFIG_RESPONSE = Message("ModelConfigResponse", one(1, "config", message=MODEL_CONFIG))

# --- statistics

DURATION = Message("StatisticDuration", one(1, "count", "uint64"), one(2, "ns", "uint64"))
_STEPS = (
    "success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss",
)  # fmt: skip
INFER_STATISTICS = Message(
    "InferStatistics", *(one(number, name, message=DURATION) for number, name in enumerate(_STEPS, 1))
)
BATCH_STATISTICS = Message(
    "InferBatchStatistics",
    one(1, "batch_size", "uint64"),
    one(2, "compute_input", message=DURATION),
    one(3, "compute_infer", message=DURATION),
    one(4, "compute_output", message=DURATION),
)
MODEL_STATISTICS = Message(
    "ModelStatistics",
    one(1, "name"),
    one(2, "version"),
    one(3, "last_inference", "uint64"),
    one(4, "inference_count", "uint64"),
    one(5, "execution_count", "uint64"),
    one(6, "inference_stats", message=INFER_STATISTICS),
    many(7, "batch_stats", message=BATCH_STATISTICS),
)
STATISTICS = Message("ModelStatisticsResponse", many(1, "model_stats", message=MODEL_STATISTICS))

# --- repository, shared memory, settings

INDEX_REQUEST = Message("RepositoryIndexRequest", one(1, "repository_name"), one(2, "ready", "bool"))
MODEL_INDEX = Message("ModelIndex", one(1, "name"), one(2, "version"), one(3, "state"), one(4, "reason"))
INDEX = Message("RepositoryIndexResponse", many(1, "models", message=MODEL_INDEX))
REPOSITORY_MODEL = Message("RepositoryModel", one(2, "model_name"))
"""Requests to load or unload."""
REGION_NAME = Message("SharedMemoryStatusRequest", one(1, "name"))
REGION = Message(
    "RegionStatus", one(1, "name"), one(2, "key"), one(3, "offset", "uint64"), one(4, "byte_size", "uint64")
)
"""Also the request to register one."""
REGIONS = Message("SystemSharedMemoryStatusResponse", table(1, "regions", one(2, "value", message=REGION)))
TRACE_REQUEST = Message(
    "TraceSettingRequest",
    table(1, "settings", one(2, "value", message=Message("SettingValue", many(1, "value")))),
    one(2, "model_name"),
)
TRACE_RESPONSE = Message(
    "TraceSettingResponse",
    table(1, "settings", one(2, "value", message=Message("SettingValue", many(1, "value")))),
)
LOG_SETTINGS = Message(
    "LogSettings",
    table(
        1,
        "settings",
        one(
            2,
            "value",
            message=Message(
                "SettingValue",
                choice(1, "bool_param", "bool"),
                choice(2, "uint32_param", "uint32"),
                choice(3, "string_param"),
            ),
        ),
    ),
)
