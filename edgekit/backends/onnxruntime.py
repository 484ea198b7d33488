"""ONNX Runtime: fp32, fp16, int8 calibrated (static QDQ) or at run time (dynamic), compressed weights.

Quantization of a weight w: q = round(w / scale) with scale = max|w| / 127 per output channel;
activations: scale and zero point from the calibrated range (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from edgekit.backends import _ort_quantizer
from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value, versions
from edgekit.backends._graph import facts, kept
from edgekit.backends._ort_format import to_ort
from edgekit.backends._ort_weights import compressed, with_small_tables
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target

_NAME = "onnxruntime"
_NO_QDQ = "session.disable_quant_qdq"


class Engine:
    """The onnxruntime and onnx packages."""

    runtime = _NAME

    def tools(self) -> dict[str, str]:
        return versions(_NAME, ("onnxruntime", "onnx", "onnx-ir"))

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        for options in _options(precision, target, policy):
            extra = {"format": target.format} if target.format != "onnx" else {}
            # Without this the engine would unpack compressed weights again in every run.
            unpack: dict[str, Value] = {_NO_QDQ: "1"} if "by" in options else {}
            yield Recipe(
                _NAME,
                precision,
                {**options, **extra},
                {**target.options, **unpack},
                needs_calibration=precision == "int8",
            )

    def worth(self, model: SourceModel, recipe: Recipe) -> str:
        found = facts(model)
        if recipe.precision == "int8-dynamic" and not found.mostly_products:
            return "most weights are convolutions, which have no fast dynamic int8 kernel (0.1 x fp32)"
        if recipe.options.get("by") == "nbits" and not found.product_weights:
            return "no matrix product has constant weights"
        only_products = recipe.options.get("only") == "products"
        if only_products and not found.mostly_products:
            return "most weights are convolutions, and this recipe leaves them in floating point"
        if recipe.precision == "int8" and found.attention and found.mostly_products and not only_products:
            return "the graph has attention, which calibrated int8 ruins as a whole (MiniLM: cosine 0.34)"
        return ""

    def layers(self, model: SourceModel) -> list[str]:
        return list(facts(model).layers)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        with _plain_errors(recipe):
            made = _BUILDERS[recipe.precision](model, recipe, calibration)
            return to_ort(made) if recipe.options.get("format") == "ort" else {"model.onnx": made}


def _options(precision: str, target: Target, policy: CalibrationPolicy) -> Iterator[dict[str, Value]]:
    """For the quantizer, best guess first."""
    plain: dict[str, Value] = {"reduce_range": target.reduce_range}
    if precision in ("fp32", "fp16"):
        yield {}
    elif precision == "int8-dynamic":
        yield plain
    elif precision == "int8":
        methods = dict.fromkeys((policy.method, "average", "percentile", "minmax"))
        for method in methods:
            yield {**plain, "activation": target.activation, "method": method}
            if method == policy.method and target.activation == "u8" and not target.reduce_range:
                # For x86 without VNNI, where 8-bit weights saturate (`host.saturates`) and 7-bit ones cannot.
                yield {**plain, "activation": "u8", "method": method, "reduce_range": True}
        # What is left of a transformer when softmax, normalisation and sums stay in floating point.
        yield {**plain, "activation": target.activation, "method": policy.method, "only": "products"}
    elif precision in ("int8-weights", "int4-weights"):
        yield {"by": "dq"}
        yield {"by": "nbits"}


def _fp32(model: SourceModel, _recipe: Recipe, _calibration: Calibration) -> bytes:
    return model.onnx


def _fp16(model: SourceModel, _recipe: Recipe, _calibration: Calibration) -> bytes:
    return _ort_quantizer.half(model.onnx)


def _weights(model: SourceModel, recipe: Recipe, _calibration: Calibration) -> bytes:
    bits = 4 if recipe.precision == "int4-weights" else 8
    if recipe.options["by"] == "dq":
        return compressed(model, bits, kept(recipe.options))
    return _ort_quantizer.in_blocks(with_small_tables(model.onnx), bits, kept(recipe.options))


@contextmanager
def _plain_errors(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as exc:  # the quantizer raises whatever its parts raise
        raise EngineError(f"{recipe.name}: cannot build: {type(exc).__name__}: {exc}") from None


def _int8(model: SourceModel, recipe: Recipe, calibration: Calibration) -> bytes:
    options = recipe.options
    products = options.get("only") == "products"
    return _ort_quantizer.calibrated(
        model.onnx,
        calibration,
        method=str(options["method"]),
        activation=str(options["activation"]),
        keep=kept(options),
        only=["MatMul", "Gemm", "Gather"] if products else None,
        reduce_range=bool(options["reduce_range"]),
        settings={"MatMulConstBOnly": True} if products else None,
    )


def _int8_dynamic(model: SourceModel, recipe: Recipe, _calibration: Calibration) -> bytes:
    reduce_range = bool(recipe.options["reduce_range"])
    return _ort_quantizer.dynamic(model.onnx, keep=kept(recipe.options), reduce_range=reduce_range)


_BUILDERS = {
    "fp32": _fp32,
    "fp16": _fp16,
    "int8": _int8,
    "int8-dynamic": _int8_dynamic,
    "int8-weights": _weights,
    "int4-weights": _weights,
}
BACKEND: Backend = Engine()
