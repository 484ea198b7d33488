"""Triton's generate extension: inputs and outputs as plain members of a JSON object, also as an event stream.

Source: triton-inference-server/server docs/protocol/extension_generate.md. Models here give one answer for a
request, so a stream has one event.
"""

from __future__ import annotations

from typing import Any

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import jsons, values
from edgekit_agent.serve.core import Prepared, prepare
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import JSON, Request, Response
from edgekit_agent.serve.model import Model

EVENTS = "text/event-stream; charset=utf-8"


class Codec:
    """One generate request. See infer.Codec."""

    __slots__ = ("_request", "_stream")

    def __init__(self, request: Request, *, stream: bool) -> None:
        self._request, self._stream = request, stream

    def decode(self, model: Model, limits: Limits) -> Prepared:
        document = http.json_object(http.body(self._request, limits.max_body_bytes))
        identity = document.pop("id", "")
        parameters = document.pop("parameters", {})
        if not isinstance(identity, str) or not isinstance(parameters, dict):
            raise InputError("id must be a string, parameters an object")
        specs = {spec.name: spec for spec in model.config.inputs}
        arrays = {
            name: values.fit(f"input {name!r}", value, specs[name].datatype, specs[name].shape)
            for name, value in [*parameters.items(), *document.items()]
            if name in specs
        }
        for name, value in [*parameters.items(), *document.items()]:
            # Of what is no input Triton makes a parameter of the request; no engine here takes any.
            if name not in specs and not isinstance(value, str | int | float):
                raise InputError(f"{name[:80]!r} is no input, and no parameter: a string, number or boolean")
        return prepare(model, arrays, limits, identity)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        document: dict[str, Any] = {"id": prepared.note} if prepared.note else {}
        document |= {"model_name": model.name, "model_version": model.version}
        with values.Blame(prepared.inputs):
            for spec in model.config.outputs:
                flat = outputs[spec.name].ravel()
                document[spec.name] = values.plain(flat.reshape(()) if flat.size == 1 else flat)
        text = jsons.dumps(document)
        if self._stream:
            return Response(200, b"data: " + text + b"\n\n", EVENTS)
        return Response(200, text, JSON)

    def refuse(self, status: int, text: str) -> Response:
        return http.refusal(status, text)
