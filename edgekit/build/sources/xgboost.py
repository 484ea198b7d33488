"""XGBoost boosters as JSON or UBJSON."""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look


def _is_json(head: bytes) -> bool:
    text = head.lstrip()
    return text.startswith(b"{") and text[1:].lstrip().startswith((b'"learner"', b'"version"'))


def _recognise(look: Look) -> bool:
    return (look.head.startswith(b"{L") and b"learner" in look.head[:32]) or _is_json(look.head)


FORMAT = Format(
    name="xgboost",
    title="XGBoost (.json, .ubj)",
    env="sklearn",
    script="from_sklearn",
    packages=("xgboost-cpu", "onnxmltools", "onnx"),
    recognise=_recognise,
)
