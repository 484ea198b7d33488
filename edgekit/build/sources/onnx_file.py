"""ONNX files, with weights inside or beside them; never elsewhere."""

from __future__ import annotations

from typing import Any

from edgekit.build.sources._base import Look
from edgekit.errors import EngineMissing, ModelError

MAX_BYTES = 2 * 1024**3 - 1
"""The limit of protobuf, and so of ONNX in one file."""


def library() -> Any:
    try:
        import onnx
    except ImportError as exc:
        raise EngineMissing(f"cannot read models: {exc}", "pip install 'edgekit-toolkit[build]'") from None
    return onnx


def read(look: Look, data: bytes) -> tuple[Any, bool]:
    """The model, and whether all of it was in the file (weights may lie beside it). Raises ModelError."""
    path = look.path
    try:
        model = library().ModelProto.FromString(data)
    except Exception as exc:  # protobuf's DecodeError has no public home
        raise ModelError(
            f"{path} is not ONNX, or it is truncated: {exc}",
            "export the model again; docs/sources.md lists the formats that are recognised",
        ) from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it has no graph", "export the model again")
    return model, not _external_data(look, model)


def _external_data(look: Look, model: Any) -> bool:
    """Load weights from other files: only beside the model, never elsewhere. True when there are any."""
    path, helper = look.path, library().external_data_helper
    folder = path.resolve().parent
    outside = [t for t in model.graph.initializer if helper.uses_external_data(t)]
    places = set()
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
        places.add(target)
    size = sum(place.stat().st_size for place in places)
    if look.size + size > MAX_BYTES:
        raise ModelError(
            f"{path}: {(look.size + size) >> 20} MiB with the weights beside it, "
            "more than one ONNX file can hold (2 GiB)",
            "use a smaller model, or 16-bit weights",
        )
    try:
        # Reaches constants inside nodes too, and refuses places outside the folder by itself.
        helper.load_external_data_for_model(model, str(folder))
    except Exception as exc:  # ValidationError, ValueError, OSError
        words = f"{path}: cannot read the weights beside it: {exc}"
        raise ModelError(words, "export the model again") from None
    for tensor in outside:
        tensor.ClearField("data_location")  # the same bytes as if the weights had been inside
    return bool(outside)
