"""OpenVINO on the CPU.

Files: `model.xml` (or `model.xml.gz`) + `model.bin` (OpenVINO IR), or one `*.onnx`.
Options (all optional):
    intra_threads   int   threads of one inference; 0 (default) lets the engine choose
    streams         int   inferences that may run side by side; default 1
    UPPER_CASE      any   OpenVINO's own properties. INFERENCE_PRECISION_HINT is "f32" unless given:
                          left alone the CPU plugin picks bf16 or f16 where the CPU has it, and the
                          answers are then not the certified ones.
"""

from __future__ import annotations

import sys
import zlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes._base import Array, Files, Options, Runtime
from edgekit.runtimes._ports import Port, check_inputs

if TYPE_CHECKING:
    import openvino

_NAME = "openvino"
_DEVICE = "CPU"
MAX_XML_BYTES = 256 * 1024 * 1024
_DTYPES = {
    "f32": "<f4", "f64": "<f8", "f16": "<f2", "boolean": "?",
    "i8": "<i1", "i16": "<i2", "i32": "<i4", "i64": "<i8",
    "u8": "<u1", "u16": "<u2", "u32": "<u4", "u64": "<u8",
}  # fmt: skip


class _Request:
    """An infer request with input tensors of its own.

    Writing into tensors that stay takes about 80 us less per run than handing over arrays, which the
    Python wrapper dispatches anew each time (keyword spotter: 210 us, now 130).
    """

    def __init__(self, compiled: openvino.CompiledModel, tensor: Callable[[Array], openvino.Tensor]) -> None:
        self._request = compiled.create_infer_request()
        self._tensor = tensor
        self._views: dict[int, Array] = {}

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        for i, array in enumerate(arrays):
            view = self._views.get(i)
            if view is not None and view.shape == array.shape:
                view[...] = array
            else:
                tensor = self._tensor(np.ascontiguousarray(array))  # copies
                self._request.set_input_tensor(i, tensor)
                self._views[i] = tensor.data
        values = self._request.infer(share_outputs=True)
        return [np.array(value) for value in values.to_tuple()]  # copied: the next run overwrites them


class OpenVinoSession:
    """A compiled model and its idle infer requests.

    A request holds one inference's buffers and may not be shared, so each `run` borrows one; there are
    as many as there were runs at the same time. Inference releases the GIL.
    """

    thread_safe = True

    def __init__(self, compiled: openvino.CompiledModel, tensor: Callable[[Array], openvino.Tensor]) -> None:
        self._compiled: openvino.CompiledModel | None = compiled
        self._tensor = tensor
        self._ports = tuple(_port(port) for port in compiled.inputs)
        self._outputs = [port.any_name for port in compiled.outputs]
        self._idle: deque[_Request] = deque()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        compiled = self._compiled
        if compiled is None:
            raise EngineError(f"{_NAME}: the session is closed")
        check_inputs(_NAME, inputs, self._ports)
        try:
            try:
                request = self._idle.pop()
            except IndexError:
                request = _Request(compiled, self._tensor)
            values = request.run([inputs[port.name] for port in self._ports])
        except Exception as exc:  # everything native arrives as RuntimeError, wrong types as others
            raise EngineError(f"{_NAME}: {_words(exc)}") from None
        self._idle.append(request)
        return dict(zip(self._outputs, values, strict=True))

    def coverage(self) -> dict[str, int]:
        """Executed nodes per runtime precision, e.g. {"CPU/i8": 9, "CPU/f32": 4}.

        Everything runs on the CPU; what tells is in which precision. Constants, inputs and results,
        which execute nothing, are left out.
        """
        if self._compiled is None:
            return {}
        count: Counter[str] = Counter()
        for node in self._compiled.get_runtime_model().get_ops():
            info = node.get_rt_info()
            kind, precision = (str(info[key].astype(str)) for key in ("layerType", "runtimePrecision"))
            if kind not in ("Const", "Input", "Output", "Parameter", "Result"):
                count[f"{_DEVICE}/{precision}"] += 1
        return dict(count)

    def close(self) -> None:
        self._idle.clear()
        self._compiled = None


class Engine:
    """The openvino package."""

    name = _NAME

    def version(self) -> str:
        """The release alone ("2026.4.1"), without build number and branch."""
        return str(_library().__version__).split("-")[0]

    def load(self, files: Files, options: Options) -> OpenVinoSession:
        library = _library()
        settings = _settings(options)
        model, weights = _split(files)
        try:
            core = library.Core()
            network = core.read_model(model, weights) if weights is not None else core.read_model(model)
            return OpenVinoSession(core.compile_model(network, _DEVICE, settings), library.Tensor)
        except EngineError:
            raise
        except Exception as exc:  # see run()
            raise EngineError(f"{_NAME}: cannot load the model: {_words(exc)}") from None


def _library() -> Any:
    # Importing openvino starts its usage reporting (openvino_telemetry); an entry of None makes that
    # import fail, upon which openvino and nncf use the stub they ship for this case.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino as library

        _ = library.Core  # a half-installed package imports as an empty namespace
    except (ImportError, AttributeError) as exc:
        hint = "pip install 'edgekit-toolkit[openvino]'"
        raise EngineMissing(f"{_NAME} is not installed: {_words(exc)}", hint) from None
    return library


def _split(files: Files) -> tuple[bytes, bytes | None]:
    if set(files) == {"model.xml", "model.bin"}:
        return bytes(files["model.xml"]), bytes(files["model.bin"])
    if set(files) == {"model.xml.gz", "model.bin"}:
        return _unpacked(bytes(files["model.xml.gz"])), bytes(files["model.bin"])
    if len(files) == 1 and next(iter(files)).endswith(".onnx"):
        return bytes(next(iter(files.values()))), None
    found = ", ".join(files) or "nothing"
    raise EngineError(f"{_NAME}: expected model.xml and model.bin, or one .onnx file, got {found}")


def _unpacked(packed: bytes) -> bytes:
    """The graph's text. Raises EngineError for damage, or more than MAX_XML_BYTES."""
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: gzip's header
    try:
        text = stream.decompress(packed, MAX_XML_BYTES)
    except zlib.error as exc:
        raise EngineError(f"{_NAME}: model.xml.gz is damaged: {exc}", "build it again") from None
    if not stream.eof:
        raise EngineError(f"{_NAME}: model.xml.gz is cut off, or unpacks to more than {MAX_XML_BYTES} bytes")
    return text


def _settings(options: Options) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # several processes would all be pinned to the first core
    }
    names = {"intra_threads": "INFERENCE_NUM_THREADS", "streams": "NUM_STREAMS"}
    for key, value in options.items():
        if key in names and (not isinstance(value, int) or value < 0):
            raise EngineError(f"{_NAME}: option {key!r} cannot be {value!r}")
        if key not in names and not key.isupper():
            hint = "known: intra_threads, streams and OpenVINO's properties in upper case"
            raise EngineError(f"{_NAME}: unknown option {key!r}", hint)
        settings[names.get(key, key)] = value
    return settings


def _port(port: Any) -> Port:
    kind = str(port.element_type.to_string())
    if kind not in _DTYPES:
        raise EngineError(f"{_NAME}: input {port.any_name!r} is {kind}, not a numeric tensor")
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return Port(port.any_name, np.dtype(_DTYPES[kind]), shape)


def _words(exc: Exception) -> str:
    """The last lines of the library's message: the first ones are paths in its own source."""
    lines = [line.strip() for line in str(exc).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith("Exception from")) or str(exc)


RUNTIME: Runtime = Engine()
