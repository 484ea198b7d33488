"""The quantizer libraries called as their manuals say: what a build's time is held against.

    python by_hand.py ENGINE PRECISION OPTIONS MODEL.onnx ROWS.npz OUT

OPTIONS: the recipe's, as JSON, so that both ways do the same work. ROWS: inputs by name, (rows, ...). Runs in
edgekit's own environment, and for litert in that of its tools. Nothing here imports edgekit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def onnxruntime(
    precision: str, options: dict[str, Any], model: Path, rows: dict[str, Any], out: Path
) -> None:
    import onnx

    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), out)
    elif precision == "int8-dynamic":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        narrow = bool(options["reduce_range"])
        quantize_dynamic(model, out, per_channel=True, reduce_range=narrow, weight_type=QuantType.QInt8)
    elif precision.endswith("-weights"):
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        bits = 4 if precision.startswith("int4") else 8
        quantizer = MatMulNBitsQuantizer(onnx.load(model), bits=bits, block_size=32, is_symmetric=True)
        quantizer.process()
        quantizer.model.save_model_to_file(str(out))
    else:
        _static(options, model, rows, out)


def _static(options: dict[str, Any], model: Path, rows: dict[str, Any], out: Path) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            count = len(next(iter(rows.values())))
            self.rows = iter([{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)])

        def get_next(self) -> Any:
            return next(self.rows, None)

    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(str(model), str(prepared), skip_symbolic_shape=True)
    method = options.get("method", "minmax")
    products = options.get("only") == "products"
    quantize_static(
        str(prepared),
        str(out),
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=bool(options["reduce_range"]),
        activation_type=QuantType.QUInt8 if options["activation"] == "u8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method={
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }.get(method, CalibrationMethod.MinMax),
        op_types_to_quantize=["MatMul", "Gemm", "Gather"] if products else None,
        extra_options={
            "CalibMovingAverage": method == "average",
            **({"MatMulConstBOnly": True} if products else {}),
        },
    )


def openvino(precision: str, options: dict[str, Any], model: Path, rows: dict[str, Any], out: Path) -> None:
    import openvino as library

    graph = library.Core().read_model(model)
    if precision != "fp16":
        import nncf  # slow, and fp16 needs none of it
    if precision == "int8":
        count = len(next(iter(rows.values())))
        feeds = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(count)]
        fix = nncf.OverflowFix.ENABLE if options["reduce_range"] else nncf.OverflowFix.DISABLE
        advanced: dict[str, Any] = {"overflow_fix": fix}
        if options.get("transformer") == "plain":
            smooth = nncf.quantization.advanced_parameters.AdvancedSmoothQuantParameters
            advanced["smooth_quant_alphas"] = smooth(convolution=-1, matmul=-1)
        graph = nncf.quantize(
            graph,
            nncf.Dataset(feeds),
            preset=nncf.QuantizationPreset(options["preset"]),
            model_type=nncf.ModelType.TRANSFORMER if "transformer" in options else None,
            subset_size=count,
            fast_bias_correction=options.get("bias") != "accurate",
            advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
        )
    elif precision == "int8-weights":
        graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
    elif precision == "int4-weights":
        mode = nncf.CompressWeightsMode.INT4_SYM
        graph = nncf.compress_weights(graph, mode=mode, ratio=1.0, group_size=64, all_layers=True)
    library.save_model(graph, out.with_suffix(".xml"), compress_to_fp16=precision == "fp16")


def litert(precision: str, options: dict[str, Any], model: Path, rows: dict[str, Any], out: Path) -> None:
    import onnx
    import onnx2tf
    import onnxslim
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    # A batch of one, as the engine needs it; the model's own names are those of the rows.
    graph = onnx.load(model)
    names = [value.name for value in graph.graph.input]
    for value in graph.graph.input:
        value.type.tensor_type.shape.dim[0].dim_value = 1
    work = out.with_suffix(".work")
    # onnx2tf calls onnxsim where it is installed; without any, int8 of the keyword spotter answers wrongly.
    onnx2tf.convert(
        onnx_graph=onnxslim.slim(onnx.shape_inference.infer_shapes(graph)),
        output_folder_path=str(work),
        non_verbose=True,
        verbosity="error",
    )
    plain = next(work.glob("*_float32.tflite")).read_bytes()
    if precision == "fp32":
        out.write_bytes(plain)
        return
    kinds = qtyping.TFLOperationName
    made = quantizer.Quantizer(bytearray(plain))
    if precision in ("int8", "int16x8"):
        products = options.get("only") == "products"
        for kind in (kinds.FULLY_CONNECTED, kinds.BATCH_MATMUL) if products else (kinds.ALL_SUPPORTED,):
            made.add_static_config(".*", kind, 16 if precision == "int16x8" else 8, 8)
        for end in (kinds.INPUT, kinds.OUTPUT):
            made.update_quantization_recipe(".*", end, None, AlgorithmName.NO_QUANTIZE)
    elif precision == "int8-dynamic":
        made.add_dynamic_config(".*", kinds.ALL_SUPPORTED, 8)
    elif precision == "fp16":
        casting = AlgorithmName.FLOAT_CASTING
        made.add_weight_only_config(".*", kinds.ALL_SUPPORTED, 16, algorithm_key=casting)
    else:
        made.add_weight_only_config(".*", kinds.ALL_SUPPORTED, 4 if precision == "int4-weights" else 8)
    statistics = None
    if made.need_calibration:
        statistics = made.calibrate({"serving_default": _feeds(plain, names, rows)}, num_threads=1)
    out.write_bytes(bytes(made.quantize(statistics, enable_progress_report=False).quantized_model))


def _feeds(plain: bytes, names: list[str], rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as the signature names its inputs: in the same order as the model's, whatever they are called."""
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_content=plain).get_signature_runner("serving_default")
    details = signature.get_input_details()
    own = {_plain(name): name for name in names}
    count = len(rows[names[0]])
    feeds = []
    for i in range(count):
        feed = {}
        for place, (name, about) in enumerate(details.items()):
            row = rows[own.get(_plain(name), names[place])][i : i + 1]
            if tuple(row.shape) != tuple(about["shape"]):
                row = np.moveaxis(row, 1, -1)
            feed[name] = np.ascontiguousarray(row)
        feeds.append(feed)
    return feeds


def _plain(name: str) -> str:
    return "".join(letter for letter in name if letter.isalnum())


def main() -> None:
    engine, precision, options, model, rows, out = sys.argv[1:]
    with np.load(rows) as file:
        arrays = {name: file[name] for name in file.files}
    call = {"onnxruntime": onnxruntime, "openvino": openvino, "litert": litert}[engine]
    call(precision, json.loads(options), Path(model), arrays, Path(out))


if __name__ == "__main__":
    main()
