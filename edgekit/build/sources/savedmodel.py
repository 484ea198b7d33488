"""TensorFlow SavedModel folders."""

from __future__ import annotations

from edgekit.build.sources._base import Format, Look, refuse

_REACHING = {
    "PyFunc": "runs Python",
    "PyFuncStateless": "runs Python",
    "EagerPyFunc": "runs Python",
    "ReadFile": "reads files",
    "WriteFile": "writes files",
    "MatchingFiles": "lists folders",
    "LoadDataset": "reads files",
    "LoadDatasetV2": "reads files",
    "SaveDataset": "writes files",
    "SaveDatasetV2": "writes files",
    "PrintV2": "writes files",
}
"""Operators that reach out of the graph. NodeDef.op is field 2, a string: 0x12, its length, its name."""


def _recognise(look: Look) -> bool:
    return look.path.is_dir() and (look.path / "saved_model.pb").is_file()


def _risk(look: Look) -> str:
    for path in look.files():
        if path.is_symlink():
            raise refuse(look, f"a SavedModel with a link in it: {path.name}", "put the file itself there")
    graph = (look.path / "saved_model.pb").read_bytes()
    found = [name for name in _REACHING if b"\x12" + bytes([len(name)]) + name.encode() in graph]
    return f"its graph has the operator {found[0]}, which {_REACHING[found[0]]}" if found else ""


FORMAT = Format(
    name="savedmodel",
    title="TensorFlow SavedModel",
    env="tensorflow",
    script="from_tensorflow",
    packages=("tensorflow-cpu", "tf2onnx", "onnx"),
    recognise=_recognise,
    risk=_risk,
)
