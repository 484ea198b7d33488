"""ONNX Runtime on the CPU.

Files: one `*.onnx` or `*.ort` model; any other file is external data that the model refers to by name, but
for `*.config`, which tells what a reduced build of the engine must contain.
Options (all optional):
    intra_threads   int   threads inside one operator; 0 (default) lets the engine choose
    inter_threads   int   threads across operators; more than 1 also runs branches in parallel
    graph           str   graph optimisation: disable, basic, extended, all (default)
    arena           bool  keep freed memory for the next run; default False: edge devices are short of RAM
    session.*, ep.* str   session configuration entries as onnxruntime documents them

On x86 without VNNI this engine sets session.x64quantprecision = "1" unless the options have that entry:
without it int8 saturates there, and answers are wrong. Variants with 7-bit weights (reduce_range) need no
such care and set it to "0", which is faster.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import host
from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes._base import Array, Files, Options, Runtime
from edgekit.runtimes._ports import Port, check_inputs

if TYPE_CHECKING:
    import onnxruntime

_NAME = "onnxruntime"
_PROVIDER = "CPUExecutionProvider"
_QUIET = 4  # severities: 0 verbose ... 3 error, 4 fatal; errors reach us as exceptions anyway
_RECORD = "session.record_ep_graph_assignment_info"
_EXACT = "session.x64quantprecision"
_DISABLED = "optimization.disable_specified_optimizers"
_MEDDLERS = "WeightBiasQuantization"
"""Optimisers that change answers: this one rounds the weights of a layer between int8 neighbours to 8 bits
per tensor, although the builder kept that layer in floating point to save the model's accuracy."""
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DTYPES = {
    "float": "<f4", "double": "<f8", "float16": "<f2", "bool": "?",
    "int8": "<i1", "int16": "<i2", "int32": "<i4", "int64": "<i8",
    "uint8": "<u1", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8",
}  # fmt: skip


class OnnxSession:
    """A loaded model. ONNX Runtime's own `Run` is thread-safe and releases the GIL."""

    thread_safe = True

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session: onnxruntime.InferenceSession | None = session
        self._ports = tuple(_port(argument) for argument in session.get_inputs())
        self._outputs = [argument.name for argument in session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise EngineError(f"{_NAME}: the session is closed")
        check_inputs(_NAME, inputs, self._ports)
        try:
            values = session.run(self._outputs, dict(inputs))
        except Exception as exc:  # the library raises a dozen unrelated types, all of them its own
            raise EngineError(f"{_NAME}: {_words(exc)}") from None
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
        self._session = None


class Engine:
    """The onnxruntime package."""

    name = _NAME

    def version(self) -> str:
        return str(_library().__version__)

    def load(self, files: Files, options: Options) -> OnnxSession:
        library = _library()
        model, external = _split(files)
        settings = _settings(library, options)
        try:
            if external:
                names = list(external)
                buffers = [bytes(external[name]) for name in names]
                settings.add_external_initializers_from_files_in_memory(
                    names, buffers, [len(buffer) for buffer in buffers]
                )
            session = library.InferenceSession(model, settings, providers=[_PROVIDER])
        except Exception as exc:  # see run()
            raise EngineError(f"{_NAME}: cannot load the model: {_words(exc)}") from None
        session.disable_fallback()
        if hasattr(session, "_model_bytes"):
            session._model_bytes = None  # else the wrapper keeps a second copy of the weights for life
        return OnnxSession(session)


def _library() -> Any:
    try:
        import onnxruntime as library
    except ImportError as exc:
        hint = "pip install 'edgekit-toolkit[onnxruntime]'"
        raise EngineMissing(f"{_NAME} is not installed: {_words(exc)}", hint) from None
    library.set_default_logger_severity(_QUIET)
    library.disable_telemetry_events()
    return library


def _split(files: Files) -> tuple[bytes, dict[str, bytes | memoryview]]:
    models = [name for name in files if name.endswith((".onnx", ".ort"))]
    if len(models) != 1:
        raise EngineError(f"{_NAME}: expected one .onnx or .ort file, got {', '.join(files) or 'nothing'}")
    external = {
        name: data for name, data in files.items() if name != models[0] and not name.endswith(".config")
    }
    return bytes(files[models[0]]), external


def _settings(library: Any, options: Options) -> Any:
    settings = library.SessionOptions()
    settings.log_severity_level = _QUIET
    settings.enable_cpu_mem_arena = False
    settings.add_session_config_entry(_RECORD, "1")
    settings.add_session_config_entry(_DISABLED, _MEDDLERS)
    if _EXACT not in options and host.saturates(host.read()):
        settings.add_session_config_entry(_EXACT, "1")
    for key, value in options.items():
        try:
            if key == "intra_threads":
                settings.intra_op_num_threads = _count(value)
            elif key == "inter_threads":
                settings.inter_op_num_threads = _count(value)
                if _count(value) > 1:
                    settings.execution_mode = library.ExecutionMode.ORT_PARALLEL
            elif key == "graph":
                level = getattr(library.GraphOptimizationLevel, _LEVELS[str(value)])
                settings.graph_optimization_level = level
            elif key == "arena":
                settings.enable_cpu_mem_arena = bool(value)
            elif key.startswith(("session.", "ep.")):
                text = str(int(value)) if isinstance(value, bool) else str(value)
                settings.add_session_config_entry(key, text)
            else:
                hint = "known: intra_threads, inter_threads, graph, arena, session.*, ep.*"
                raise EngineError(f"{_NAME}: unknown option {key!r}", hint)
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise EngineError(f"{_NAME}: option {key!r} cannot be {value!r}") from None
    return settings


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(value)
    return value


def _port(argument: Any) -> Port:
    kind = re.fullmatch(r"tensor\((\w+)\)", argument.type)
    if kind is None or kind[1] not in _DTYPES:
        raise EngineError(f"{_NAME}: input {argument.name!r} is {argument.type}, not a numeric tensor")
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return Port(argument.name, np.dtype(_DTYPES[kind[1]]), shape)


def _words(exc: Exception) -> str:
    """The library's message without its `[ONNXRuntimeError] : 7 : ` prefix."""
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(exc))


RUNTIME: Runtime = Engine()
