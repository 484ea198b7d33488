"""ONNX Runtime: fp32 as it is, int8 with weights only known (dynamic) or calibrated (static QDQ).

Quantization of a weight w: q = round(w / scale) with scale = max|w| / 127 per output channel;
activations: scale and zero point from the calibrated range (Jacob et al. 2018, arXiv:1712.05877).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._base import Backend, Calibration, Recipe, SourceModel, Value, versions
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target

_NAME = "onnxruntime"
_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}


class Engine:
    """The onnxruntime and onnx packages."""

    runtime = _NAME

    def tools(self) -> dict[str, str]:
        return versions(_NAME, ("onnxruntime", "onnx"))

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        runtime_options = dict(target.options)
        if precision == "fp32":
            yield Recipe(_NAME, precision, {}, runtime_options)
        elif precision == "int8-dynamic":
            yield Recipe(_NAME, precision, {"reduce_range": target.reduce_range}, runtime_options)
        elif precision == "int8":
            options: dict[str, Value] = {
                "activation": target.activation,
                "reduce_range": target.reduce_range,
                "method": policy.method,
            }
            yield Recipe(_NAME, precision, options, runtime_options, needs_calibration=True)

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        if recipe.precision == "fp32":
            return {"model.onnx": model.onnx}
        with _workspace(model) as folder, _plain_errors(recipe):
            make = _dynamic if recipe.precision == "int8-dynamic" else _static
            make(folder, recipe, calibration)
            return {"model.onnx": (folder / "out.onnx").read_bytes()}


@contextmanager
def _workspace(model: SourceModel) -> Iterator[Path]:
    """The quantizer reads and writes files; they live as long as one build."""
    with tempfile.TemporaryDirectory(prefix="edgekit-ort-") as name:
        folder = Path(name)
        (folder / "in.onnx").write_bytes(model.onnx)
        yield folder


@contextmanager
def _plain_errors(recipe: Recipe) -> Iterator[None]:
    try:
        yield
    except EngineError:
        raise
    except Exception as exc:  # the quantizer raises whatever its parts raise
        raise EngineError(f"{recipe.name}: the quantizer failed: {type(exc).__name__}: {exc}") from None


def _static(folder: Path, recipe: Recipe, calibration: Calibration) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        """One row at a time: models may have a fixed batch of 1."""

        def __init__(self) -> None:
            self.rows = _rows(calibration)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    _quiet()
    quant_pre_process(str(folder / "in.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        str(folder / "prepared.onnx"),
        str(folder / "out.onnx"),
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=bool(recipe.options["reduce_range"]),
        activation_type=QuantType.QUInt8 if recipe.options["activation"] == "u8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[_METHODS[str(recipe.options["method"])]],
    )


def _dynamic(folder: Path, recipe: Recipe, _: Calibration) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _quiet()
    quantize_dynamic(
        str(folder / "in.onnx"),
        str(folder / "out.onnx"),
        per_channel=True,
        reduce_range=bool(recipe.options["reduce_range"]),
        weight_type=QuantType.QInt8,
    )


def _rows(calibration: Calibration) -> Iterator[dict[str, Any]]:
    count = len(next(iter(calibration.values())))
    for i in range(count):
        yield {name: np.ascontiguousarray(array[i : i + 1]) for name, array in calibration.items()}


def _quiet() -> None:
    """The quantizer advises through the root logger; what matters comes back as an error."""
    logging.getLogger().addFilter(_is_not_quantizer)


def _is_not_quantizer(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname


BACKEND: Backend = Engine()
