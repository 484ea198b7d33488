from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from edgekit import host
from edgekit.errors import EngineError
from edgekit.runtimes import Array
from edgekit.runtimes._preprocess import apply
from edgekit.runtimes.onnxruntime import RUNTIME
from tests.unit.runtimes import kws
from tests.unit.runtimes.threads import runs_beside_python

RNG = np.random.default_rng(5)


def proto(nodes: list[onnx.NodeProto], x: onnx.ValueInfoProto, *weights: onnx.TensorProto) -> onnx.ModelProto:
    outputs = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "test", [x], outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_keyword_spotter_accuracy() -> None:
    stored, labels = kws.data()
    scaled = (stored.astype(np.float32) - np.float32(83)) * np.float32(0.5847029089927673)
    scores = kws.session("onnxruntime", intra_threads=1).run({kws.INPUT: scaled})[kws.OUTPUT]
    assert np.sum(scores.argmax(axis=1) == labels) == pytest.approx(913, abs=1)


def test_usage_reporting_is_off(tmp_path: Path) -> None:
    """The library would start a thread for it and keep what it has to tell in the home folder."""
    program = (
        "from edgekit import runtimes; from tests.unit.runtimes import kws;"
        "kws.session('onnxruntime').run({kws.INPUT: kws.data()[0][:1].astype('float32')})"
    )
    kept = {key: value for key, value in os.environ.items() if "ORT_" not in key and "XDG_" not in key}
    subprocess.run([sys.executable, "-c", program], env={**kept, "HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []


def test_external_data_comes_from_memory(tmp_path: Path) -> None:
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])
    model = proto([helper.make_node("MatMul", ["x", "w"], ["y"])], x, numpy_helper.from_array(weight, "w"))
    onnx.save_model(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0
    )
    files = {name: (tmp_path / name).read_bytes() for name in ("m.onnx", "w.data")}
    given = RNG.normal(size=(3, 64)).astype(np.float32)
    assert np.allclose(RUNTIME.load(files, {}).run({"x": given})["y"], given @ weight, atol=1e-4)
    with pytest.raises(EngineError, match="cannot load"):
        RUNTIME.load({"m.onnx": files["m.onnx"]}, {})


def widest_int8_product(**options: str) -> bool:
    """Whether sums of 255 * 127 come out right."""
    weight = np.full((256, 16), 127, np.int8)
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 256])
    model = proto(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])], x, numpy_helper.from_array(weight, "w")
    )
    given = np.full((4, 256), 255, np.uint8)
    session = RUNTIME.load({"m.onnx": model.SerializeToString()}, options)
    return np.array_equal(session.run({"x": given})["y"], given.astype(np.int32) @ weight.astype(np.int32))


def test_int8_is_exact_on_every_cpu() -> None:
    """Without VNNI u8*s8 saturates in 16 bits, unless session.x64quantprecision is set: then it is."""
    assert widest_int8_product()
    assert widest_int8_product(**{"session.x64quantprecision": "1"})
    assert widest_int8_product(**{"session.x64quantprecision": "0"}) is not host.saturates(host.read())


def test_seven_bit_weights_are_exact_on_the_fast_path(tmp_path: Path) -> None:
    """What the profiles without VNNI rely on: reduce_range, and then no exact (slow) kernels."""
    stored, _ = kws.data()
    scaled = apply(kws.SCALE.affine[0], stored[:100])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows = iter(range(20))

        def get_next(self) -> dict[str, Array] | None:
            row = next(self.rows, None)
            return None if row is None else {kws.INPUT: scaled[row : row + 1]}

    (tmp_path / "fp32.onnx").write_bytes(kws.model())
    int8 = tmp_path / "int8.onnx"
    quantize_static(
        tmp_path / "fp32.onnx",
        int8,
        Reader(),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
    )
    fast, exact = (
        RUNTIME.load({"m.onnx": int8.read_bytes()}, {"session.x64quantprecision": entry}).run(
            {kws.INPUT: scaled}
        )
        for entry in ("0", "1")
    )
    assert np.array_equal(fast[kws.OUTPUT], exact[kws.OUTPUT])


def test_weights_are_not_kept_twice() -> None:
    model = bytes(bytearray(kws.model()))
    before = sys.getrefcount(model)
    session = RUNTIME.load({"m.onnx": model}, {})
    assert sys.getrefcount(model) == before
    session.close()


def test_coverage_follows_the_optimised_graph() -> None:
    fused = kws.session("onnxruntime").coverage()
    plain = kws.session("onnxruntime", graph="disable").coverage()
    assert set(fused) == set(plain) == {"CPUExecutionProvider"}
    assert fused["CPUExecutionProvider"] < plain["CPUExecutionProvider"]


def test_the_gil_is_released() -> None:
    stored, _ = kws.data()
    session = kws.session("onnxruntime", intra_threads=1)
    assert runs_beside_python(session, {kws.INPUT: np.tile(stored, (4, 1, 1, 1)).astype(np.float32)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"intra_threads": "many"}, "'intra_threads' cannot be 'many'"),
        ({"intra_threads": -1}, "'intra_threads' cannot be -1"),
        ({"inter_threads": 1.5}, "'inter_threads' cannot be 1.5"),
        ({"graph": "most"}, "'graph' cannot be 'most'"),
        ({"threads": 1}, "unknown option 'threads'"),
    ],
)
def test_bad_options(options: dict[str, str | int | float | bool], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        RUNTIME.load({"m.onnx": kws.model()}, options)


@pytest.mark.parametrize(
    "options",
    [
        {"inter_threads": 2, "intra_threads": 2},
        {"arena": True},
        {"graph": "basic"},
        {"session.intra_op.allow_spinning": False},
    ],
)
def test_good_options(options: dict[str, str | int | float | bool]) -> None:
    stored, _ = kws.data()
    given = {kws.INPUT: stored[:8].astype(np.float32)}
    want = kws.session("onnxruntime").run(given)[kws.OUTPUT]
    got = RUNTIME.load({"m.onnx": kws.model()}, options).run(given)[kws.OUTPUT]
    assert np.allclose(got, want, atol=1e-5)


def test_string_inputs_are_refused() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])
    model = proto([helper.make_node("Identity", ["x"], ["y"])], x)
    with pytest.raises(EngineError, match="'x' is tensor\\(string\\), not a numeric tensor"):
        RUNTIME.load({"m.onnx": model.SerializeToString()}, {})
