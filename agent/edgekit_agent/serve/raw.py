"""Requests whose body is a file or a text, not tensors: the model's pipeline makes tensors of it, and an
answer of what the engine says.

For any protocol over HTTP whose clients post such bodies; which kinds a model takes says its pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import multipart
from edgekit_agent.serve.core import Prepared
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response, ok
from edgekit_agent.serve.model import Model

if TYPE_CHECKING:
    from edgekit.runtimes._pipeline import Noted

TEXT = "text/plain"
_UNTOLD = ("", "application/x-www-form-urlencoded", "application/octet-stream")
"""Media types of clients that were not told which one to send."""
_HEAVY_TEXT_BYTES = 4096
_SHORT = 60


class NotTaken(InputError):
    """A kind of body that the model's pipeline does not begin with."""

    http_status = 415


class Codec:
    """One such request, for protocols with Triton's errors. See infer.Codec."""

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def decode(self, model: Model, limits: Limits) -> Prepared:
        body = http.body(self._request, limits.max_body_bytes)
        return prepare(model, kind_of(media_type(self._request), body), body)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        return answer(model, prepared.note, outputs)

    def refuse(self, status: int, text: str) -> Response:
        return http.refusal(status, text)


def prepare(model: Model, kind: str, body: bytes) -> Prepared:
    """Engine inputs of a body of media type `kind`. Raises InputError."""
    processor = model.processor
    if processor is None:
        raise NotTaken(f"this model takes tensors, not {kind[:_SHORT]}", "its bundle has no pipeline")
    if kind not in processor.content_types:
        raise NotTaken(f"this model takes {', '.join(processor.content_types)}, not {kind[:_SHORT]}")
    inputs, noted = processor.before(body)
    return Prepared(inputs, 1, note=noted)


def answer(model: Model, noted: Noted, outputs: dict[str, Array]) -> Response:
    """Raises EngineError for what the pipeline cannot read."""
    assert model.processor is not None  # noqa: S101 - `prepare` has looked
    return ok(model.processor.after(outputs, noted))


def media_type(request: Request) -> str:
    """Content-Type without parameters, in lower case; empty where there is none."""
    return multipart.media_type(request.headers.get(b"content-type", b""))


def kind_of(kind: str, body: bytes | bytearray) -> str:
    """The media type that was declared; for clients that declare none, the one that the body begins with."""
    if kind not in _UNTOLD:
        return kind
    if body[:3] == b"\xff\xd8\xff":
        return "image/jpeg"
    if body[:8] == b"\x89PNG\r\n\x1a\n":
        return "image/png"
    return "audio/wav" if body[:4] == b"RIFF" and body[8:12] == b"WAVE" else kind


def is_raw(request: Request, model: Model | None) -> bool:
    """Whether the body is meant for a pipeline. A text is where `model` takes texts: elsewhere it may be JSON
    of a client that does not say so."""
    kind = kind_of(media_type(request), request.body)
    return kind.startswith(("image/", "audio/")) or (kind == TEXT and takes(model, TEXT))


def takes(model: Model | None, kind: str) -> bool:
    """Whether the model's pipeline begins with such a body."""
    return model is not None and model.processor is not None and kind in model.processor.content_types


def heavy(request: Request) -> bool:
    """Whether decoding is worth a thread: pictures and recordings always are."""
    return media_type(request) != TEXT or len(request.body) > _HEAVY_TEXT_BYTES or http.heavy(request)
