"""The JSON documents about server and model, in Triton's shape. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edgekit.bundle.model import Affine, TensorSpec, VariantConfig
from edgekit_agent.metrics import Counters, Timing

EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "generate",
    "logging",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "system_shared_memory",
    "trace",
)
_ENDINGS = {"onnxruntime": "onnx"}
_OUTPUT = {"label_filename": "", "is_shape_tensor": False, "is_non_linear_format_io": False}
_INPUT = {
    "format": "FORMAT_NONE",
    "is_shape_tensor": False,
    "allow_ragged_batch": False,
    "optional": False,
    "is_non_linear_format_io": False,
}


def server(version: str) -> dict[str, Any]:
    return {"name": "edgekit", "version": version, "extensions": list(EXTENSIONS)}


def metadata(name: str, version: str, config: VariantConfig) -> dict[str, Any]:
    """Inputs carry the engine's data type; `parameters` tell the stored type that is taken as well."""
    affine = {step.input: step for step in config.preprocessing.affine}
    pictures = {picture.input: picture for picture in config.preprocessing.image}
    inputs = []
    for spec in config.inputs:
        entry = _tensor(spec)
        step = affine.get(spec.name)
        if step is not None:
            entry["parameters"] = {"stored_datatype": step.datatype, **_affine(step)}
        if spec.name in pictures:
            picture = pictures[spec.name]
            how = {"layout": picture.layout, "color": picture.color, "resize": picture.resize}
            entry.setdefault("parameters", {}).update(how)
        inputs.append(entry)
    if config.pipeline:  # what may be sent in place of tensors
        inputs[0].setdefault("parameters", {})["content_types"] = list(config.pipeline.content_types)
    return {
        "name": name,
        "versions": [version],
        "platform": _platform(config),
        "inputs": inputs,
        "outputs": [_tensor(spec) for spec in config.outputs],
    }


def _affine(step: Affine) -> dict[str, Any]:
    """real = (stored - offset) * scale; lists run over the channels."""
    if not step.axis:
        return {"scale": step.scale, "offset": step.offset}
    return {"scale": list(step.scales), "offset": list(step.offsets), "axis": step.axis}


def configuration(name: str, version: str, config: VariantConfig, max_batch: int) -> dict[str, Any]:
    """Triton's model configuration. A batch dimension that is in every input is not part of `dims`."""
    batched = is_batched(config)
    labels = {"labels": list(config.labels)} if config.labels else {}
    group = {"name": f"{name}_0", "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": []}
    return {
        "name": name,
        "platform": _platform(config),
        "backend": config.engine.name,
        "runtime": "",
        "version_policy": {"specific": {"versions": [version]}},
        "max_batch_size": max_batch if batched else 0,
        "input": [_dims(spec, batched) | _INPUT for spec in config.inputs],
        "output": [_dims(spec, batched) | _OUTPUT for spec in config.outputs],
        "batch_input": [],
        "batch_output": [],
        "instance_group": [group | {"profile": [], "passive": False, "host_policy": ""}],
        "default_model_filename": config.files[0] if config.files else "",
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {
            "variant": {"string_value": config.variant},
            "precision": {"string_value": config.precision},
            "profile": {"string_value": config.profile},
        },
        "model_warmup": [],
        **labels,
    }


def index(
    served: Sequence[tuple[str, str]], before: Iterable[tuple[str, str]], *, ready: bool = False
) -> list[dict[str, str]]:
    """Triton's repository index. `served`, `before`: (name, version) of releases; `ready`: `served` only."""
    entries = [{"name": name, "version": version, "state": "READY"} for name, version in served]
    for name, version in () if ready else before:
        if (name, version) not in served:
            entries.append({"name": name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"})
    return entries


def statistics(counted: Iterable[Counters]) -> dict[str, Any]:
    """Triton's statistics extension: counts and nanoseconds since the serving process started."""
    return {"model_stats": [_statistics(counters) for counters in counted]}


def _statistics(counters: Counters) -> dict[str, Any]:
    return {
        "name": counters.name,
        "version": counters.version,
        "last_inference": counters.last_ms,
        "inference_count": counters.inferences,
        "execution_count": sum(runs.infer.count for runs in counters.runs.values()),
        "inference_stats": {
            "success": _timing(counters.success),
            "fail": _timing(counters.fail),
            "queue": _timing(counters.queue),
            "compute_input": _timing(counters.compute_input),
            "compute_infer": _timing(counters.compute_infer),
            "compute_output": _timing(counters.compute_output),
            "cache_hit": _timing(Timing()),
            "cache_miss": _timing(Timing()),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _timing(runs.input),
                "compute_infer": _timing(runs.infer),
                "compute_output": _timing(runs.output),
            }
            for size, runs in sorted(counters.runs.items())
        ],
        "memory_usage": [],
    }


def is_batched(config: VariantConfig) -> bool:
    """Whether every input has a free first dimension."""
    return bool(config.inputs) and all(spec.shape[:1] == (-1,) for spec in config.inputs)


def _platform(config: VariantConfig) -> str:
    return f"{config.engine.name}_{_ENDINGS.get(config.engine.name, 'model')}"


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _dims(spec: TensorSpec, batched: bool) -> dict[str, Any]:
    dims = list(spec.shape[1:] if batched and spec.shape[:1] == (-1,) else spec.shape)
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": dims}


def _timing(timing: Timing) -> dict[str, int]:
    return {"count": timing.count, "ns": timing.ns}
