"""inference.GRPCInferenceService: the Open Inference Protocol over gRPC with Triton's extensions."""

from __future__ import annotations

from typing import Any

from edgekit.errors import InputError
from edgekit_agent.serve import documents, triton_settings
from edgekit_agent.serve.core import Core, NotServed
from edgekit_agent.serve.grpc import oip_messages as m
from edgekit_agent.serve.grpc import status, wire
from edgekit_agent.serve.grpc.oip_infer import Codec
from edgekit_agent.serve.grpc.oip_templates import Templates
from edgekit_agent.serve.grpc.service import Incoming, Method, Respond, personal, simple
from edgekit_agent.serve.grpc.status import RpcError
from edgekit_agent.serve.grpc.wire import Values
from edgekit_agent.serve.peer import Peer

_FLEET = "releases come from the fleet: clients do not load or unload models"
_NO_CUDA = "CUDA shared memory is not supported"
_KINDS = {bool: "bool_param", int: "uint32_param", str: "string_param"}


class Service:
    """See service.Service."""

    name = "inference.GRPCInferenceService"

    def __init__(self, core: Core) -> None:
        self._core = core
        self._templates = Templates()

    def methods(self) -> dict[str, Method]:
        refuse_load = simple(m.REPOSITORY_MODEL, m.EMPTY, lambda _: _refuse(_FLEET))
        refuse_cuda = simple(m.EMPTY, m.EMPTY, lambda _: _refuse(_NO_CUDA, status.UNIMPLEMENTED))
        nothing = simple(m.REGION_NAME, m.EMPTY, lambda _: {})
        return {
            "ServerLive": simple(m.EMPTY, m.LIVE, lambda _: {"live": True}),
            "ServerReady": simple(m.EMPTY, m.READY, lambda _: {"ready": self._core.model is not None}),
            "ModelReady": simple(m.NAMED, m.READY, self._ready),
            "ServerMetadata": simple(
                m.EMPTY, m.SERVER_METADATA, lambda _: documents.server(self._core.version)
            ),
            "ModelMetadata": simple(m.NAMED, m.MODEL_METADATA, self._metadata),
            "ModelConfig": simple(m.NAMED, m.CONFIG_RESPONSE, self._config),
            "ModelStatistics": simple(m.NAMED, m.STATISTICS, self._statistics),
            "ModelInfer": Method(self._infer),
            "ModelStreamInfer": Method(self._infer_streaming, streams=True),
            "RepositoryIndex": simple(m.INDEX_REQUEST, m.INDEX, self._index),
            "RepositoryModelLoad": refuse_load,
            "RepositoryModelUnload": refuse_load,
            "SystemSharedMemoryStatus": personal(m.REGION_NAME, m.REGIONS, self._regions),
            "SystemSharedMemoryRegister": personal(m.REGION, m.EMPTY, self._register),
            "SystemSharedMemoryUnregister": personal(m.REGION_NAME, m.EMPTY, self._unregister),
            "CudaSharedMemoryStatus": nothing,
            "CudaSharedMemoryRegister": refuse_cuda,
            "CudaSharedMemoryUnregister": nothing,
            "TraceSetting": personal(m.TRACE_REQUEST, m.TRACE_RESPONSE, self._trace),
            "LogSettings": personal(m.LOG_SETTINGS, m.LOG_SETTINGS, _log),
        }

    def _infer(self, incoming: Incoming, respond: Respond, stream: bool = False) -> None:
        core = self._core
        codec = Codec(incoming, core.regions, self._templates, stream)
        core.infer(
            codec.name, codec.version, codec, respond,
            received_ns=incoming.received_ns, heavy=codec.heavy, deadline_ns=incoming.deadline_ns,
        )  # fmt: skip

    def _infer_streaming(self, incoming: Incoming, respond: Respond) -> None:
        self._infer(incoming, respond, stream=True)

    def _ready(self, asked: Values) -> Values:
        try:
            self._core.find(asked.get("name", ""), asked.get("version", ""))
        except NotServed:
            return {"ready": False}
        return {"ready": True}

    def _metadata(self, asked: Values) -> Values:
        model = self._core.find(asked.get("name", ""), asked.get("version", ""))
        return wire.known(m.MODEL_METADATA, documents.metadata(model.name, model.version, model.config))

    def _config(self, asked: Values) -> Values:
        model = self._core.find(asked.get("name", ""), asked.get("version", ""))
        most = self._core.limits.max_batch
        return {"config": _config(documents.configuration(model.name, model.version, model.config, most))}

    def _statistics(self, asked: Values) -> Values:
        name = asked.get("name", "")
        found = [self._core.find(name, asked.get("version", ""))] if name else self._core.served()
        return wire.known(m.STATISTICS, documents.statistics(model.counters for model in found))

    def _index(self, asked: Values) -> Values:
        """What is served, and what was since the serving process started."""
        served = [(model.name, model.version) for model in self._core.models.values()]
        before = [(counters.name, counters.version) for counters in self._core.ledger if counters.name]
        return {"models": documents.index(served, before, ready=asked.get("ready", False))}

    def _regions(self, asked: Values, peer: Peer) -> Values:
        found = self._core.regions.status(peer, asked.get("name", ""))
        return {"regions": {region["name"]: region for region in found}}

    def _register(self, asked: Values, peer: Peer) -> Values:
        name, key = asked.get("name", ""), asked.get("key", "")
        self._core.regions.register(peer, name, key, asked.get("offset", 0), asked.get("byte_size", 0))
        return {}

    def _unregister(self, asked: Values, peer: Peer) -> Values:
        self._core.regions.unregister(peer, asked.get("name", ""))
        return {}

    def _trace(self, asked: Values, peer: Peer) -> Values:
        if name := asked.get("model_name", ""):
            self._core.find(name)
        changes: dict[str, Any] = {}
        for key, entry in asked.get("settings", {}).items():
            texts = (entry or {}).get("value", [])
            changes[key] = None if not texts else texts if key == "trace_level" else texts[0]
        settings = triton_settings.change_trace(_allowed(changes, peer))
        lists = {key: value if isinstance(value, list) else [value] for key, value in settings.items()}
        return {"settings": {key: {"value": value} for key, value in lists.items()}}


def services(core: Core) -> list[Service]:
    return [Service(core)]


def _config(document: dict[str, Any]) -> Values:
    """The JSON document as values of ModelConfig. Triton's versions are numbers, a release's need not be."""
    values = wire.known(m.MODEL_CONFIG, document)
    named = document["version_policy"]["specific"]["versions"]
    values["version_policy"] = {"specific": {"versions": [int(text) for text in named if text.isdecimal()]}}
    for tensor in (*values["input"], *values["output"]):
        tensor["data_type"] = m.DATA_TYPES.get(tensor["data_type"], 0)
    for group in values["instance_group"]:
        group["kind"] = m.KINDS[group["kind"]]
    return values


def _log(asked: Values, peer: Peer) -> Values:
    changes: dict[str, Any] = {}
    for key, entry in asked.get("settings", {}).items():
        if not entry:
            raise InputError(f"log setting {key[:80]!r} has no value")
        changes[key] = next(iter(entry.values()))
    settings = triton_settings.change_log(_allowed(changes, peer))
    return {"settings": {key: {_KINDS[type(value)]: value} for key, value in settings.items()}}


def _allowed(changes: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """Who may reach the agent from elsewhere may not change what it writes about them."""
    if changes and not peer.local:
        raise RpcError(status.PERMISSION_DENIED, "settings are changed from this machine only")
    return changes


def _refuse(text: str, code: int = status.PERMISSION_DENIED) -> Values:
    raise RpcError(code, text)
