"""TFLite flatbuffers, float or quantised."""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return look.head[4:8] == b"TFL3"


FORMAT = Format(
    name="tflite",
    title="TFLite",
    env="tensorflow",
    script="from_tensorflow",
    packages=("tensorflow-cpu", "tf2onnx", "onnx"),
    recognise=_recognise,
)
