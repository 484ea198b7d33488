"""Memory that a variant will need on the device, before it runs there."""

from __future__ import annotations

from collections.abc import Mapping

MIB = 1024 * 1024

ENGINE_MIB = {"onnxruntime": 76.0, "openvino": 114.0, "reference": 36.0}
"""A process that serves a tiny model: interpreter, NumPy, agent and engine. Measured as VmHWM of the
builder's measuring process on x86_64 (onnxruntime 1.32, openvino 2026.4)."""
UNKNOWN_ENGINE_MIB = 128.0
COPIES = 3.0
"""Resident bytes per byte of a model's files: a 16.9 MB network added 48.8 MiB to an onnxruntime process
(the file, the weights, the weights packed for the CPU's kernels)."""


def memory_mib(engine: str, files: Mapping[str, bytes]) -> float:
    """Peak resident MiB at batch 1. A formula, not a measurement: equal variants forecast the same."""
    size = sum(map(len, files.values()))
    return round(ENGINE_MIB.get(engine, UNKNOWN_ENGINE_MIB) + COPIES * size / MIB, 1)
