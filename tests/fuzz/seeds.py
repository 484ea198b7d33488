"""Valid requests of every protocol for a target: where mutations begin."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.runtimes import Array
from edgekit.runtimes._ports import dtype_name
from edgekit_agent.serve.grpc import oip_messages as oip
from edgekit_agent.serve.grpc import tfs_messages as tfs
from edgekit_agent.serve.grpc import wire
from tests.fuzz.mutate import dumped
from tests.fuzz.targets import NAME, VERSION, Target

JSON = (b"Content-Type", b"application/json")
Headers = tuple[tuple[bytes, bytes], ...]
REGION, REGION_BYTES = "edgekit-fuzz", 4096
"""A shared memory object that the fuzzer has made."""


@dataclass(frozen=True)
class Seed:
    """A request over HTTP."""

    protocol: str
    method: bytes
    path: bytes
    document: Any = None
    """JSON of the body; None: `body` is it."""
    body: bytes = b""
    """The body, or what follows the JSON in it (binary tensors)."""
    headers: Headers = ()
    binary: bool = False
    """Whether Inference-Header-Content-Length tells where the JSON ends."""

    def parts(self) -> tuple[bytes, bytes]:
        """The JSON (empty where there is none) and what follows."""
        return (b"" if self.document is None else dumped(self.document)), self.body


@dataclass(frozen=True)
class Call:
    """A gRPC call."""

    protocol: str
    path: bytes
    message: bytes
    headers: Headers = ()


@dataclass(frozen=True)
class Seeds:
    http: list[Seed] = field(default_factory=list)
    pages: list[Seed] = field(default_factory=list)
    """Without tensors."""
    files: list[Seed] = field(default_factory=list)
    """For the pipeline."""
    calls: list[Call] = field(default_factory=list)


def seeds(target: Target) -> Seeds:
    arrays, stored = target.inputs, target.stored or target.inputs
    return Seeds(
        [*_oip(arrays, stored), *_tfs(arrays), *_torchserve(arrays), *_generate(arrays)],
        list(_pages()),
        list(_files(target)),
        [*_oip_calls(arrays, stored), *_tfs_calls(arrays), *_other_calls()],
    )


def _tensor(name: str, array: Array, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": dtype_name(array.dtype), "shape": list(array.shape), **more}


# --- Open Inference Protocol


def _oip(arrays: Mapping[str, Array], stored: Mapping[str, Array]) -> Iterator[Seed]:
    infer = f"/v2/models/{NAME}/infer".encode()
    versioned = f"/v2/models/{NAME}/versions/{VERSION}/infer".encode()
    flat = [_tensor(name, one, data=one.ravel().tolist()) for name, one in arrays.items()]
    nested = [_tensor(name, one, data=one.tolist()) for name, one in arrays.items()]
    yield Seed("oip", b"POST", infer, {"id": "42", "inputs": flat}, headers=(JSON,))
    yield Seed("oip", b"POST", versioned, {"inputs": nested, "outputs": [{"name": "y"}]}, headers=(JSON,))
    best = [{"name": "y", "parameters": {"classification": 3}}]
    yield Seed("oip-classification", b"POST", infer, {"inputs": flat, "outputs": best}, headers=(JSON,))
    timed = {"timeout": 5_000_000, "priority": 2, "sequence_id": 0}
    yield Seed("oip", b"POST", infer, {"inputs": flat, "parameters": timed}, headers=(JSON,))
    for some in (arrays, stored):
        raws = [one.tobytes() for one in some.values()]
        heads = [
            _tensor(name, one, parameters={"binary_data_size": one.nbytes}) for name, one in some.items()
        ]
        asked = {"inputs": heads, "parameters": {"binary_data_output": True}}
        yield Seed("oip-binary", b"POST", infer, asked, b"".join(raws), binary=True)
        yield Seed("oip-binary", b"POST", infer, {"inputs": heads}, b"".join(raws), binary=True)
    packed = dumped({"inputs": flat})
    for coding, body in (
        (b"gzip", gzip.compress(packed, 1, mtime=0)),
        (b"deflate", zlib.compress(packed, 1)),
    ):
        headers = (JSON, (b"Content-Encoding", coding), (b"Accept-Encoding", coding))
        yield Seed("oip-compressed", b"POST", infer, None, body, headers)
    regions = [
        _tensor(name, one, parameters={
            "shared_memory_region": "r", "shared_memory_byte_size": one.nbytes, "shared_memory_offset": 0,
        })
        for name, one in stored.items()
    ]  # fmt: skip
    yield Seed("oip-shared-memory", b"POST", infer, {"inputs": regions}, headers=(JSON,))


def _generate(arrays: Mapping[str, Array]) -> Iterator[Seed]:
    document = {name: one[0].tolist() for name, one in arrays.items()}
    for how in ("generate", "generate_stream", f"versions/{VERSION}/generate"):
        yield Seed("generate", b"POST", f"/v2/models/{NAME}/{how}".encode(), document, headers=(JSON,))


def _pages() -> Iterator[Seed]:
    name = f"/v2/models/{NAME}"
    for path in ("/v2", "/v2/health/live", "/v2/health/ready", name, f"{name}/ready", f"{name}/config",
                 f"{name}/stats", "/v2/models/stats", f"{name}/versions/{VERSION}", "/v2/logging",
                 "/v2/trace/setting", f"{name}/trace/setting", "/v2/systemsharedmemory/status",
                 "/v2/cudasharedmemory/status", "/v2/systemsharedmemory/region/r/status"):  # fmt: skip
        yield Seed("oip-pages", b"GET", path.encode())
    yield Seed("metrics", b"GET", b"/metrics")
    model = f"/v1/models/{NAME}"
    for path in ("/v1/models", model, f"{model}/metadata", f"{model}/labels/stable",
                 f"{model}/versions/1002003/metadata"):  # fmt: skip
        yield Seed("tfs-pages", b"GET", path.encode())
    for path in ("/ping", "/models", f"/models/{NAME}", f"/models/{NAME}/{VERSION}", "/api-description"):
        yield Seed("torchserve-pages", b"GET", path.encode())
    yield Seed("torchserve-pages", b"OPTIONS", b"/")
    yield Seed("torchserve-pages", b"OPTIONS", f"/predictions/{NAME}".encode())
    region = {"key": "/" + REGION, "offset": 0, "byte_size": REGION_BYTES}
    handle = {"raw_handle": {"b64": "AA=="}, "device_id": 0, "byte_size": 8}
    posts: list[tuple[str, Any]] = [
        ("/v2/repository/index", {"ready": True}),
        (f"/v2/repository/models/{NAME}/load", {}),
        (f"/v2/repository/models/{NAME}/unload", {"parameters": {"unload_dependents": False}}),
        ("/v2/trace/setting", {"trace_level": ["OFF"], "trace_rate": "1000"}),
        ("/v2/logging", {"log_info": True, "log_verbose_level": 0}),
        ("/v2/systemsharedmemory/region/r/register", region),
        ("/v2/systemsharedmemory/region/q/unregister", {}),
        ("/v2/cudasharedmemory/region/r/register", handle),
    ]
    for path, document in posts:
        yield Seed("triton-settings", b"POST", path.encode(), document, headers=(JSON,))


# --- TensorFlow Serving, KServe v1, TorchServe


def _tfs(arrays: Mapping[str, Array]) -> Iterator[Seed]:
    paths = [f"/v1/models/{NAME}{rest}:predict" for rest in ("", "/versions/1002003", "/labels/stable")]
    single = next(iter(arrays.values())) if len(arrays) == 1 else None
    rows: Any = [{name: one[0].tolist() for name, one in arrays.items()}] * 2
    columns: Any = {name: one.tolist() for name, one in arrays.items()}
    named = {"signature_name": "serving_default", "instances": rows}
    made: list[Any] = [{"instances": rows}, {"inputs": columns}, named]
    if single is not None:
        made += [{"instances": single.tolist()}, {"inputs": single.tolist()}]
    for number, document in enumerate(made):
        yield Seed("tfs", b"POST", paths[number % 3].encode(), document, headers=(JSON,))
    examples = {"examples": [{name: one.ravel().tolist() for name, one in arrays.items()}]}
    for verb in ("classify", "regress"):
        yield Seed("tfs-examples", b"POST", f"/v1/models/{NAME}:{verb}".encode(), examples, headers=(JSON,))


def _torchserve(arrays: Mapping[str, Array]) -> Iterator[Seed]:
    path = f"/predictions/{NAME}".encode()
    document = {name: one[0].tolist() for name, one in arrays.items()}
    yield Seed("torchserve", b"POST", path, document, headers=(JSON,))
    first = next(iter(arrays.values()))
    yield Seed(
        "torchserve", b"PUT", path + b"/" + VERSION.encode(), {"data": first.tolist()}, headers=(JSON,)
    )
    yield Seed(
        "torchserve-raw",
        b"POST",
        path,
        None,
        first.tobytes(),
        ((b"Content-Type", b"application/octet-stream"),),
    )
    yield Seed("torchserve-raw", b"POST", path, None, dumped(first.tolist()))
    fields = b"&".join(name.encode() + b"=" + dumped(one[0].tolist()) for name, one in arrays.items())
    urlencoded = b"application/x-www-form-urlencoded"
    yield Seed("torchserve-form", b"POST", path, None, fields, ((b"Content-Type", urlencoded),))
    parts = [(name.encode(), dumped(one[0].tolist()), b"application/json") for name, one in arrays.items()]
    yield _form("torchserve-form", path, parts * 2)
    yield _form(
        "torchserve-form", path, [(name.encode(), one.tobytes(), b"") for name, one in arrays.items()]
    )


def _form(protocol: str, path: bytes, parts: list[tuple[bytes, bytes, bytes]]) -> Seed:
    body = b""
    for name, data, kind in parts:
        body += b'--xyz\r\nContent-Disposition: form-data; name="' + name + b'"; filename="f.bin"\r\n'
        body += (b"Content-Type: " + kind + b"\r\n" if kind else b"") + b"\r\n" + data + b"\r\n"
    headers = ((b"Content-Type", b"multipart/form-data; boundary=xyz"),)
    return Seed(protocol, b"POST", path, None, body + b"--xyz--\r\n", headers)


def _files(target: Target) -> Iterator[Seed]:
    for kind, data in target.bodies:
        headers = ((b"Content-Type", kind),) if kind else ()
        yield Seed("pipeline", b"POST", f"/v2/models/{NAME}/infer".encode(), None, data, headers)
        yield Seed("pipeline", b"POST", f"/predictions/{NAME}".encode(), None, data, headers)
        yield _form("pipeline", f"/predictions/{NAME}".encode(), [(b"data", data, kind)])


# --- gRPC

_CONTENTS = {
    "FP32": "fp32_contents", "INT64": "int64_contents", "INT8": "int_contents", "UINT8": "uint_contents",
}  # fmt: skip


def _oip_calls(arrays: Mapping[str, Array], stored: Mapping[str, Array]) -> Iterator[Call]:
    path = b"/inference.GRPCInferenceService/ModelInfer"
    stream = b"/inference.GRPCInferenceService/ModelStreamInfer"

    def request(**more: Any) -> bytes:
        return wire.encode(oip.INFER_REQUEST, {"model_name": NAME, **more})

    for some in (arrays, stored):
        raws = [one.tobytes() for one in some.values()]
        heads = [_tensor(name, one) for name, one in some.items()]
        yield Call("grpc-oip", path, request(inputs=heads, raw_input_contents=raws, id="7"))
        typed = [
            {
                **head,
                "contents": wire.encode(oip.CONTENTS, {_CONTENTS[head["datatype"]]: one.ravel().tolist()}),
            }
            for head, one in zip(heads, some.values(), strict=True)
        ]
        yield Call("grpc-oip", path, request(inputs=typed, model_version=VERSION))
    wanted = [{"name": "y", "parameters": {"classification": {"int64_param": 2}}}]
    options = {"timeout": {"uint64_param": 5_000_000}, "priority": {"int64_param": 1}}
    raws = [one.tobytes() for one in arrays.values()]
    heads = [_tensor(name, one) for name, one in arrays.items()]
    yield Call(
        "grpc-oip", path, request(inputs=heads, raw_input_contents=raws, outputs=wanted, parameters=options)
    )
    whole = request(inputs=heads, raw_input_contents=raws)
    yield Call("grpc-oip-stream", stream, whole)
    headers = ((b"grpc-encoding", b"gzip"),)
    yield Call("grpc-compressed", path, gzip.compress(whole, 1, mtime=0), headers)


def _proto(array: Array) -> bytes:
    shape = {"dim": [{"size": size} for size in array.shape]}
    dtype = tfs.DATA_TYPES[dtype_name(array.dtype)]
    return wire.encode(tfs.TENSOR, {"dtype": dtype, "tensor_shape": shape, "tensor_content": array.tobytes()})


def _tfs_calls(arrays: Mapping[str, Array]) -> Iterator[Call]:
    service = b"/tensorflow.serving.PredictionService/"
    spec = {"name": NAME, "signature_name": "serving_default"}
    inputs = {name: _proto(one) for name, one in arrays.items()}
    yield Call(
        "grpc-tfs",
        service + b"Predict",
        wire.encode(tfs.PREDICT_REQUEST, {"model_spec": spec, "inputs": inputs}),
    )
    labelled = {"name": NAME, "version_label": "stable"}
    typed = {
        name: wire.encode(tfs.TENSOR, {
            "dtype": tfs.DATA_TYPES[dtype_name(one.dtype)],
            "tensor_shape": {"dim": [{"size": size} for size in one.shape]},
            ("float_val" if one.dtype.kind == "f" else "int64_val"): one.ravel().tolist(),
        })
        for name, one in arrays.items()
    }  # fmt: skip
    yield Call(
        "grpc-tfs",
        service + b"Predict",
        wire.encode(tfs.PREDICT_REQUEST, {"model_spec": labelled, "inputs": typed}),
    )
    features = {
        name: ({"float_list": {"value": one.ravel().tolist()}} if one.dtype.kind == "f"
               else {"int64_list": {"value": one.ravel().tolist()}})
        for name, one in arrays.items()
    }  # fmt: skip
    example = {"example_list": {"examples": [{"features": {"feature": features}}]}}
    asked = {"model_spec": spec, "input": wire.encode(tfs.INPUT, example)}
    for verb in (b"Classify", b"Regress"):
        yield Call("grpc-tfs", service + verb, wire.encode(tfs.EXAMPLES_REQUEST, asked))
    yield Call("grpc-tfs", service + b"GetModelMetadata", b"\x0a\x05\x0a\x03kws\x12\x0dsignature_def")
    yield Call("grpc-tfs", b"/tensorflow.serving.ModelService/GetModelStatus", b"\x0a\x05\x0a\x03kws")


def _other_calls() -> Iterator[Call]:
    named = wire.encode(oip.NAMED, {"name": NAME, "version": VERSION})
    region = wire.encode(oip.REGION, {"name": "r", "key": "/" + REGION, "byte_size": REGION_BYTES})
    for method, message in (
        ("ServerLive", b""), ("ServerReady", b""), ("ServerMetadata", b""), ("ModelReady", named),
        ("ModelMetadata", named), ("ModelConfig", named), ("ModelStatistics", named),
        ("RepositoryIndex", b"\x10\x01"), ("RepositoryModelLoad", b"\x12\x03kws"),
        ("SystemSharedMemoryStatus", b""), ("SystemSharedMemoryRegister", region),
        ("SystemSharedMemoryUnregister", b"\x0a\x01q"), ("TraceSetting", b""), ("LogSettings", b""),
        ("CudaSharedMemoryStatus", b""),
    ):  # fmt: skip
        yield Call("grpc-pages", f"/inference.GRPCInferenceService/{method}".encode(), message)
    yield Call("grpc-health", b"/grpc.health.v1.Health/Check", b"")
