"""Every backend and recipe on a real model: equal bytes, the arithmetic asked for, right answers."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgekit import backends, profile, runtimes
from edgekit.backends import Recipe, SourceModel
from edgekit.build import plan, sources, worker
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Precision, Target
from tests.unit.runtimes import kws

# nncf brings half of SciPy along; what those libraries say to each other is not ours.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("backends")]

ROWS = 40
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-dynamic")


def recipes() -> Iterator[Recipe]:
    """Each that a shipped profile can lead to, once, without what the device's engine is told."""
    seen = set()
    targets = [target for one in profile.all_profiles().values() for target in one.target]
    for target in targets:
        plain = Target(
            target.runtime, PRECISIONS, activation=target.activation, reduce_range=target.reduce_range
        )
        for precision in PRECISIONS:
            for recipe in backends.get(target.runtime).recipes(precision, plain, CalibrationPolicy()):
                if recipe.name not in seen:
                    seen.add(recipe.name)
                    yield recipe


RECIPES = {recipe.name: recipe for recipe in recipes()}


@cache
def model() -> SourceModel:
    return sources.load(Path(__file__).parents[3] / "examples" / "kws" / "kws_fp32.onnx")


@cache
def calibration() -> dict[str, Any]:
    step = kws.SCALE.affine[0]
    rows = kws.data()[0][:ROWS].astype(np.float32)
    return {kws.INPUT: (rows - np.float32(step.offset)) * np.float32(step.scale)}


@cache
def built(name: str) -> dict[str, bytes]:
    recipe = RECIPES[name]
    return backends.get(recipe.engine).build(
        model(), recipe, calibration() if recipe.needs_calibration else {}
    )


def test_the_profiles_lead_to_these() -> None:
    assert {
        "onnxruntime.fp32",
        "onnxruntime.int8-s8",
        "onnxruntime.int8-u8",
        "onnxruntime.int8-dynamic",
        "openvino.fp16",
        "openvino.int8-mixed",
        "openvino.int8-performance",
    } <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_equal_inputs_give_equal_bytes(name: str) -> None:
    recipe = RECIPES[name]
    again = backends.get(recipe.engine).build(model(), recipe, calibration())
    assert again == built(name)


@pytest.mark.parametrize("name", ["onnxruntime.int8-u8", "openvino.int8-mixed", "openvino.fp16"])
def test_another_process_gives_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "4711")
    job = worker.Job("build", RECIPES[name], model=model(), arrays=calibration())
    assert worker.run(job)[1] == built(name)


@pytest.mark.parametrize("name", RECIPES)
def test_answers_stay_right(name: str) -> None:
    """Through the engine that serves, here; 7-bit or exact arithmetic makes int8 hold on any x86."""
    engine = RECIPES[name].engine
    files, options = plan.measured(engine, built(name), {"intra_threads": 1})
    session = runtimes.get(plan.stand_in(engine) or engine).load(files, options)
    fp32 = runtimes.get("onnxruntime").load({"model.onnx": model().onnx}, {"intra_threads": 1})
    rows = calibration()[kws.INPUT]
    same = sum(
        int(session.run({kws.INPUT: row[None]})[kws.OUTPUT].argmax())
        == int(fp32.run({kws.INPUT: row[None]})[kws.OUTPUT].argmax())
        for row in rows
    )
    assert same >= 0.9 * ROWS


@pytest.mark.parametrize(
    ("name", "dtype"), [("onnxruntime.int8-s8", np.int8), ("onnxruntime.int8-u8", np.uint8)]
)
def test_onnxruntime_quantizes_activations_as_asked(name: str, dtype: type) -> None:
    graph = onnx.load_model_from_string(built(name)["model.onnx"]).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    zeros = [values[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(zeros) > 5
    assert {zero.dtype for zero in zeros} == {np.dtype(dtype)}


def _weights(name: str) -> list[Any]:
    graph = onnx.load_model_from_string(built(name)["model.onnx"]).graph
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
    return [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]


def test_seven_bits_are_seven_bits() -> None:
    seven = next(
        name for name in RECIPES if name.startswith("onnxruntime.int8-") and name.endswith("u8-7bit")
    )
    assert max(int(np.abs(w.astype(int)).max()) for w in _weights(seven)) == 64
    assert max(int(np.abs(w.astype(int)).max()) for w in _weights("onnxruntime.int8-u8")) == 127


def test_int8_is_smaller() -> None:
    onnx_size = {name: len(built(name)["model.onnx"]) for name in RECIPES if name.startswith("onnxruntime")}
    assert onnx_size["onnxruntime.int8-s8"] < 0.75 * onnx_size["onnxruntime.fp32"]
    weights = {name: len(built(name)["model.bin"]) for name in RECIPES if name.startswith("openvino")}
    assert weights["openvino.int8-mixed"] < weights["openvino.fp16"] < weights["openvino.fp32"]


def test_ir_holds_no_trace_of_the_run() -> None:
    xml = gzip.decompress(built("openvino.int8-mixed")["model.xml.gz"])
    assert b"conversion_parameters" not in xml
    assert b"nncf" not in xml
    assert b">\n" not in xml.rstrip()


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "onnxruntime.fp32"])
def test_a_model_that_the_library_refuses_is_one_line(name: str) -> None:
    recipe = RECIPES[name]
    with pytest.raises(EngineError) as error:
        backends.get(recipe.engine).build(SourceModel(b"nonsense", (), ()), recipe, calibration())
    assert error.value.message.startswith(f"{name}: ")
    assert "\n" not in error.value.message


@pytest.mark.parametrize("engine", backends.names())
def test_a_backend_keeps_the_contract(engine: str) -> None:
    backend = backends.get(engine)
    assert backend.runtime == engine
    assert backend.runtime in runtimes.names()
    assert all(version[0].isdigit() for version in backend.tools().values())
    target = Target(engine, ("fp32",), options={"intra_threads": 2})
    assert list(backend.recipes("fp4", target, CalibrationPolicy())) == []
    baseline = next(iter(backend.recipes("fp32", target, CalibrationPolicy())))
    assert baseline.runtime_options == {"intra_threads": 2}
    assert not baseline.needs_calibration


def test_unknown_engines_and_absent_packages() -> None:
    with pytest.raises(EngineMissing, match="no-such-engine"):
        backends.get("no-such-engine")
    with pytest.raises(EngineMissing, match="no-such-package is not installed"):
        backends.versions("x", ("numpy", "no-such-package"))
