"""What is sent, and the answer's numbers: one request in each server's own format."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from benchmarks import nets
from benchmarks.nets import Net
from benchmarks.serving import PATH, binary, text
from edgekit.runtimes import Array

GRPC_PATH = "/inference.GRPCInferenceService/ModelInfer"
Way = Literal["binary", "JSON", "gRPC", "raw"]


@dataclass(frozen=True)
class Ask:
    """`message`: a whole HTTP/1.1 request, or with `grpc` one framed gRPC message."""

    message: bytes
    grpc: bool = False


def plain(path: str, body: bytes, content_type: str) -> Ask:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {content_type}"]
    return Ask("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)


def inference_protocol(net: Net, way: Way) -> Ask:
    """Open Inference Protocol: the agent, Triton, MLServer."""
    sample = net.samples(1)
    if way == "JSON":
        return Ask(text(net, sample))
    if way == "binary":
        return Ask(binary(net, sample))
    request = pb.ModelInferRequest(model_name=net.name)
    request.inputs.add(name=nets.INPUT, datatype="FP32", shape=sample.shape)
    request.raw_input_contents.append(sample.tobytes())
    message = request.SerializeToString()
    return Ask(struct.pack(">BI", 0, len(message)) + message, grpc=True)


def torchserve(net: Net) -> Ask:
    return plain(f"/predictions/{net.name}", net.samples(1).tobytes(), "application/octet-stream")


def rows(net: Net, path: str) -> Ask:
    """{"x": [[...]]}: LitServe and BentoML, whose models define what they take."""
    body = json.dumps({nets.INPUT: net.samples(1).tolist()}).encode()
    return plain(path, body, "application/json")


def numbers(net: Net, answer: bytes) -> Array:
    """The values in an HTTP answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"application/json" not in head.lower() and not body.lstrip().startswith((b"[", b"{")):
        return np.frombuffer(body[-4 * net.classes :], "<f4")
    if json_size := _json_size(head):
        return np.frombuffer(body[json_size:], "<f4")
    return _flat(json.loads(body), net.classes)


def _json_size(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"inference-header-content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _flat(value: Any, count: int) -> Array:
    """The first list of so many numbers in a JSON document."""
    if isinstance(value, list) and len(value) == count and not isinstance(value[0], list):
        return np.array(value, np.float32)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if len(found := _flat(item, count)):
            return found
    return np.empty(0, np.float32)


__all__ = ["GRPC_PATH", "PATH", "Ask", "Way", "inference_protocol", "numbers", "plain", "rows", "torchserve"]
