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

from typing import Any

from edgekit import host
from edgekit.errors import EngineError
from edgekit.runtimes import _ort_session
from edgekit.runtimes._base import Files, Options, Runtime
from edgekit.runtimes._ort_session import OnnxSession

_NAME = "onnxruntime"
_PROVIDER = "CPUExecutionProvider"
_EXACT = "session.x64quantprecision"
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


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
            raise EngineError(f"{_NAME}: cannot load the model: {_ort_session.words(exc)}") from None
        return OnnxSession(_NAME, session)


def _library() -> Any:
    return _ort_session.library(_NAME, "pip install 'edgekit-toolkit[onnxruntime]'")


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
    settings.log_severity_level = _ort_session.QUIET
    settings.enable_cpu_mem_arena = False
    settings.add_session_config_entry(_ort_session.RECORD, "1")
    settings.add_session_config_entry(_ort_session.DISABLED, _ort_session.MEDDLERS)
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


RUNTIME: Runtime = Engine()
