"""The model as it comes in: recognised by content, checked, cleaned. ONNX today."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import codec
from edgekit.backends import SourceModel, versions
from edgekit.build.cache import Cache, key_of
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineMissing, ModelError

MAX_MODEL_BYTES = 2 * 1024**3 - 1
"""The limit of protobuf, and so of ONNX in one file."""
_KNOWN = (
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras .h5)"),
    (b"PK\x03\x04", "a ZIP archive (PyTorch, Keras .keras or NumPy)"),
    (b"\x80", "a Python pickle"),
    (b"GGUF", "a GGUF language model"),
    (b"<?xml", "XML (OpenVINO IR)"),
)


@dataclass(frozen=True)
class _Ports:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def load(path: Path, cache: Cache = Cache(None)) -> SourceModel:  # noqa: B008 - frozen
    """Read, check and clean an ONNX model.

    A file that was accepted before comes cleaned from `cache`: the clean-up's libraries take seconds to
    import. Raises ModelError when it is not ONNX, truncated, not valid, refers to files outside its
    folder, has a dimension other than the batch open, or holds NaN; the message names the place.
    """
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    key = key_of("source", {"file": digest, "tools": versions("models", ("onnx", "onnxslim"))})
    if known := cache.get(key):
        ports = codec.from_json(_Ports, known["ports.json"], what="cached ports")
        return SourceModel(known["model.onnx"], ports.inputs, ports.outputs, digest)
    model, complete = _checked(path, data, digest)
    if complete:
        ports_json = codec.to_json(_Ports(model.inputs, model.outputs))
        cache.put(key, {"model.onnx": model.onnx, "ports.json": ports_json})
    return model


def _checked(path: Path, data: bytes, digest: str) -> tuple[SourceModel, bool]:
    """The cleaned model, and whether all of it was in the file (weights may lie beside it)."""
    model = _parse(path, data)
    complete = not _external_data(path, model)
    inputs = tuple(_spec(path, "input", value) for value in _graph_inputs(model))
    outputs = tuple(_spec(path, "output", value) for value in model.graph.output)
    if not inputs or not outputs:
        raise ModelError(f"{path}: the graph has no {'inputs' if not inputs else 'outputs'}")
    _weights(path, model)
    return SourceModel(_clean(path, model), inputs, outputs, digest), complete


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a file", "name the ONNX file")
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise ModelError(f"{path}: {size} bytes, more than one ONNX file can hold")
        data = path.read_bytes()
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}", "check the path") from None
    for magic, name in _KNOWN:
        if data.startswith(magic):
            raise ModelError(f"{path} is not ONNX but {name}", "export it to ONNX first")
    if data[4:8] == b"TFL3":
        raise ModelError(f"{path} is not ONNX but TFLite", "convert it to ONNX first, e.g. with tf2onnx")
    return data


def _parse(path: Path, data: bytes) -> Any:
    onnx = _onnx()
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as exc:  # protobuf's DecodeError has no public home
        raise ModelError(f"{path} is not ONNX, or it is truncated: {exc}", "export the model again") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph", "export the model again")
    return model


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise EngineMissing(f"cannot read models: {exc}", "pip install 'edgekit-toolkit[build]'") from None
    return onnx


def _external_data(path: Path, model: Any) -> bool:
    """Load weights from other files: only beside the model, never elsewhere. True when there are any."""
    external_data_helper = _onnx().external_data_helper
    folder = path.resolve().parent
    outside = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    for tensor in outside:
        location = next((item.value for item in tensor.external_data if item.key == "location"), "")
        target = folder / location
        if not target.resolve().is_relative_to(folder) or target.is_symlink():
            raise ModelError(
                f"{path}: weight {tensor.name!r} lies outside the model's folder: {location!r}",
                "put the data file beside the model and export again",
            )
        if not target.is_file():
            raise ModelError(f"{path}: weight {tensor.name!r}: no file {location!r} beside the model")
    try:
        # Reaches constants inside nodes too, and refuses places outside the folder by itself.
        external_data_helper.load_external_data_for_model(model, str(folder))
    except Exception as exc:  # ValidationError, ValueError, OSError
        words = f"{path}: cannot read the weights beside it: {exc}"
        raise ModelError(words, "export the model again") from None
    for tensor in outside:
        tensor.ClearField("data_location")  # the same bytes as if the weights had been inside
    return bool(outside)


def _graph_inputs(model: Any) -> Iterator[Any]:
    """Inputs that a caller gives: old models list their weights among the inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return (value for value in model.graph.input if value.name not in weights)


def _spec(path: Path, kind: str, value: Any) -> TensorSpec:
    onnx = _onnx()
    from edgekit.runtimes._base import DTYPE_NAMES

    tensor = value.type.tensor_type
    try:
        datatype = DTYPE_NAMES[np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))]
    except (KeyError, TypeError):
        raise ModelError(f"{path}: {kind} {value.name!r} is not a numeric tensor") from None
    shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    if kind == "input" and (not shape or shape[0] > 1):
        raise ModelError(
            f"{path}: input {value.name!r} has shape {shape}: its first dimension is not an open batch or 1",
            "export it with a batch dimension; devices are asked for one sample at a time",
        )
    loose = [position for position, size in enumerate(shape) if size < 1 and position > 0]
    if loose and kind == "input":
        raise ModelError(
            f"{path}: input {value.name!r} has no fixed size in dimension {loose[0]} of {shape}",
            "only the batch (dimension 0) may be open; fix the others when you export",
        )
    return TensorSpec(value.name, datatype, tuple(size if size > 0 else -1 for size in shape))


def _weights(path: Path, model: Any) -> None:
    onnx = _onnx()
    for tensor in model.graph.initializer:
        try:
            array = onnx.numpy_helper.to_array(tensor)
        except Exception as exc:  # whatever NumPy says of a size or type that cannot be
            words = f"{path}: weight {tensor.name!r} cannot be read: {type(exc).__name__}: {exc}"
            raise ModelError(words, "export the model again") from None
        bad = int(np.count_nonzero(~np.isfinite(array))) if array.dtype.kind == "f" else 0
        if bad:
            raise ModelError(
                f"{path}: weight {tensor.name!r} holds {bad} values that are NaN or infinite",
                "the training went wrong; export a sound checkpoint",
            )


def _clean(path: Path, model: Any) -> bytes:
    """Checked by ONNX's own checker, then simplified by onnxslim (constants folded, dead nodes gone)."""
    onnx = _onnx()
    try:
        onnx.checker.check_model(model)
    except Exception as exc:  # ValidationError, or UnicodeDecodeError for its message about a broken name
        words = str(exc).strip().splitlines() or [type(exc).__name__]
        raise ModelError(f"{path}: not a valid model: {words[0]}", "export the model again") from None
    import onnxslim

    try:
        with contextlib.redirect_stdout(io.StringIO()), _silent_logs():
            slim = onnxslim.slim(model)
    except Exception as exc:  # a clean-up that fails must not stop a sound model
        logging.getLogger(__name__).info("%s: not simplified: %s", path, exc)
        slim = model
    slim.producer_name, slim.producer_version, slim.doc_string = "edgekit", "", ""
    return bytes(slim.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _silent_logs() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
