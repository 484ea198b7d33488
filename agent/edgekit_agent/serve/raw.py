"""Requests whose body is a file or a text, not tensors: the model's pipeline makes tensors of it, and an
answer of what the engine says.

For any protocol over HTTP whose clients post such bodies; which kinds a model takes says its pipeline.
"""

from __future__ import annotations

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve.core import Prepared
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response, error, ok
from edgekit_agent.serve.model import Model

TEXT = "text/plain"
_HEAVY_TEXT_BYTES = 4096
_SHORT = 60


class NotTaken(InputError):
    """A kind of body that the model's pipeline does not begin with."""

    http_status = 415


class Codec:
    """One such request. See infer.Codec."""

    __slots__ = ("_kind", "_request", "_shape")

    def __init__(self, request: Request, shape: http.Shape = error) -> None:
        """`shape`: how the protocol words an error."""
        self._request = request
        self._kind = media_type(request)
        self._shape = shape

    def decode(self, model: Model, limits: Limits) -> Prepared:
        processor = model.processor
        if processor is None:
            raise NotTaken(
                f"this model takes tensors, not {self._kind[:_SHORT]}", "its bundle has no pipeline"
            )
        if self._kind not in processor.content_types:
            raise NotTaken(
                f"this model takes {', '.join(processor.content_types)}, not {self._kind[:_SHORT]}"
            )
        inputs, noted = processor.before(http.body(self._request, limits.max_body_bytes))
        return Prepared(inputs, 1, note=noted)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        assert model.processor is not None  # noqa: S101 - `decode` has looked
        return ok(model.processor.after(outputs, prepared.note))

    def refuse(self, status: int, text: str) -> Response:
        return http.refusal(status, text, self._shape)


def media_type(request: Request) -> str:
    """Content-Type without parameters, in lower case; empty where there is none."""
    return request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")


def is_raw(request: Request, model: Model | None) -> bool:
    """Whether the body is meant for a pipeline. A text is where `model` takes texts: elsewhere it may be JSON
    of a client that does not say so."""
    kind = media_type(request)
    if kind.startswith(("image/", "audio/")):
        return True
    processor = model.processor if model else None
    return kind == TEXT and processor is not None and TEXT in processor.content_types


def heavy(request: Request) -> bool:
    """Whether decoding is worth a thread: pictures and recordings always are."""
    return media_type(request) != TEXT or len(request.body) > _HEAVY_TEXT_BYTES or http.heavy(request)
