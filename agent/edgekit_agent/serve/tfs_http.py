"""The protocol "tfs": TensorFlow Serving's REST API. It shares /v1/models with kserve_v1.py, see
docs/serving.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import http_tools as http
from edgekit_agent.serve import jsons, tfs, values
from edgekit_agent.serve.core import Codec, Core, NotServed, Prepared, prepare
from edgekit_agent.serve.http_tools import Respond
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.message import Request, Response, error, ok
from edgekit_agent.serve.model import Model

_VERBS = ("predict", "classify", "regress")


@dataclass(frozen=True, slots=True)
class Target:
    """What a path below /v1/models means."""

    name: str
    version: str = ""
    """As in the path; empty: any."""
    label: str = ""
    what: str = ""
    """"" (status), "metadata", "predict", "classify" or "regress"."""


def target(parts: Sequence[str]) -> Target | None:
    """`parts`: the path below /v1/models, split at slashes. None: no path of this protocol."""
    *before, last = parts
    last, colon, verb = last.partition(":")
    match [*before, last]:
        case [name]:
            version = label = rest = ""
        case [name, "metadata"]:
            version, label, rest = "", "", "metadata"
        case [name, "versions", version, *more] if more in ([], ["metadata"]):
            label, rest = "", "".join(more)
        case [name, "labels", label, *more] if more in ([], ["metadata"]):
            version, rest = "", "".join(more)
        case _:
            return None
    if not name or (colon and (rest or verb not in _VERBS)):
        return None
    return Target(name, version, label, rest or verb)


class Protocol:
    """See router.Protocol."""

    name = "tfs"

    def __init__(self, core: Core) -> None:
        self._core = core

    def handle(self, parts: list[str], request: Request, respond: Respond) -> bool:
        if parts[:2] != ["v1", "models"] or len(parts) < 3:
            return False
        to = target(parts[2:])
        if to is None:
            return False
        if to.what in _VERBS:
            if http.allowed(b"POST", request, respond):
                codec: Codec[Response] = Predict(request, to) if to.what == "predict" else Score(request, to)
                run(self._core, to, codec, request, respond)
        elif http.allowed(b"GET", request, respond):
            respond(about(self._core, to))
        return True


def run(core: Core, to: Target, codec: Codec[Response], request: Request, respond: Respond) -> None:
    """Ask the core for one inference."""
    if to.label not in ("", tfs.LABEL):
        respond(error(400, f"Unrecognized servable version label: {to.label[:80]}"))
        return
    core.infer(
        to.name, _version(core, to), codec, respond,
        received_ns=request.received_ns, heavy=http.heavy(request),
    )  # fmt: skip


def about(core: Core, to: Target) -> Response:
    """Status or metadata of a model. The status also says what KServe's clients read."""
    if to.label not in ("", tfs.LABEL):
        return error(400, f"Unrecognized servable version label: {to.label[:80]}")
    try:
        model = core.find(to.name, _version(core, to))
    except NotServed as exc:
        return http.refusal(exc.http_status, _text(to, exc.http_status, exc.message))
    if to.what == "metadata":
        return ok(tfs.metadata(model.name, model.version, model.config))
    return ok({"name": model.name, "ready": True, **tfs.status(model.version)})


def _version(core: Core, to: Target) -> str:
    model = core.models.get(to.name)
    return tfs.wanted(to.version, model.version) if model else to.version


def _text(to: Target, status: int, text: str) -> str:
    if status != 404:
        return text
    if to.what:
        return tfs.not_found(to.name[:80], to.version[:80])
    which = f"version {to.version[:80]}" if to.version else "any versions"
    return f"Could not find {which} of model {to.name[:80]}"


class _Codec:
    """What all requests of this protocol have in common."""

    __slots__ = ("_request", "_to")

    def __init__(self, request: Request, to: Target) -> None:
        self._request, self._to = request, to

    def _document(self, limits: Limits) -> dict[str, Any]:
        document = http.json_object(http.body(self._request, limits.max_body_bytes))
        signature = document.get("signature_name", "")
        if not isinstance(signature, str):
            raise InputError("signature_name must be a string")
        tfs.check_signature(signature)
        return document

    def refuse(self, status: int, text: str) -> Response:
        return http.refusal(status, _text(self._to, status, text))


class Predict(_Codec):
    """Rows ("instances" give "predictions") or columns ("inputs" give "outputs"). See infer.Codec."""

    __slots__ = ()

    def decode(self, model: Model, limits: Limits) -> Prepared:
        document = self._document(limits)
        in_rows = "instances" in document
        if in_rows == ("inputs" in document):
            raise InputError('the request needs either "instances" (rows) or "inputs" (columns)')
        config = model.config
        if in_rows:
            check_rows(config.outputs)
            arrays = rows(document["instances"], config.inputs)
        else:
            arrays = columns(document["inputs"], config.inputs)
        return prepare(model, arrays, limits, in_rows)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        specs = model.config.outputs
        with values.Blame(prepared.inputs):
            if prepared.note:
                return Response(200, jsons.dumps({"predictions": to_rows(specs, outputs)}))
            return Response(200, jsons.dumps({"outputs": to_columns(specs, outputs)}))


class Score(_Codec):
    """Classification or regression of "examples". See infer.Codec."""

    __slots__ = ()

    def decode(self, model: Model, limits: Limits) -> Prepared:
        document = self._document(limits)
        tfs.check_scores(model.config)
        arrays = examples(document, model.config.inputs, limits.max_batch)
        return prepare(model, arrays, limits)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Response:
        with values.Blame(prepared.inputs):
            values.check_finite(outputs[model.config.outputs[0].name])
        score: Callable[..., Any] = tfs.classify if self._to.what == "classify" else tfs.regress
        return Response(200, jsons.dumps({"results": score(model.config, outputs)}))


def rows(instances: Any, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """A list of samples: each an object with every input, or the value of the only one. Raises InputError."""
    if not isinstance(instances, list) or not instances:
        raise InputError("instances must be a list of at least one sample")
    named = [isinstance(row, dict) and not _is_bytes(row, specs) for row in instances]
    if not any(named):
        spec = only(specs)
        return {spec.name: values.array(f"input {spec.name!r}", instances, spec.datatype)}
    if not all(named) or len({frozenset(row) for row in instances}) > 1:
        raise InputError("instances must all be objects with the same names, or none")
    return {
        name: values.array(f"input {name[:80]!r}", [row[name] for row in instances], _datatype(name, specs))
        for name in instances[0]
    }


def columns(inputs: Any, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """An object with every input, or the value of the only one. Raises InputError."""
    if not isinstance(inputs, dict) or _is_bytes(inputs, specs):
        inputs = {only(specs).name: inputs}
    return {
        name: values.array(f"input {name[:80]!r}", value, _datatype(name, specs))
        for name, value in inputs.items()
    }


def examples(document: Mapping[str, Any], specs: Sequence[TensorSpec], most: int) -> dict[str, Array]:
    """Of "examples" and the "context" that they share: every input, one row for each. Raises InputError."""
    items, context = document.get("examples"), document.get("context", {})
    if not isinstance(items, list) or not 0 < len(items) <= most:
        raise InputError(f"examples must be a list of 1 to {most} objects")
    if not isinstance(context, dict) or not all(isinstance(item, dict) for item in items):
        raise InputError("Example must be JSON object but got JSON type: other")
    features = [{**context, **item} for item in items]
    if any(len(one) != len(context) + len(item) for one, item in zip(features, items, strict=True)):
        raise InputError("a feature is in the context and in an example")
    names = {name for one in features for name in one}
    unknown = names - {spec.name for spec in specs}
    if unknown:
        raise InputError(f"unknown input {min(unknown)[:80]!r}, the model has {_names(specs)}")
    return {spec.name: np.concatenate([_feature(one, spec) for one in features]) for spec in specs}


def check_rows(specs: Sequence[TensorSpec]) -> None:
    """Raise InputError when answers cannot be rows, before the model is run."""
    if len(specs) > 1 and any(spec.shape[:1] != (-1,) for spec in specs):
        raise InputError("the model's outputs have no common batch", 'send "inputs" instead of "instances"')


def to_rows(specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Any:
    """The only output, or a list of objects, one for each sample. Raises EngineError."""
    if len(specs) == 1:
        return _plain(specs[0].name, outputs)
    sizes = {len(outputs[spec.name]) if outputs[spec.name].ndim else -1 for spec in specs}
    if len(sizes) > 1 or sizes == {-1}:
        raise EngineError("the outputs have no common batch", 'send "inputs" instead of "instances"')
    columns = [_plain(spec.name, outputs) for spec in specs]
    lists = [column.tolist() if isinstance(column, np.ndarray) else column for column in columns]
    names = [spec.name for spec in specs]
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def to_columns(specs: Sequence[TensorSpec], outputs: Mapping[str, Array]) -> Any:
    """The only output, or an object with all of them."""
    found = {spec.name: _plain(spec.name, outputs) for spec in specs}
    return next(iter(found.values())) if len(found) == 1 else found


def only(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The model's only input. Raises InputError when there are more."""
    if len(specs) != 1:
        raise InputError(f"the model has several inputs, name them: {_names(specs)}")
    return specs[0]


def _plain(name: str, outputs: Mapping[str, Array]) -> Any:
    # TensorFlow Serving's rule: text that need not be UTF-8 has this ending.
    return values.plain(outputs[name], binary=name.endswith("_bytes"))


def _feature(features: Mapping[str, Any], spec: TensorSpec) -> Array:
    if spec.shape[:1] != (-1,):
        raise InputError(f"input {spec.name!r} has no batch; use predict")
    if spec.name not in features:
        raise InputError(f"input {spec.name!r} is missing in an example")
    return values.fit(f"input {spec.name!r}", features[spec.name], spec.datatype, (1, *spec.shape[1:]))


def _is_bytes(value: Mapping[str, Any], specs: Sequence[TensorSpec]) -> bool:
    """{"b64": ...} is a value of the only input, not an input of that name."""
    return value.keys() == {"b64"} and len(specs) == 1 and specs[0].name != "b64"


def _datatype(name: str, specs: Sequence[TensorSpec]) -> str:
    for spec in specs:
        if spec.name == name:
            return spec.datatype
    raise InputError(f"unknown input {name[:80]!r}, the model has {_names(specs)}")


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(spec.name for spec in specs)
