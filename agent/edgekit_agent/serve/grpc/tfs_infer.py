"""Predict, Classify, Regress and MultiInference of TensorFlow Serving over gRPC."""

from __future__ import annotations

from edgekit.errors import InputError
from edgekit.runtimes import Array
from edgekit_agent.serve import tfs
from edgekit_agent.serve.core import Prepared, prepare
from edgekit_agent.serve.grpc import status, tfs_tensors, wire
from edgekit_agent.serve.grpc import tfs_messages as m
from edgekit_agent.serve.grpc.framing import Buffer, Compressed
from edgekit_agent.serve.grpc.patterns import Octets
from edgekit_agent.serve.grpc.service import Reply
from edgekit_agent.serve.grpc.tfs_templates import Template, Templates, entry, model_spec, tail
from edgekit_agent.serve.grpc.wire import Message, Values
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.model import Model

_HEAVY_BYTES = 64 * 1024
_PEEK_BYTES = 4096
_MULTI_BYTES = 1 << 20  # unpacked on the event loop, because its model is not at the beginning
_MAX_ITEMS = 4096
_MAX_TASKS = 16
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
_SHORT = 120


class _Codec:
    """What all requests have in common."""

    __slots__ = ("_kind", "_message", "_values", "spec")

    def __init__(self, kind: Message, message: Buffer | Compressed) -> None:
        """`kind`: a message whose first field is model_spec. Raises InputError."""
        self._kind = kind
        self._message: Compressed | None = None
        self._values: Values = {}
        if isinstance(message, Compressed):
            self._message = message
            self.spec = _peek(message.head(_PEEK_BYTES))
        else:
            self._values = envelope(kind, message)
            self.spec = self._values.get("model_spec", {})

    def unpack(self, limits: Limits) -> Values:
        """All of the request. Raises InputError."""
        if self._message is not None:
            self._values = envelope(self._kind, self._message.whole(limits.max_body_bytes))
        tfs.check_signature(self.spec.get("signature_name", ""))
        return self._values

    def refuse(self, code: int, text: str) -> Reply:
        if code == 404:
            text = tfs.not_found(self.spec.get("name", "")[:_SHORT], asked(self.spec))
        return Reply(code=status.from_http(code), text=text)


class Predict(_Codec):
    """See infer.Codec."""

    __slots__ = ("_plain", "_template", "_templates")

    def __init__(self, templates: Templates, message: Buffer | Compressed) -> None:
        self._templates = templates
        self._template: Template | None = None
        self._plain: Octets = message if isinstance(message, Octets) else b""
        if self._plain and (found := templates.find(self._plain)) is not None:
            self._template = found[0]
            self.spec = self._template.spec
        else:
            super().__init__(m.PREDICT_REQUEST, message)

    @property
    def heavy(self) -> bool:
        """Whether decoding is worth a thread: numbers of variable size are unpacked one by one."""
        if self._template is not None:
            return False
        tensors = self._values.get("inputs", {}).values()
        return self._message is not None or sum(len(octets or b"") for octets in tensors) > _HEAVY_BYTES

    def decode(self, model: Model, limits: Limits) -> Prepared:
        template = self._template
        if template is not None:
            _check_wanted(template.wanted, model)
            return template.prepare(model, self._plain, limits)
        light = not self.heavy
        values = self.unpack(limits)
        wanted = tuple(dict.fromkeys(values.get("output_filter", ())))
        _check_wanted(wanted, model)
        arrays = {
            name: tfs_tensors.decode(name, octets or b"", limits.max_body_bytes)
            for name, octets in values.get("inputs", {}).items()
        }
        given = dict(arrays)
        prepared = prepare(model, arrays, limits, wanted)
        if self._plain and light:
            self._templates.learn(self._plain, self.spec, given, wanted)
        return prepared

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Reply:
        template = self._template
        if template is not None and (known := template.encode(model, outputs)) is not None:
            return Reply(known)
        wanted = template.wanted if template is not None else prepared.note
        parts: list[Buffer] = []
        for name in wanted or [spec.name for spec in model.config.outputs]:
            parts += entry(name, outputs)
        return Reply([*parts, tail(model)])


def _check_wanted(wanted: tuple[str, ...], model: Model) -> None:
    """Raises InputError for an output that the model does not have."""
    if wanted:
        known = [spec.name for spec in model.config.outputs]
        for name in wanted:
            if name not in known:
                raise InputError(
                    f"output tensor alias not found in signature: {name[:_SHORT]} "
                    f"Outputs expected to be in the set {{{', '.join(known)}}}."
                )


class Score(_Codec):
    """Classify, Regress, or several of them on the same examples. See infer.Codec."""

    __slots__ = ("_methods", "_multi")

    def __init__(self, method: str, message: Buffer | Compressed) -> None:
        """`method`: CLASSIFY or REGRESS."""
        super().__init__(m.EXAMPLES_REQUEST, message)
        self._methods = [method]
        self._multi = False

    @property
    def heavy(self) -> bool:
        return self._message is not None or len(self._values.get("input", b"")) > _HEAVY_BYTES

    def decode(self, model: Model, limits: Limits) -> Prepared:
        values = self.unpack(limits)
        tfs.check_scores(model.config)
        arrays = tfs_tensors.examples(values.get("input", b""), model.config.inputs, limits.max_batch)
        return prepare(model, arrays, limits)

    def encode(self, model: Model, prepared: Prepared, outputs: dict[str, Array]) -> Reply:  # noqa: ARG002
        results = [_result(method, model, outputs) for method in self._methods]
        spec = model_spec(model)
        if self._multi:
            kinds = {CLASSIFY: "classification_result", REGRESS: "regression_result"}
            entries = [
                {"model_spec": spec, kinds[method]: result}
                for method, result in zip(self._methods, results, strict=True)
            ]
            return Reply([wire.encode(m.MULTI_RESPONSE, {"results": entries})])
        message = m.CLASSIFY_RESPONSE if self._methods[0] == CLASSIFY else m.REGRESS_RESPONSE
        return Reply([wire.encode(message, {"result": results[0], "model_spec": spec})])


class Multi(Score):
    """MultiInference: its tasks are of one model, which runs once. See infer.Codec."""

    __slots__ = ()

    def __init__(self, message: Buffer | Compressed) -> None:
        """Raises InputError."""
        plain = message.whole(_MULTI_BYTES) if isinstance(message, Compressed) else message
        values = envelope(m.MULTI_REQUEST, plain)
        tasks = values.get("tasks", [])
        specs = [task.get("model_spec", {}) for task in tasks]
        if not 0 < len(tasks) <= _MAX_TASKS:
            raise InputError(f"a request needs 1 to {_MAX_TASKS} tasks")
        if any(spec.get("name") != specs[0].get("name") or asked(spec) != asked(specs[0]) for spec in specs):
            raise InputError("all tasks of a request must name the same model and version")
        self._message, self._values, self.spec = None, values, specs[0]
        self._methods = [task.get("method_name", "") for task in tasks]
        self._multi = True
        for method in self._methods:
            if method not in (CLASSIFY, REGRESS):
                raise InputError(f"Unsupported signature method_name: {method[:_SHORT]}")


def envelope(kind: Message, message: Buffer) -> Values:
    """A request whose tensors or examples are still octets. Raises InputError."""
    large = len(message) > _HEAVY_BYTES and not isinstance(message, memoryview)
    return wire.decode(kind, memoryview(message) if large else message, max_items=_MAX_ITEMS)


def _peek(head: bytes) -> Values:
    """ModelSpec of a request whose beginning this is: every encoder writes it first."""
    if head[:1] == b"\x0a":
        size, start = wire.number_at(head, 1)
        if start + size <= len(head):
            return wire.decode(m.MODEL_SPEC, head[start : start + size], max_items=16)
    raise InputError("a compressed request must begin with model_spec")


def _result(method: str, model: Model, outputs: dict[str, Array]) -> Values:
    if method == REGRESS:
        return {"regressions": [{"value": value} for value in tfs.regress(model.config, outputs)]}
    return {
        "classifications": [
            {"classes": [{"label": label, "score": score} for label, score in row]}
            for row in tfs.classify(model.config, outputs)
        ]
    }


def asked(spec: Values) -> str:
    """The version that a ModelSpec names; empty: any. Raises InputError for an unknown label."""
    label = spec.get("version_label", "")
    if label not in ("", tfs.LABEL):
        raise InputError(f"Unrecognized servable version label: {label[:_SHORT]}")
    version = (spec.get("version") or {}).get("value", 0) if "version" in spec else 0
    return str(version) if version else ""
