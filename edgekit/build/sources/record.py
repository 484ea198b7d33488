"""How a model was trained, written in the ONNX file itself (its metadata): file and record stay together."""

from __future__ import annotations

from typing import Any

from edgekit import codec
from edgekit.build.sources.onnx_file import library
from edgekit.bundle.model import Training
from edgekit.errors import ModelError

KEY = "edgekit.training"
MAX_BYTES = 1 << 20


def stamped(onnx: bytes, training: Training) -> bytes:
    """The same model with the record in it."""
    model = library().ModelProto.FromString(onnx)
    entry = model.metadata_props.add()
    entry.key, entry.value = KEY, codec.to_json(training).decode()
    return bytes(model.SerializeToString(deterministic=True))


def taken(path: object, model: Any) -> Training | None:
    """What the file says of itself, taken out of `model`: equal graphs give equal candidates. None when it
    says nothing. Raises ModelError for a damaged record."""
    place = next((i for i, entry in enumerate(model.metadata_props) if entry.key == KEY), None)
    if place is None:
        return None
    text = model.metadata_props[place].value
    del model.metadata_props[place]
    return codec.from_json(
        Training, text.encode(), what=f"{path}: its training record", max_bytes=MAX_BYTES, error=ModelError
    )
