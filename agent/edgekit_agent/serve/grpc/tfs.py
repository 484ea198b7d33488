"""tensorflow.serving.PredictionService and ModelService."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edgekit.bundle.model import TensorSpec
from edgekit.errors import InputError
from edgekit_agent.serve import tfs
from edgekit_agent.serve.core import Core, NotServed
from edgekit_agent.serve.grpc import status, wire
from edgekit_agent.serve.grpc import tfs_messages as m
from edgekit_agent.serve.grpc.framing import Buffer, Compressed
from edgekit_agent.serve.grpc.service import Incoming, Method, Respond, simple
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.grpc.tfs_infer import CLASSIFY, REGRESS, Multi, Predict, Score, asked
from edgekit_agent.serve.grpc.tfs_templates import Templates, model_spec
from edgekit_agent.serve.grpc.wire import Message, Values
from edgekit_agent.serve.model import Model

_ANY = "type.googleapis.com/tensorflow.serving.SignatureDefMap"
_FLEET = "releases come from the fleet: clients do not change which models are served"


class Prediction:
    """See service.Service."""

    name = "tensorflow.serving.PredictionService"

    def __init__(self, core: Core) -> None:
        self._core = core

    def methods(self) -> dict[str, Method]:
        return {
            "Predict": self._method(partial(Predict, Templates())),
            "Classify": self._method(partial(Score, CLASSIFY)),
            "Regress": self._method(partial(Score, REGRESS)),
            "MultiInference": self._method(Multi),
            "GetModelMetadata": simple(m.METADATA_REQUEST, m.METADATA_RESPONSE, self._metadata),
        }

    def _method(self, make: Callable[[Buffer | Compressed], Predict | Score]) -> Method:
        def handler(incoming: Incoming, respond: Respond) -> None:
            codec = make(incoming.message)
            self._core.infer(
                codec.spec.get("name", ""), version(self._core, codec.spec), codec, respond,
                received_ns=incoming.received_ns, heavy=codec.heavy, deadline_ns=incoming.deadline_ns,
            )  # fmt: skip

        return Method(handler)

    def _metadata(self, values: Values) -> Values:
        fields = values.get("metadata_field", [])
        if not fields:
            raise InputError("GetModelMetadataRequest must specify at least one metadata_field")
        if fields != ["signature_def"]:
            raise InputError(f"Metadata field {fields[0][:80]} is not supported")
        model = find(self._core, values.get("model_spec", {}))
        config = model.config
        signature = {
            "inputs": {spec.name: _info(spec) for spec in config.inputs},
            "outputs": {spec.name: _info(spec) for spec in config.outputs},
            "method_name": tfs.METHODS[0],
        }
        packed = wire.encode(m.SIGNATURES, {"signature_def": {tfs.SIGNATURE: signature}})
        return {
            "model_spec": model_spec(model) | {"signature_name": ""},
            "metadata": {"signature_def": {"type_url": _ANY, "value": packed}},
        }


class Models:
    """See service.Service."""

    name = "tensorflow.serving.ModelService"

    def __init__(self, core: Core) -> None:
        self._core = core

    def methods(self) -> dict[str, Method]:
        return {
            "GetModelStatus": simple(m.STATUS_REQUEST, m.STATUS_RESPONSE, self._status),
            "HandleReloadConfigRequest": simple(Message("Empty"), Message("Empty"), _refuse),
        }

    def _status(self, values: Values) -> Values:
        model = find(self._core, values.get("model_spec", {}))
        entry = {"version": tfs.number(model.version), "state": m.AVAILABLE, "status": {}}
        return {"model_version_status": [entry]}


def services(core: Core) -> list[Prediction | Models]:
    return [Prediction(core), Models(core)]


def find(core: Core, spec: Values) -> Model:
    """The model that a ModelSpec means. Raises NotServed with TensorFlow Serving's text, InputError."""
    try:
        return core.find(spec.get("name", ""), version(core, spec))
    except NotServed as exc:
        if exc.http_status != 404:
            raise
        raise NotServed(404, tfs.not_found(spec.get("name", "")[:80], asked(spec))) from None


def version(core: Core, spec: Values) -> str:
    """As Core.find wants it. Raises InputError."""
    wanted = asked(spec)
    model = core.models.get(spec.get("name", ""))
    return tfs.wanted(wanted, model.version) if model is not None else wanted


def _info(spec: TensorSpec) -> Values:
    shape = {"dim": [{"size": size} for size in spec.shape]}
    return {"name": f"{spec.name}:0", "dtype": m.DATA_TYPES[spec.datatype], "tensor_shape": shape}


def _refuse(values: Values) -> Values:  # noqa: ARG001
    raise RpcError(status.PERMISSION_DENIED, _FLEET)
