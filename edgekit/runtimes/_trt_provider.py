"""TensorRT through ONNX Runtime: its provider makes the engine, others take what TensorRT does not."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.errors import EngineError, EngineMissing
from edgekit.runtimes import _ort_session, _trt_engine
from edgekit.runtimes._base import DTYPES, Array, Session
from edgekit.runtimes._ort_session import OnnxSession
from edgekit.runtimes._trt_plan import Plan

log = logging.getLogger("edgekit.runtimes.tensorrt")

_NAME = "tensorrt"
PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
HINT = (
    "on a Jetson: `sudo apt install nvidia-jetpack`, and an onnxruntime with the TensorRT provider for this "
    "Python; on x86: TensorRT from NVIDIA, and pip install onnxruntime-gpu in place of onnxruntime"
)


class _Parts:
    """A session whose batches are cut to what the engine was built for."""

    def __init__(self, session: OnnxSession, plan: Plan) -> None:
        self._session, self._plan = session, plan
        self.thread_safe = session.thread_safe
        self.coverage, self.close = session.coverage, session.close

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return _trt_engine.joined(self._session.run, inputs, self._plan)


def offered() -> bool:
    """Whether the installed onnxruntime was built with the provider; not whether that works here."""
    try:
        return PROVIDERS["tensorrt"] in _ort_session.library(_NAME, HINT).get_available_providers()
    except EngineMissing:
        return False


def provider_options(plan: Plan, device: int, folder: Path | None, timings: Path | None) -> dict[str, str]:
    """The plan in the TensorRT provider's words; `folder` and `timings` None: nothing is kept."""
    options = {
        "device_id": str(device),
        "trt_max_workspace_size": str(plan.workspace_mib << 20),
        "trt_builder_optimization_level": str(plan.optimization_level),
        "trt_fp16_enable": str(plan.precision == "fp16"),
        "trt_int8_enable": str(plan.precision == "int8"),
        "trt_sparsity_enable": str(plan.sparse_weights),
        "trt_engine_cache_enable": str(folder is not None),
        "trt_timing_cache_enable": str(plan.timing_cache and timings is not None),
    }
    if folder is not None:
        options["trt_engine_cache_path"] = str(folder)
    if plan.timing_cache and timings is not None:
        options["trt_timing_cache_path"] = str(timings)
    for name in ("minimum", "optimum", "maximum") if plan.ranges and spellable(plan) else ():
        shapes = [f"{one.input}:{'x'.join(map(str, getattr(one, name)))}" for one in plan.ranges]
        options[f"trt_profile_{name[:3]}_shapes"] = ",".join(shapes)
    return options


def spellable(plan: Plan) -> bool:
    """Whether the provider can be told the ranges: it cuts "name:1x3,name:..." at each colon and comma."""
    return not any(set(":,") & set(one.input) for one in plan.ranges)


def providers(
    chain: tuple[str, ...], plan: Plan, device: int, folder: Path | None, timings: Path | None
) -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's provider list for a chain such as ("tensorrt", "cuda", "cpu")."""
    options = {
        "tensorrt": provider_options(plan, device, folder, timings) if "tensorrt" in chain else {},
        "cuda": {"device_id": str(device), "use_tf32": str(int(plan.tf32))},
        "cpu": {},
    }
    return [(PROVIDERS[unit], options[unit]) for unit in chain]


def load(
    model: bytes,
    plan: Plan,
    chain: tuple[str, ...],
    device: int,
    folder: Path | None = None,
    timings: Path | None = None,
) -> Session:
    """A session on the first unit of `chain`, nodes it does not take on the others.

    Raises EngineError when onnxruntime does not offer the first, or does not use it.
    """
    library = _ort_session.library(_NAME, HINT)
    missing = [unit for unit in chain if PROVIDERS[unit] not in library.get_available_providers()]
    if chain[0] in missing:
        raise EngineError(f"onnxruntime {library.__version__} does not offer {PROVIDERS[chain[0]]}")
    for unit in missing:
        log.info("%s: onnxruntime does not offer %s, a wanted fallback", _NAME, PROVIDERS[unit])
    chain = tuple(unit for unit in chain if unit not in missing)
    settings = library.SessionOptions()
    settings.log_severity_level = _ort_session.QUIET
    settings.add_session_config_entry(_ort_session.RECORD, "1")
    settings.add_session_config_entry(_ort_session.DISABLED, _ort_session.MEDDLERS)
    if "cpu" not in chain:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    listed = providers(chain, plan, device, folder, timings)
    try:
        # enable_fallback: else a provider that fails to start is replaced by the CPU.
        session = library.InferenceSession(model, settings, providers=listed, enable_fallback=0)
    except Exception as exc:  # the library raises a dozen unrelated types
        raise EngineError(f"{PROVIDERS[chain[0]]}: {_ort_session.words(exc)}") from None
    used = session.get_providers()
    if used[0] != PROVIDERS[chain[0]]:
        raise EngineError(f"onnxruntime left {PROVIDERS[chain[0]]} out, it would run on {', '.join(used)}")
    made = _Parts(OnnxSession(_NAME, session), plan)
    if chain[0] == "tensorrt" and not spellable(plan):
        _teach(made, plan)
    return made


def _teach(session: Session, plan: Plan) -> None:
    """Show the provider the smallest and the largest batch: its engine then covers all between."""
    ranges = {one.input: one for one in plan.ranges}
    for size in ("minimum", "maximum"):
        shapes = {
            item.name: getattr(ranges[item.name], size) if item.name in ranges else item.shape
            for item in plan.inputs
        }
        types = {item.name: DTYPES[item.datatype] for item in plan.inputs}
        session.run({name: np.zeros(shape, types[name]) for name, shape in shapes.items()})
