"""Which format a path holds: decided by what is inside, never by its suffix."""

from __future__ import annotations

from pathlib import Path

from edgekit import host
from edgekit.build.sources import (
    keras,
    keras_h5,
    lightgbm,
    savedmodel,
    sklearn,
    tflite,
    torch_export,
    torchscript,
    xgboost,
)
from edgekit.build.sources._base import Format, Look, refuse
from edgekit.errors import ModelError

FORMATS: tuple[Format, ...] = (
    torch_export.FORMAT,
    torchscript.FORMAT,
    savedmodel.FORMAT,
    keras.FORMAT,
    keras_h5.FORMAT,
    tflite.FORMAT,
    sklearn.FORMAT,
    xgboost.FORMAT,
    lightgbm.FORMAT,
)
"""All but ONNX, which is what none of these is: its files have no mark of their own."""

_HEAD = 4096
_COPIES = 2
"""Of the model that a conversion holds in memory at the least: the source's weights and ONNX's."""


def look_at(path: Path) -> Look:
    """Read the head. Raises ModelError when there is nothing to read or too much for this machine."""
    try:
        if path.is_dir():
            look = Look(path, sum(p.lstat().st_size for p in path.rglob("*")), b"")
        elif path.exists() and not path.is_file():
            raise ModelError(f"{path} is not a file", "name the model's file or SavedModel folder")
        else:
            with path.open("rb") as file:
                look = Look(path, path.stat().st_size, file.read(_HEAD))
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror}", "check the path") from None
    have = host.read().ram_mib
    need = _COPIES * look.size // (1 << 20)
    if have and need > have:
        raise ModelError(
            f"{path}: {look.size >> 20} MiB of model need at least {need} MiB of memory, "
            f"this machine has {have}",
            "build it on a larger machine",
        )
    return look


def recognise(look: Look) -> Format | None:
    """The format; None for what should be ONNX. Raises ModelError for what is no model, saying what it is."""
    for form in FORMATS:
        if form.recognise(look):
            return form
    _refuse_strangers(look)
    return None


def _refuse_strangers(look: Look) -> None:
    head = look.head
    export = "export it: torch.export.save(torch.export.export(model, (example,)), 'model.pt2')"
    weights = "PyTorch weights without a graph (a state dict or pickled module)"
    if look.path.is_dir():
        raise refuse(look, "a folder without saved_model.pb", "name the model's file or SavedModel folder")
    if head.startswith(b"GGUF"):
        raise refuse(
            look, "a GGUF language model", "the text engines serve it as it is; it has no ONNX graph"
        )
    if head.startswith(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.") or "data.pkl" in look.members:
        raise refuse(look, weights, export)
    if look.members and all(name.endswith(".npy") for name in look.members):
        raise refuse(look, "NumPy data (.npz), not a model", "give the model first and data as --calibration")
    if look.members:
        raise refuse(look, "a ZIP archive of no known model format", "see docs/sources.md for the formats")
    if head.startswith(b"<?xml"):
        raise refuse(look, "XML (OpenVINO IR)", "give the ONNX file that it was made from")
    if head.startswith(b"binf"):
        raise refuse(look, "an old binary XGBoost model", "save it again: booster.save_model('model.ubj')")
