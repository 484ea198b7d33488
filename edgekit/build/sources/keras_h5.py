"""Keras models in HDF5. The old loader has no safe mode: the script reads the description first."""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return look.head.startswith(b"\x89HDF\r\n\x1a\n")


FORMAT = Format(
    name="keras-h5",
    title="Keras (.h5)",
    env="tensorflow",
    script="from_tensorflow",
    packages=("tensorflow-cpu", "keras", "h5py", "tf2onnx", "onnx"),
    recognise=_recognise,
)
