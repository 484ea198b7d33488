"""TensorRT by its own Python package: build an engine from ONNX and plan, run it. Nothing else is needed.

Written for TensorRT 8.6 (JetPack 6.0) to 11: what a version does not know is asked for first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgekit.errors import EngineError
from edgekit.runtimes._base import DTYPES, Array
from edgekit.runtimes._cuda import Cuda
from edgekit.runtimes._ports import Port, check_inputs
from edgekit.runtimes._trt_plan import Plan

_NAME = "tensorrt"
UNIT = "TensorRT"
"""In `coverage`: an engine holds the whole graph or does not exist."""


class TensorRtSession:
    """A deserialised engine with one execution context: inferences go one after the other.

    A second context would take its memory again, and the GPU serves one at a time anyway.
    """

    thread_safe = True  # a lock sees to it

    def __init__(self, trt: Any, engine: Any, plan: Plan, cuda: Cuda) -> None:
        self._trt, self._engine, self._plan, self._cuda = trt, engine, plan, cuda
        self._ports = tuple(Port(item.name, DTYPES[item.datatype], item.shape) for item in plan.inputs)
        self._lock = threading.Lock()
        self._stream = cuda.stream()
        self._buffers: dict[str, tuple[int, int]] = {}
        """Device memory by tensor: (address, bytes)."""
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"{_NAME}: no execution context: is the GPU's memory full?")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(_NAME, inputs, self._ports)
        return joined(self._one, inputs, self._plan)

    def coverage(self) -> dict[str, int]:
        """Layers of the engine, which TensorRT has fused: fewer than the graph's nodes."""
        return {} if self._engine is None else {UNIT: int(self._engine.num_layers)}

    def close(self) -> None:
        with self._lock:
            if self._engine is None:
                return
            self._engine = self._context = None
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._buffers.clear()
            self._cuda.close(self._stream)

    def _one(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        with self._lock:
            if self._engine is None:
                raise EngineError(f"{_NAME}: the session is closed")
            self._cuda.use()
            held = [self._give(port, inputs[port.name]) for port in self._ports]
            outputs = {item.name: self._room(item.name, DTYPES[item.datatype]) for item in self._plan.outputs}
            if not self._context.execute_async_v3(self._stream):
                raise EngineError(f"{_NAME}: the engine did not run")
            for name, array in outputs.items():
                self._cuda.to_host(array, self._buffers[name][0], self._stream)
            self._cuda.wait(self._stream)
            del held  # the copies to the device are done
            return outputs

    def _give(self, port: Port, array: Array) -> Array:
        """Put an input on the device; what is returned must live until the stream is done."""
        solid = np.ascontiguousarray(array)
        if not self._context.set_input_shape(port.name, tuple(solid.shape)):
            raise EngineError(f"{_NAME}: input {port.name!r}: the engine does not take shape {solid.shape}")
        self._cuda.to_device(self._address(port.name, solid.nbytes), solid, self._stream)
        return solid

    def _room(self, name: str, dtype: np.dtype[Any]) -> Array:
        shape = tuple(self._context.get_tensor_shape(name))
        if min(shape, default=1) < 0:
            raise EngineError(f"{_NAME}: the size of output {name!r} depends on the data")
        array = np.empty(shape, dtype)
        self._address(name, array.nbytes)
        return array

    def _address(self, name: str, size: int) -> int:
        """Device memory of at least `size` bytes, made known to the context."""
        address, have = self._buffers.get(name, (0, -1))
        if have < size:
            if have >= 0:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"{_NAME}: the engine has no tensor {name!r}")
        return address


def split(inputs: Mapping[str, Array], plan: Plan) -> list[dict[str, Array]]:
    """A batch in parts that the engine was built for. Raises EngineError when the rows differ."""
    if not plan.max_batch:
        return [dict(inputs)]
    open_inputs = [one.input for one in plan.ranges]
    rows = {len(inputs[name]) for name in open_inputs}
    if len(rows) > 1:
        raise EngineError(f"{_NAME}: the inputs have different numbers of rows: {sorted(rows)}")
    count, most = rows.pop(), plan.max_batch
    return [
        {name: array[i : i + most] if name in open_inputs else array for name, array in inputs.items()}
        for i in range(0, max(count, 1), most)
    ]


def joined(
    run: Callable[[Mapping[str, Array]], dict[str, Array]], inputs: Mapping[str, Array], plan: Plan
) -> dict[str, Array]:
    """The answers to all parts of a batch as one."""
    try:
        parts = split(inputs, plan)
    except (KeyError, TypeError, IndexError):
        parts = [dict(inputs)]  # the engine says better what is wrong with them
    answers = [run(part) for part in parts]
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def build(trt: Any, model: bytes, plan: Plan, timings: bytes) -> tuple[bytes, bytes]:
    """The serialised engine, and the timing cache for the next build. Takes seconds to minutes.

    Raises EngineError with the parser's or the builder's words.
    """
    logger = _Words.logger(trt)
    builder = trt.Builder(logger)
    flags = trt.NetworkDefinitionCreationFlag
    typed = plan.strongly_typed and hasattr(flags, "STRONGLY_TYPED")
    wanted = [name for name in ("EXPLICIT_BATCH", *["STRONGLY_TYPED"] * typed) if hasattr(flags, name)]
    network = builder.create_network(sum(1 << int(getattr(flags, name)) for name in wanted))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        found = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{_NAME}: the parser refuses the graph: {found[:400]}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_mib << 20)
    config.builder_optimization_level = plan.optimization_level
    for name, on in builder_flags(plan, typed=typed).items():
        if hasattr(trt.BuilderFlag, name):
            (config.set_flag if on else config.clear_flag)(getattr(trt.BuilderFlag, name))
    if plan.ranges:
        profile = builder.create_optimization_profile()
        for one in plan.ranges:
            profile.set_shape(one.input, one.minimum, one.optimum, one.maximum)
        config.add_optimization_profile(profile)
    if plan.timing_cache:
        config.set_timing_cache(config.create_timing_cache(timings), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{_NAME}: no engine was built: {logger.last or 'no reason is told'}")
    learnt = bytes(config.get_timing_cache().serialize()) if plan.timing_cache else b""
    return bytes(engine), learnt


def builder_flags(plan: Plan, *, typed: bool) -> dict[str, bool]:
    """TensorRT's BuilderFlag by name. A strongly typed network allows no precision flag."""
    return {
        "TF32": plan.tf32,
        "SPARSE_WEIGHTS": plan.sparse_weights,
        "VERSION_COMPATIBLE": plan.version_compatible,
        "FP16": plan.precision == "fp16" and not typed,
        "INT8": plan.precision == "int8" and not typed,
    }


def load(trt: Any, engine: bytes, plan: Plan, device: int) -> TensorRtSession:
    """Raises EngineError when this TensorRT or GPU does not take the engine."""
    cuda = Cuda(device)
    cuda.use()
    logger = _Words.logger(trt)
    made = trt.Runtime(logger).deserialize_cuda_engine(engine)
    if made is None:
        raise EngineError(f"{_NAME}: the engine cannot be loaded: {logger.last or 'no reason is told'}")
    return TensorRtSession(trt, made, plan, cuda)


class _Words:
    """TensorRT tells what went wrong to a logger only; this one remembers it."""

    @staticmethod
    def logger(trt: Any) -> Any:
        class Logger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.last = ""

            def log(self, severity: Any, message: str) -> None:
                if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                    self.last = message

        return Logger()
