"""ONNX Runtime's mobile format: a graph that needs no ONNX parser, and the operators that it needs.

`required_operators.config` is what a reduced build of onnxruntime is configured with
(`build.sh --include_ops_by_config`), so that a phone carries no operator in vain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.backends._silence import silenced

_ALIGNMENT = 16
"""Bytes; no field of a FlatBuffer wants more."""


def to_ort(onnx: bytes) -> dict[str, bytes]:
    """`model.ort` and `required_operators.config`. Optimised for any CPU, not for this one."""
    from onnxruntime.tools.convert_onnx_models_to_ort import (
        OptimizationStyle,
        convert_onnx_models_to_ort,
    )

    with tempfile.TemporaryDirectory(prefix="edgekit-ort-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(onnx)
        with silenced():
            convert_onnx_models_to_ort(
                folder,
                optimization_styles=[OptimizationStyle.Fixed],
                # ARM keeps the graph as it is where x86 would lay weights out for its own kernels.
                target_platform="arm",
                enable_type_reduction=True,
            )
        (config,) = folder.glob("*.config")
        # Comments at its head name the temporary folder.
        lines = [line for line in config.read_text().splitlines() if not line.startswith("#")]
        operators = "\n".join(lines) + "\n"
        return {
            "model.ort": _reproducible((folder / "model.ort").read_bytes()),
            "required_operators.config": operators.encode(),
        }


def _reproducible(data: bytes) -> bytes:
    """The same file with its table of operator types in alphabetical order: onnxruntime writes that table in
    the order of a hash map that is seeded anew each time.

    FlatBuffers are built from the end to the beginning, the model before the table. So the model's bytes
    stay, and what lies before them is built again.
    """
    import flatbuffers
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import InferenceSession as Session
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import KernelTypeStrResolver as Resolver

    session = Session.InferenceSession.GetRootAs(data)
    model = session.Model()._tab
    begin = min(model.Pos, model.Pos - model.Get(flatbuffers.number_types.SOffsetTFlags, model.Pos))
    builder = flatbuffers.Builder(1)
    builder.Bytes, builder.head, builder.minalign = bytearray(data[begin:]), 0, _ALIGNMENT

    resolver = session.KernelTypeStrResolver()
    found = [resolver.OpKernelTypeStrArgs(i) for i in range(resolver.OpKernelTypeStrArgsLength())]
    entries = [_operator(builder, entry) for entry in sorted(found, key=lambda entry: bytes(entry.OpId()))]
    table = _vector(builder, entries, Resolver.StartOpKernelTypeStrArgsVector)
    Resolver.Start(builder)
    Resolver.AddOpKernelTypeStrArgs(builder, table)
    ours = Resolver.End(builder)

    version = builder.CreateString(session.OrtVersion())
    Session.Start(builder)
    Session.AddOrtVersion(builder, version)
    Session.AddModel(builder, len(data) - model.Pos)
    Session.AddKernelTypeStrResolver(builder, ours)
    builder.Finish(Session.End(builder), file_identifier=b"ORTM")
    return bytes(builder.Output())


def _operator(builder: Any, entry: Any) -> int:
    """A copy of one operator's types; the offset of what was written."""
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import ArgTypeAndIndex as Argument
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import KernelTypeStrArgsEntry as Type
    from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
        OpIdKernelTypeStrArgsEntry as Operator,
    )

    types = []
    found = [entry.KernelTypeStrArgs(i) for i in range(entry.KernelTypeStrArgsLength())]
    for item in sorted(found, key=lambda item: bytes(item.KernelTypeStr())):
        arguments = []
        for i in range(item.ArgsLength()):
            Argument.Start(builder)
            Argument.AddArgType(builder, item.Args(i).ArgType())
            Argument.AddIndex(builder, item.Args(i).Index())
            arguments.append(Argument.End(builder))
        vector = _vector(builder, arguments, Type.StartArgsVector)
        name = builder.CreateString(item.KernelTypeStr())
        Type.Start(builder)
        Type.AddKernelTypeStr(builder, name)
        Type.AddArgs(builder, vector)
        types.append(Type.End(builder))
    vector = _vector(builder, types, Operator.StartKernelTypeStrArgsVector)
    name = builder.CreateString(entry.OpId())
    Operator.Start(builder)
    Operator.AddOpId(builder, name)
    Operator.AddKernelTypeStrArgs(builder, vector)
    return int(Operator.End(builder))


def _vector(builder: Any, offsets: list[int], start: Callable[[Any, int], Any]) -> int:
    start(builder, len(offsets))
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
