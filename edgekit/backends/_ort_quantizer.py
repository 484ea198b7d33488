"""ONNX Runtime's quantizer tools as pure functions of bytes, for every backend that ships ONNX."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.backends._base import Calibration
from edgekit.backends._silence import silenced

METHODS = {"minmax": "MinMax", "average": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
"""How ranges of activations come from the rows' extremes: a recipe's "method" to onnxruntime's
CalibrationMethod. "average": the mean of each row's, so that one odd row does not make every step coarser."""

_NO_WIDER = "QDQDisableWeightAdjustForInt32Bias"
BLOCK = 32
"""Weights that share a scale in MatMulNBits."""


def half(onnx_bytes: bytes) -> bytes:
    """Weights and arithmetic in fp16, inputs and outputs as they were."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    quiet()
    made = convert_float_to_float16(onnx.ModelProto.FromString(onnx_bytes), keep_io_types=True)
    return bytes(made.SerializeToString(deterministic=True))


def calibrated(
    onnx_bytes: bytes,
    calibration: Calibration,
    *,
    method: str,
    activation: str = "s8",
    keep: list[str],
    only: list[str] | None = None,
    reduce_range: bool = False,
    settings: dict[str, Any] | None = None,
) -> bytes:
    """Static QDQ int8, one weight scale per output channel.

    `keep`: nodes that stay in floating point. `only`: operators to quantize (default: all that can be).
    `settings`: the quantizer's extra options.
    """
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

    def make(given: Path, made: Path) -> None:
        prepared = given.with_name("prepared.onnx")
        quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(made),
            Rows(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8 if activation == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[METHODS[method]],
            op_types_to_quantize=only,
            nodes_to_exclude=keep,
            extra_options={"CalibMovingAverage": method == "average", **(settings or {})},
        )

    try:
        return _through_files(onnx_bytes, make)
    except ValueError as exc:
        # onnxruntime 1.32 widens too small scales of weights for their bias and, where they are per channel
        # of a Gemm, takes an array for a number; without that step such a model quantizes.
        if "truth value" not in str(exc) or _NO_WIDER in (settings or {}):
            raise
    return calibrated(
        onnx_bytes,
        calibration,
        method=method,
        activation=activation,
        keep=keep,
        only=only,
        reduce_range=reduce_range,
        settings={**(settings or {}), _NO_WIDER: True},
    )


def dynamic(onnx_bytes: bytes, *, keep: list[str], reduce_range: bool) -> bytes:
    """int8 weights; activations are quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def make(given: Path, made: Path) -> None:
        quantize_dynamic(
            str(given),
            str(made),
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=keep,
        )

    return _through_files(onnx_bytes, make)


def in_blocks(onnx_bytes: bytes, bits: int, keep: list[str]) -> bytes:
    """Weights of matrix products in `bits`, one scale for every BLOCK of them, which MatMulNBits kernels read
    as they are: the one recipe whose weights stay small in memory too."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quiet()
    proto = onnx.ModelProto.FromString(onnx_bytes)
    quantizer = MatMulNBitsQuantizer(
        proto, bits=bits, block_size=BLOCK, is_symmetric=True, nodes_to_exclude=keep
    )
    quantizer.process()
    return bytes(quantizer.model.model.SerializeToString(deterministic=True))


def lean(onnx_bytes: bytes) -> bytes:
    """Without the shapes of inner tensors, which the quantizer leaves in and engines find out themselves."""
    import onnx

    proto = onnx.ModelProto.FromString(onnx_bytes)
    del proto.graph.value_info[:]
    return bytes(proto.SerializeToString(deterministic=True))


def quiet() -> None:
    """The quantizer advises through the root logger; what matters comes back as an error."""
    logging.getLogger().addFilter(_is_not_quantizer)


def _through_files(onnx_bytes: bytes, make: Callable[[Path, Path], None]) -> bytes:
    """The quantizer reads and writes files; they live as long as one build."""
    quiet()
    with tempfile.TemporaryDirectory(prefix="edgekit-ort-") as name:
        folder = Path(name)
        (folder / "in.onnx").write_bytes(onnx_bytes)
        with silenced():  # calibration by histograms prints what it does
            make(folder / "in.onnx", folder / "out.onnx")
        return lean((folder / "out.onnx").read_bytes())


def _rows(calibration: Calibration) -> Iterator[dict[str, Any]]:
    count = len(next(iter(calibration.values())))
    for i in range(count):
        yield {name: np.ascontiguousarray(array[i : i + 1]) for name, array in calibration.items()}


def _is_not_quantizer(record: logging.LogRecord) -> bool:
    return "onnxruntime" not in record.pathname
