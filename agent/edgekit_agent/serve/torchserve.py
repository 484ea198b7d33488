"""The protocol "torchserve": TorchServe's inference API, and the part of its management API that only reads.

TorchServe leaves to each model's handler what a body means. Here: what the model's pipeline takes; JSON (a
value, or an object of inputs), a form with a part for each input, or the raw bytes of the only input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from edgekit.bundle.model import TensorSpec
from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit.runtimes._pipeline import Noted
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import jsons, multipart, raw, tfs_http, torchserve_documents, values
from edgekit_agent.serve.core import Core, NotServed, Prepared, prepare
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response, ok, one_line
from edgekit_agent.serve.model import Model

_TYPES = {404: "ResourceNotFoundException", 500: "InternalServerException"}
_READ_ONLY = "models come from the fleet: they are not registered, scaled or removed by clients"
_PAGE = 100
"""Models that are listed where a client does not say how many."""
_FORM, _URLENCODED = "multipart/form-data", "application/x-www-form-urlencoded"
_UNTOLD = ("", _URLENCODED, "text/plain")
"""Media types that clients send with JSON when nobody told them otherwise."""
_ANONYMOUS = ("data", "body")
"""Names that TorchServe's handlers give to the only input."""
_TEXT = "text/plain; charset=utf-8"


def error(status: int, text: str, extra: str = "", kind: str = "") -> Response:
    """{"code", "type", "message"}; `kind`: TorchServe's exception, where the status does not tell."""
    kind = kind or _TYPES.get(status, f"{HTTPStatus(status).phrase.replace(' ', '')}Exception")
    document = {"code": status, "type": kind, "message": one_line(text)}
    return Response(status, json.dumps(document).encode(), extra=extra)


class Protocol:
    """See router.Protocol."""

    name = "torchserve"

    def __init__(self, core: Core) -> None:
        self._core = core
        self._started = torchserve_documents.now()

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        match parts:
            case [""] if request.method == b"OPTIONS":
                respond(ok(torchserve_documents.description(self._core.version)))
            case ["api-description"]:
                self._get(request, respond, ok(torchserve_documents.description(self._core.version)))
            case ["ping"]:
                self._get(request, respond, self._ping())
            case ["predictions", name]:
                self._predict(name, "", request, respond)
            case ["predictions", name, version]:
                self._predict(name, version, request, respond)
            case ["models"] | ["models", ""]:
                self._get(request, respond, self._list(request.target), _READ_ONLY)
            case ["models", name]:
                self._get(request, respond, self._describe(name, ""), _READ_ONLY)
            case ["models", name, version]:
                self._get(
                    request, respond, self._describe(name, "" if version == "all" else version), _READ_ONLY
                )
            case _:
                return False
        return True

    def _get(self, request: Request, respond: Respond, answer: Response, otherwise: str = "") -> None:
        if request.method == b"GET":
            respond(answer)
        else:
            text = otherwise or "Requested method is not allowed, please refer to API document."
            respond(error(405, text, "Allow: GET\r\n"))

    def _ping(self) -> Response:
        if self._core.ready:
            return ok({"status": "Healthy"})
        return Response(503, b'{"status":"Unhealthy"}', extra=http.RETRY)

    def _predict(self, name: str, version: str, request: Request, respond: Respond) -> None:
        if request.method == b"OPTIONS":
            respond(self._about(name, version, torchserve_documents.prediction))
        elif request.method in (b"POST", b"PUT"):  # curl -T puts
            codec = Codec(request, self._missing(name, version))
            model = self._core.models.get(name)
            heavy = http.heavy(request) or (model is not None and model.processor is not None)
            self._core.infer(name, version, codec, respond, received_ns=request.received_ns, heavy=heavy)
        else:
            text = "Requested method is not allowed, please refer to API document."
            respond(error(405, text, "Allow: POST, PUT, OPTIONS\r\n"))

    def _list(self, target: bytes) -> Response:
        try:
            query = dict(parse_qsl(target.partition(b"?")[2].decode("latin-1"), max_num_fields=16))
            limit, token = (int(query.get(name, "0")) for name in ("limit", "next_page_token"))
        except ValueError:
            limit = token = -1
        if limit < 0 or token < 0:
            return error(400, "limit and next_page_token must be numbers")
        models = self._core.models.values()
        known = [{"modelName": model.name, "modelUrl": model.release} for model in models]
        end = token + (limit or _PAGE)
        more = {"nextPageToken": str(end)} if end < len(known) else {}
        return ok({**more, "models": known[token:end]})

    def _describe(self, name: str, version: str) -> Response:
        def document(model: Model) -> list[dict[str, Any]]:
            return torchserve_documents.model(model, self._core.limits, self._started)

        return self._about(name, version, document)

    def _about(self, name: str, version: str, document: Any) -> Response:
        try:
            model = self._core.find(name, version)
        except NotServed as exc:
            if exc.http_status != 404:
                return http.refusal(exc.http_status, exc.message, error)
            kind, text = self._missing(name, version)
            return error(404, text, kind=kind)
        return ok(document(model))

    def _missing(self, name: str, version: str) -> tuple[str, str]:
        """TorchServe's exception and words for a 404 of this name and version."""
        if name in self._core.models:
            return (
                "ModelVersionNotFoundException",
                f"Model version: {version[:80]} does not exist for model: {name}",
            )
        return "ModelNotFoundException", f"Model not found: {name[:80]}"


@dataclass(frozen=True, slots=True)
class _How:
    """What the answer looks like."""

    single: bool = False
    """The request was one sample without a batch dimension, and so is the answer."""
    envelope: bool = False
    """{"instances": ...} gets {"predictions": ...}, as through TorchServe's KServe envelope."""


class Codec:
    """One prediction. See infer.Codec."""

    __slots__ = ("_missing", "_request")

    def __init__(self, request: Request, missing: tuple[str, str]) -> None:
        """`missing`: exception and text of a 404."""
        self._request, self._missing = request, missing

    def decode(self, model: Model, limits: Limits) -> Prepared:
        content_type = self._request.headers.get(b"content-type", b"")
        body = http.body(self._request, limits.max_body_bytes)
        if model.processor and (file := _file(body, content_type, model)):
            return raw.prepare(model, *file)
        arrays, how = read(body, content_type, model.config.inputs)
        if how.envelope:
            tfs_http.check_rows(model.config.outputs)
        return prepare(model, arrays, limits, how)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        if isinstance(prepared.note, Noted):
            return raw.answer(model, prepared.note, outputs)
        how: _How = prepared.note
        specs = model.config.outputs
        document: Any
        with values.Blame(prepared.inputs):
            if how.envelope:
                document = {"predictions": tfs_http.to_rows(specs, outputs)}
            else:
                found = {
                    s.name: _plain(outputs[s.name], single=how.single and s.shape[:1] == (-1,)) for s in specs
                }
                document = next(iter(found.values())) if len(found) == 1 else found
        if isinstance(document, str):
            return Response(200, document.encode(), _TEXT)
        return Response(200, jsons.dumps(document))

    def refuse(self, status: int, text: str) -> Response:
        if status == 404:
            return error(404, self._missing[1], kind=self._missing[0])
        return http.refusal(status, text, error)


def _file(body: bytes, content_type: bytes, model: Model) -> tuple[str, bytes] | None:
    """Kind and bytes of what the model's pipeline takes: the body itself, or the only part of a form."""
    media = multipart.media_type(content_type)
    if media == _FORM:
        parts = multipart.parse(body, content_type)
        if len(parts) != 1:
            return None
        media, body = parts[0].content_type, parts[0].data
    kind = raw.kind_of(media, body)
    return (kind, body) if raw.takes(model, kind) else None


def read(body: bytes, content_type: bytes, specs: Sequence[TensorSpec]) -> tuple[dict[str, Array], _How]:
    """The inputs that a body holds. Raises InputError."""
    media = multipart.media_type(content_type)
    if media == _FORM:
        parts = [(part.name, part.data, part.content_type) for part in multipart.parse(body, content_type)]
        return _form(parts, specs)
    if media == _URLENCODED and not _looks_like_json(body):
        return _form([(name, data, "") for name, data in _fields(body)], specs)
    if media.endswith("json"):
        return _document(http.json_value(body), specs)
    text = len(specs) == 1 and specs[0].datatype == values.TEXT
    if media in _UNTOLD and not text and (found := _sniff(body)) is not None:
        return _document(found, specs)
    spec = tfs_http.only(specs)
    return {spec.name: _raw(body, spec)}, _How(single=_is_one(body, spec))


def _document(document: Any, specs: Sequence[TensorSpec]) -> tuple[dict[str, Array], _How]:
    names = {spec.name for spec in specs}
    if isinstance(document, dict):
        if "instances" in document and "instances" not in names:
            return tfs_http.rows(document["instances"], specs), _How(envelope=True)
        if document.keys() == {"b64"} and "b64" not in names:
            document = {tfs_http.only(specs).name: document}
        found = [(_name(name, specs), value) for name, value in document.items()]
    elif isinstance(document, list) and document and isinstance(document[0], dict) and len(specs) > 1:
        return tfs_http.rows(document, specs), _How()
    else:
        found = [(tfs_http.only(specs).name, document)]
    read = {name: _value(name, value, specs) for name, value in found}
    if len(read) < len(found):
        raise InputError("an input is given twice")
    return {name: array for name, (array, _) in read.items()}, _How(all(one for _, one in read.values()))


def _form(
    parts: Sequence[tuple[str, bytes, str]], specs: Sequence[TensorSpec]
) -> tuple[dict[str, Array], _How]:
    """Parts of one name are samples, one after the other."""
    read: dict[str, list[tuple[Array, bool]]] = {}
    for given, data, media in parts:
        name = _name(given, specs)
        spec = next((spec for spec in specs if spec.name == name), None)
        if spec is None:
            raise InputError(f"unknown input {name[:80]!r}, the model has {', '.join(s.name for s in specs)}")
        read.setdefault(name, []).append(_part(data, media, spec))
    if not read:
        raise InputError("the form has no parts")
    single = all(len(found) == 1 and found[0][1] for found in read.values())
    try:
        return {name: np.concatenate([a for a, _ in found]) for name, found in read.items()}, _How(single)
    except ValueError:
        raise InputError("parts of one name differ in shape") from None


def _part(data: bytes, media: str, spec: TensorSpec) -> tuple[Array, bool]:
    if media.endswith("json"):
        return _value(spec.name, http.json_value(data), (spec,))
    if spec.datatype != values.TEXT and (found := _sniff(data)) is not None:
        return _value(spec.name, found, (spec,))
    return _raw(data, spec), _is_one(data, spec)


def _value(name: str, value: Any, specs: Sequence[TensorSpec]) -> tuple[Array, bool]:
    """A JSON value as a batch, and whether it was a sample without one."""
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        raise InputError(f"unknown input {name[:80]!r}, the model has {', '.join(s.name for s in specs)}")
    array = values.array(f"input {name!r}", value, spec.datatype)
    if spec.shape[:1] == (-1,) and array.ndim == len(spec.shape) - 1:
        return array[np.newaxis], True
    return array, False


def _name(given: str, specs: Sequence[TensorSpec]) -> str:
    if given in _ANONYMOUS and len(specs) == 1 and specs[0].name not in _ANONYMOUS:
        return specs[0].name
    return given


def _raw(data: bytes, spec: TensorSpec) -> Array:
    where = f"input {spec.name!r}"
    if spec.shape[:1] == (-1,):
        return values.raw(where, data, spec.datatype, spec.shape[1:])
    return values.raw(where, data, spec.datatype, spec.shape).reshape(spec.shape)


def _is_one(data: bytes, spec: TensorSpec) -> bool:
    return spec.shape[:1] == (-1,) and len(_raw(data, spec)) == 1


def _looks_like_json(body: bytes) -> bool:
    return body.lstrip()[:1] in (b"[", b"{")


def _sniff(body: bytes) -> Any:
    """The list or object that a body of no declared type is, else None."""
    if not _looks_like_json(body):
        return None
    try:
        return http.json_value(body)
    except InputError:
        return None


def _fields(body: bytes) -> list[tuple[str, bytes]]:
    try:
        found = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, strict_parsing=True, max_num_fields=256
        )
    except ValueError:
        raise InputError("the form is damaged or has more than 256 fields") from None
    return [(name, value.encode()) for name, value in found]


def _plain(output: Array, *, single: bool) -> Any:
    return values.plain(output[0] if single and len(output) == 1 else output)
