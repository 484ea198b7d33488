"""A loaded ONNX Runtime session, shared by the engines that are built on that library."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes._base import Array
from edgekit.runtimes._ports import Port, check_inputs

if TYPE_CHECKING:
    import onnxruntime

QUIET = 4  # severities: 0 verbose ... 3 error, 4 fatal; errors reach us as exceptions anyway
RECORD = "session.record_ep_graph_assignment_info"
DISABLED = "optimization.disable_specified_optimizers"
MEDDLERS = "WeightBiasQuantization"
"""Optimisers that change answers: this one rounds the weights of a layer between int8 neighbours to 8 bits
per tensor, although the builder kept that layer in floating point to save the model's accuracy."""
_DTYPES = {
    "float": "<f4", "double": "<f8", "float16": "<f2", "bool": "?",
    "int8": "<i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
}  # fmt: skip


class OnnxSession:
    """A loaded model. ONNX Runtime's own `Run` is thread-safe and releases the GIL."""

    thread_safe = True

    def __init__(self, engine: str, session: onnxruntime.InferenceSession) -> None:
        # Left on, the library would answer a failing run with another provider, and print so.
        session.disable_fallback()
        if hasattr(session, "_model_bytes"):
            session._model_bytes = None  # else the wrapper keeps a second copy of the weights for life
        self._engine = engine
        self._session: onnxruntime.InferenceSession | None = session
        self._ports = tuple(_port(engine, argument) for argument in session.get_inputs())
        self._outputs = [argument.name for argument in session.get_outputs()]
        # Past the wrapper, whose five checks have been made here or are about graphics cards.
        self._call = getattr(session, "_sess", session).run

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        call = self._call
        if call is None:
            raise EngineError(f"{self._engine}: the session is closed")
        check_inputs(self._engine, inputs, self._ports)
        try:
            values = call(self._outputs, dict(inputs), None)
        except Exception as exc:  # the library raises a dozen unrelated types, all of them its own
            raise EngineError(f"{self._engine}: {words(exc)}") from None
        return dict(zip(self._outputs, values, strict=True))

    def coverage(self) -> dict[str, int]:
        """Nodes per execution provider; empty where this onnxruntime cannot tell.

        Counted when nodes are assigned: after basic optimisation, before fusions such as that of int8.
        """
        if self._session is None or not hasattr(self._session, "get_provider_graph_assignment_info"):
            return {}
        count: Counter[str] = Counter()
        for group in self._session.get_provider_graph_assignment_info():
            count[group.ep_name] += len(group.get_nodes())
        return dict(count)

    def close(self) -> None:
        self._session = self._call = None


def library(engine: str, hint: str) -> Any:
    """The onnxruntime package, told to be quiet. Raises EngineMissing."""
    try:
        import onnxruntime
    except ImportError as exc:
        raise EngineMissing(f"{engine} is not installed: {words(exc)}", hint) from None
    onnxruntime.set_default_logger_severity(QUIET)
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def words(exc: Exception) -> str:
    """The library's message without its `[ONNXRuntimeError] : 7 : ` prefix."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(exc))


def _port(engine: str, argument: Any) -> Port:
    kind = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    if kind is None or kind[1] not in _DTYPES:
        raise EngineError(f"{engine}: input {argument.name!r} is {argument.type}, not a numeric tensor")
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return Port(argument.name, np.dtype(_DTYPES[kind[1]]), shape)
