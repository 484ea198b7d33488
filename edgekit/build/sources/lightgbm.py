"""LightGBM boosters as text."""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _recognise(look: Look) -> bool:
    return look.head.startswith((b"tree\nversion=", b"tree\r\nversion="))


FORMAT = Format(
    name="lightgbm",
    title="LightGBM (text)",
    env="sklearn",
    script="from_sklearn",
    packages=("lightgbm", "onnxmltools", "onnx"),
    recognise=_recognise,
)
