"""The JSON documents of torchserve.py. Pure, but for the process's own figures."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from edgekit.bundle.model import TensorSpec
from edgekit_agent import process
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model

_KINDS = {"B": "boolean", "U": "integer", "I": "integer", "F": "number"}


def now() -> str:
    """UTC, as TorchServe writes times."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def model(model: Model, limits: Limits, started: str) -> list[dict[str, Any]]:
    """The description of the one version that is served; its worker is the serving process."""
    worker = {
        "id": str(os.getpid()),
        "startTime": started,
        "status": "READY",
        "memoryUsage": int(process.rss_mib() * 1024 * 1024),
        "pid": os.getpid(),
        "gpu": False,
        "gpuUsage": "N/A",
    }
    queue = {
        "remainingCapacity": max(0, limits.max_queue + limits.concurrency - model.users),
        "pendingRequests": model.users,
    }
    return [
        {
            "modelName": model.name,
            "modelVersion": model.version,
            "modelUrl": model.release,
            "runtime": model.config.engine.name,
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 1,
            "maxBatchDelay": 0,
            "loadedAtStartup": False,
            "workers": [worker],
            "jobQueueStatus": queue,
        }
    ]


def description(version: str) -> dict[str, Any]:
    """OpenAPI 3.0.1 of the paths that exist here."""
    name = _parameter("model_name", "Name of the model.")
    number = _parameter("model_version", "Version of the model.")
    answers = {"200": _answer("The model's outputs."), **_errors(400, 404, 500, 503)}
    predict = {"requestBody": _any_body(), "responses": answers}
    return _document(
        version,
        {
            "/": {"options": _get("apiDescription", "This document.")},
            "/api-description": {"get": _get("apiDescriptionByGet", "This document.")},
            "/ping": {"get": _get("ping", "Whether a model is served.", 503)},
            "/predictions/{model_name}": {
                "post": {"operationId": "predictions", "parameters": [name], **predict},
                "options": _get("predictionDescription", "What a model takes.", 404, parameters=[name]),
            },
            "/predictions/{model_name}/{model_version}": {
                "post": {"operationId": "versionPredictions", "parameters": [name, number], **predict}
            },
            "/models": {"get": _get("listModels", "What is served.")},
            "/models/{model_name}": {
                "get": _get("describeModel", "State of a model.", 404, parameters=[name])
            },
        },
    )


def prediction(model: Model) -> dict[str, Any]:
    """OpenAPI 3.0.1 of one model's predictions, with the shapes of inputs and outputs."""
    body = {"required": True, "content": {"application/json": {"schema": _object(model.config.inputs)}}}
    answer = {"description": "The model's outputs.", "content": _json(_object(model.config.outputs))}
    post = {
        "operationId": "predictions",
        "parameters": [],
        "requestBody": body,
        "responses": {"200": answer, **_errors(400, 503)},
    }
    return _document(model.version, {f"/predictions/{model.name}": {"post": post}})


def _document(version: str, paths: dict[str, Any]) -> dict[str, Any]:
    info = {"title": "edgekit", "description": "TorchServe's inference API", "version": version}
    return {"openapi": "3.0.1", "info": info, "paths": paths}


def _get(identity: str, text: str, *failures: int, parameters: Any = ()) -> dict[str, Any]:
    responses = {"200": _answer(text), **_errors(*failures)}
    return {"operationId": identity, "parameters": list(parameters), "responses": responses}


def _parameter(name: str, text: str) -> dict[str, Any]:
    return {"in": "path", "name": name, "description": text, "required": True, "schema": {"type": "string"}}


def _any_body() -> dict[str, Any]:
    content = {
        "application/json": {"schema": {}},
        "multipart/form-data": {"schema": {"type": "object"}},
        "*/*": {"schema": {"type": "string", "format": "binary"}},
    }
    return {"required": True, "content": content}


def _answer(text: str) -> dict[str, Any]:
    return {"description": text, "content": _json({})}


def _errors(*statuses: int) -> dict[str, Any]:
    fields = {"code": {"type": "integer"}, "type": {"type": "string"}, "message": {"type": "string"}}
    schema = {"type": "object", "required": list(fields), "properties": fields}
    texts = {400: "Bad request", 404: "No such model or version", 500: "The engine failed", 503: "Not now"}
    return {str(status): {"description": texts[status], "content": _json(schema)} for status in statuses}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(specs: tuple[TensorSpec, ...]) -> dict[str, Any]:
    return {"type": "object", "properties": {spec.name: _tensor(spec) for spec in specs}}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """Nested arrays; a free dimension has no bounds."""
    schema: dict[str, Any] = {"type": _KINDS.get(spec.datatype[0], "string")}
    if spec.datatype == "BYTES":
        schema = {"type": "string"}
    for size in reversed(spec.shape):
        bounds = {} if size == -1 else {"minItems": size, "maxItems": size}
        schema = {"type": "array", "items": schema, **bounds}
    return schema
