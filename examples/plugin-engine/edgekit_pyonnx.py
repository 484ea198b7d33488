"""An engine from outside edgekit's tree: ONNX's reference evaluator, slow and exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from edgekit.backends import Backend, Calibration, Recipe, SourceModel, versions
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import Array, Files, Options, Port, Runtime, check_inputs

NAME = "pyonnx"


class Session:
    """A loaded model. The evaluator keeps nothing between runs, so threads may share it."""

    thread_safe = True

    def __init__(self, evaluator: Any, ports: tuple[Port, ...]) -> None:
        self._evaluator, self._ports = evaluator, ports

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._evaluator is None:
            raise EngineError(f"{NAME}: the session is closed")
        check_inputs(NAME, inputs, self._ports)
        try:
            values = self._evaluator.run(None, dict(inputs))
        except Exception as exc:  # the evaluator raises whatever NumPy does
            raise EngineError(f"{NAME}: {type(exc).__name__}: {exc}") from None
        return dict(zip(self._evaluator.output_names, values, strict=True))

    def coverage(self) -> dict[str, int]:
        return {"numpy": len(self._evaluator.rt_nodes_)} if self._evaluator else {}

    def close(self) -> None:
        self._evaluator = None


class Engine:
    """The device side: version and load."""

    name = NAME

    def version(self) -> str:
        try:
            return metadata.version("onnx")
        except metadata.PackageNotFoundError:
            raise EngineMissing(f"{NAME}: onnx is not installed", "pip install onnx") from None

    def load(self, files: Files, options: Options) -> Session:
        self.version()
        if options:
            raise EngineError(f"{NAME}: unknown option {next(iter(options))!r}", "this engine has none")
        if set(files) != {"model.onnx"}:
            raise EngineError(f"{NAME}: expected model.onnx, got {', '.join(files) or 'nothing'}")
        import onnx
        from onnx.reference import ReferenceEvaluator

        try:
            model = onnx.load_model_from_string(bytes(files["model.onnx"]))
            onnx.checker.check_model(model)
            ports = tuple(_port(value) for value in model.graph.input)
            return Session(ReferenceEvaluator(model), ports)
        except Exception as exc:  # protobuf, the checker and the evaluator each have their own
            raise EngineError(f"{NAME}: not a model: {exc}") from None


class Builder:
    """The host side: which recipes, and their files."""

    runtime = NAME

    def tools(self) -> dict[str, str]:
        return versions(NAME, ("onnx",))

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        del policy  # nothing here is calibrated
        if precision == "fp32":
            yield Recipe(NAME, precision, runtime_options=dict(target.options))

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        del recipe, calibration  # there is only one way
        return {"model.onnx": model.onnx}


def _port(value: Any) -> Port:
    from onnx.helper import tensor_dtype_to_np_dtype

    tensor = value.type.tensor_type
    sizes = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return Port(value.name, tensor_dtype_to_np_dtype(tensor.elem_type), tuple(sizes))


RUNTIME: Runtime = Engine()
BACKEND: Backend = Builder()
