"""Memory and latency on the device, told from the graph before anything is built. Formulas, not measurements:
reported beside what was measured, and used to refuse early what cannot fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.backends import SourceModel
from edgekit.profile import Hardware, Profile

MIB = 1024 * 1024

ENGINE_MIB = {"onnxruntime": 76.0, "openvino": 114.0, "reference": 36.0, "litert": 52.0, "tvm": 48.0}
"""A process that serves a tiny model: interpreter, NumPy, agent and engine. Measured as VmHWM of the
builder's measuring process on x86_64 (onnxruntime 1.32, openvino 2026.4, ai-edge-litert 2.3)."""
UNKNOWN_ENGINE_MIB = 128.0
COPIES = 3.0
"""Resident bytes per byte of a model's files: a 16.9 MB network added 48.8 MiB to an onnxruntime process
(the file, the weights, the weights packed for the CPU's kernels)."""

BYTES_PER_WEIGHT = {"fp32": 4.0, "fp16": 2.0, "int4-weights": 0.6}
"""Others: 1. Four bits come with a scale per 32 weights."""
MACS_PER_CYCLE = (("avx512f", 32), ("avx2", 16), ("asimddp", 8), ("asimd", 4), ("neon", 2))
"""fp32 multiply-accumulates of one core and cycle: two 512- or 256-bit FMA units (Intel's and AMD's
optimisation manuals), two 128-bit pipes of the A76 class, about half of that on A53 and A72."""
INT8_GAIN = (("avx512_vnni", 4), ("avx_vnni", 4), ("i8mm", 8), ("asimddp", 4), ("avx2", 2), ("asimd", 2))
EFFICIENCY = 0.5
"""Of the peak at the nominal clock. onnxruntime, fp32, one thread on an AMD EPYC (AVX2, 2.45 GHz nominal:
peak 39 GMAC/s) reached 28 (keyword spotter), 40 (resnet20) and 27 GMAC/s (FastestDet); small cores have less
cache."""
NODE_CYCLES = 3000
"""Calling and dispatching one operator: 12 nodes without arithmetic to speak of took 16 us there."""
ASSUMED_GHZ = 1.5


@dataclass(frozen=True)
class Graph:
    """What a graph costs at batch 1, whatever runs it."""

    weights: int
    """Number of weight elements."""
    arena_bytes: int
    """Most bytes of activations alive at once, in fp32, in the graph's own order."""
    macs: int
    """Multiply-accumulates of convolutions and matrix products."""
    nodes: int


@dataclass(frozen=True)
class Forecast:
    memory_mib: float
    latency_ms: float
    """Within a factor of about three; for orders of magnitude, not for promises."""


def memory_mib(engine: str, files: Mapping[str, bytes], arena_bytes: int = 0) -> float:
    """Peak resident MiB at batch 1 of a built variant. Equal variants forecast the same."""
    size = sum(map(len, files.values()))
    return round(ENGINE_MIB.get(engine, UNKNOWN_ENGINE_MIB) + (COPIES * size + arena_bytes) / MIB, 1)


def forecast(graph: Graph, engine: str, precision: str, hardware: Hardware) -> Forecast:
    """Before the build, for one engine and precision on the profile's hardware, one thread."""
    size = graph.weights * BYTES_PER_WEIGHT.get(precision, 1.0)
    memory = ENGINE_MIB.get(engine, UNKNOWN_ENGINE_MIB) + (COPIES * size + graph.arena_bytes) / MIB
    features = {name for item in hardware.isa for name in item.split("|")}
    per_cycle: float = next((macs for name, macs in MACS_PER_CYCLE if name in features), 2)
    if precision in ("int8", "int8-dynamic"):
        per_cycle *= next((gain for name, gain in INT8_GAIN if name in features), 1)
    hertz = (hardware.clock_ghz or ASSUMED_GHZ) * 1e9
    seconds = graph.macs / (per_cycle * EFFICIENCY * hertz) + graph.nodes * NODE_CYCLES / hertz
    return Forecast(round(memory, 1), round(seconds * 1e3, 3))


def too_big(profile: Profile, graph: Graph, engine: str, precision: str) -> str:
    """Why this cannot fit on the device, with the figures; empty when it may."""
    seen = forecast(graph, engine, precision, profile.hardware)
    limit = min(profile.budget.peak_rss_mib or math.inf, profile.hardware.ram_mib)
    if seen.memory_mib > limit:
        return f"needs about {seen.memory_mib:.0f} MiB of memory, {profile.name} allows {limit:.0f}"
    size_mib = graph.weights * BYTES_PER_WEIGHT.get(precision, 1.0) / MIB
    room = min(profile.budget.bundle_mib or math.inf, profile.hardware.storage_mib)
    # Weights alone; files are somewhat larger, and compress a little.
    if size_mib * 0.9 > room:
        return f"is about {size_mib:.1f} MiB large, {profile.name} allows {room:g}"
    return ""


def graph_of(model: SourceModel) -> Graph:
    """Count weights, activations and arithmetic of the cleaned ONNX."""
    graph, dims = _shaped(model)
    weights = {tensor.name: math.prod(tensor.dims) for tensor in graph.initializer}
    return Graph(
        weights=sum(weights.values()),
        arena_bytes=4 * _most_alive(graph, dims, set(weights)),
        macs=sum(_macs(node, dims) for node in graph.node),
        nodes=len(graph.node),
    )


def macs_of(model: SourceModel) -> dict[str, int]:
    """Multiply-accumulates by node name."""
    graph, dims = _shaped(model)
    return {node.name: _macs(node, dims) for node in graph.node}


def _shaped(model: SourceModel) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """The graph, and the shape of each tensor; open sizes are 1."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(model.onnx)).graph
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.name not in dims:
            dims[value.name] = tuple(d.dim_value or 1 for d in value.type.tensor_type.shape.dim)
    return graph, dims


def _most_alive(graph: Any, dims: Mapping[str, tuple[int, ...]], weights: set[str]) -> int:
    """Most elements alive at once: a tensor lives from the node that makes it to the last that reads it."""
    last = {name: i for i, node in enumerate(graph.node) for name in node.input}
    outputs = {value.name for value in graph.output}
    alive = {v.name: math.prod(dims[v.name]) for v in graph.input if v.name not in weights}
    most = sum(alive.values())
    for i, node in enumerate(graph.node):
        alive |= {name: math.prod(dims.get(name, ())) for name in node.output if name}
        most = max(most, sum(alive.values()))
        ended = [name for name in alive if last.get(name, -1) <= i and name not in outputs]
        for name in ended:
            del alive[name]
    return most


def _macs(node: Any, dims: Mapping[str, tuple[int, ...]]) -> int:
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    left, right = (dims.get(name, ()) for name in node.input[:2])
    out = math.prod(dims.get(node.output[0], ()))
    if node.op_type == "Conv":
        return out * math.prod(right[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(left) * math.prod(right[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return out * (left[0] if transposed else left[-1]) if left else 0
    # Without a known shape of its left side a product takes every weight once.
    return max(out * (left[-1] if left else 0), math.prod(right) if right else 0)
