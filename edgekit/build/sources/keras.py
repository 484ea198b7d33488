"""Keras 3 archives: config.json, metadata.json, model.weights.h5.

Layers that run code or read files when they are loaded (Lambda, foreign modules, vocabularies in files)
need trust; the script finds them in config.json before Keras sees it, and Keras's safe mode stays on.
"""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return {"config.json", "metadata.json", "model.weights.h5"} <= look.members


FORMAT = Format(
    name="keras",
    title="Keras (.keras)",
    env="tensorflow",
    script="from_tensorflow",
    packages=("tensorflow-cpu", "keras", "tf2onnx", "onnx"),
    recognise=_recognise,
)
