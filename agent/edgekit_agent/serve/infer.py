"""One inference request from bytes to answer, in steps that may run on the loop or on a model's thread."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgekit.bundle.model import VariantConfig
from edgekit.errors import EdgekitError, EngineError, InputError
from edgekit.runtimes import Array, Session
from edgekit.runtimes._golden import classes
from edgekit.runtimes._preprocess import to_engine
from edgekit_agent.serve import oip
from edgekit_agent.serve.message import Request, Response, error


@dataclass(slots=True)
class Outcome:
    """What one request came to, and where its time went (nanoseconds)."""

    response: Response
    samples: int = 0
    classes: tuple[int, ...] = ()
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    bug: BaseException | None = None
    """What nobody expected; for the log."""


@dataclass(slots=True)
class Prepared:
    """A request that is valid for the model."""

    request: oip.InferRequest
    inputs: dict[str, Array]
    samples: int
    input_ns: int


def prepare(config: VariantConfig, request: Request, max_batch: int, max_bytes: int) -> Prepared:
    """Parse, check and convert. Raises InputError."""
    begin = time.perf_counter_ns()
    headers = request.headers
    body = request.body
    if b"content-encoding" in headers:
        body = decompress(body, headers[b"content-encoding"], max_bytes)
    parsed = oip.decode(body, _json_size(headers.get(b"inference-header-content-length")))
    oip.check_wanted(parsed, config.outputs)
    inputs = to_engine(parsed.inputs, config.inputs, config.preprocessing)
    samples = next((len(inputs[spec.name]) for spec in config.inputs if spec.shape[:1] == (-1,)), 1)
    if not 0 < samples <= max_batch:
        raise InputError(f"a batch of {samples} samples; 1 to {max_batch} are allowed")
    return Prepared(parsed, inputs, samples, time.perf_counter_ns() - begin)


def run(name: str, version: str, config: VariantConfig, session: Session, prepared: Prepared) -> Outcome:
    """Run the engine and encode its answer. Never raises: what goes wrong becomes a 4xx or 5xx answer."""
    begin = time.perf_counter_ns()
    try:
        outputs = session.run(prepared.inputs)
        ran = time.perf_counter_ns()
        response = oip.encode(name, version, prepared.request, config.outputs, outputs, config.labels)
        found = _classes(config, outputs, prepared.samples)
    except Exception as exc:
        return refusal(exc)
    done = time.perf_counter_ns()
    return Outcome(response, prepared.samples, found, prepared.input_ns, ran - begin, done - ran)


def refusal(exc: BaseException) -> Outcome:
    """The answer to a request that failed."""
    if isinstance(exc, EdgekitError):
        expected = isinstance(exc, InputError | EngineError)
        return Outcome(error(exc.http_status, str(exc)), bug=None if expected else exc)
    if isinstance(exc, MemoryError):
        return Outcome(error(503, "not enough memory for this request"), bug=exc)
    return Outcome(error(500, "internal error; see the agent's log"), bug=exc)


def decompress(body: bytes, encoding: bytes, max_bytes: int) -> bytes:
    """Undo gzip or deflate. Raises InputError for anything else, damage, or more than `max_bytes`."""
    name = encoding.strip().lower()
    if name == b"identity":
        return body
    if name not in (b"gzip", b"deflate"):
        raise InputError("Content-Encoding must be gzip or deflate")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: either header, gzip's or zlib's
    try:
        data = unpack.decompress(body, max_bytes + 1)
    except zlib.error as exc:
        raise InputError(f"the compressed body is damaged: {exc}") from None
    if len(data) > max_bytes:
        raise InputError(f"the body unpacks to more than the {max_bytes} bytes allowed")
    if not unpack.eof or unpack.unused_data:
        raise InputError("the compressed body is cut short or has bytes after its end")
    return data


def _json_size(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 12:
        raise InputError("Inference-Header-Content-Length must be a number of bytes")
    return int(value)


def _classes(config: VariantConfig, outputs: Mapping[str, Array], samples: int) -> tuple[int, ...]:
    """Predicted class of each sample, when the variant has labels for the first output."""
    if not config.labels:
        return ()
    scores = outputs[config.outputs[0].name]
    if scores.shape[:1] != (samples,) or scores.size != samples * len(config.labels):
        return ()
    return (int(np.argmax(scores)),) if samples == 1 else tuple(classes(scores).tolist())
