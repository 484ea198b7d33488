"""TVM: compiled for this machine and for ARM, tuned once and remembered, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, runtimes
from edgekit.backends import Recipe, SourceModel, tvm
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target
from tests.support import transformer
from tests.unit.backends.test_recipes import calibration
from tests.unit.backends.test_recipes import model as keyword_spotter
from tests.unit.runtimes import kws

pytestmark = pytest.mark.xdist_group("toolenv")
BACKEND = backends.get("tvm")
HERE = os.uname().machine
CPU = {"x86_64": "x86-64-v2", "aarch64": "cortex-a53"}[HERE]
TUNED = Path(__file__).parent / "data" / "tvm-tuning"
ELF_MACHINE = {"x86_64": 62, "aarch64": 183}


def recipe(cpu: str, trials: int = 0) -> Recipe:
    return Recipe("tvm", "fp32", {"cpu": cpu, "trials": trials})


@cache
def built() -> dict[str, bytes]:
    return BACKEND.build(keyword_spotter(), recipe(CPU), {})


def machine(library: bytes) -> int:
    assert library[:4] == b"\x7fELF"
    return int(struct.unpack_from("<H", library, 18)[0])


def refusal(model: SourceModel, one: Recipe) -> EngineError:
    with pytest.raises(EngineError) as caught:
        BACKEND.build(model, one, {})
    assert "\n" not in caught.value.message
    return caught.value


def tiny(kind: str, domain: str = "", shape: tuple[int | str, ...] = ("batch", 4)) -> SourceModel:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"]
    node = helper.make_node(kind, ["x"], ["y"], name="the-node", domain=domain)
    graph = helper.make_graph([node], "tiny", ports[:1], ports[1:])
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    return SourceModel(
        proto.SerializeToString(), (TensorSpec("x", "FP32", sizes),), (TensorSpec("y", "FP32", sizes),)
    )


def one_product() -> SourceModel:
    """Something that takes one search to tune."""
    weight = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", 64), ("y", 32))
    ]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = proto.SerializeToString(deterministic=True)
    return SourceModel(data, (TensorSpec("x", "FP32", (-1, 64)),), (TensorSpec("y", "FP32", (-1, 32)),))


def test_recipes() -> None:
    def offered(**options: Any) -> list[tuple[Any, Any]]:
        found = BACKEND.recipes("fp32", Target("tvm", ("fp32",), options=options), CalibrationPolicy())
        return [(one.options["cpu"], one.options["trials"]) for one in found]

    assert offered() == [("x86-64-v2", 0), ("x86-64-v2", 128)]
    assert offered(cpu="cortex-a72", trials=0) == [("cortex-a72", 0)]
    target = Target("tvm", ("fp32",), options={"cpu": CPU, "intra_threads": 2})
    assert next(iter(BACKEND.recipes("fp32", target, CalibrationPolicy()))).runtime_options == {
        "intra_threads": 2
    }
    assert list(BACKEND.recipes("int8", target, CalibrationPolicy())) == []


def test_answers_as_onnxruntime_does() -> None:
    ours = runtimes.get("tvm").load(built(), {}).run(calibration())[kws.OUTPUT]
    theirs = kws.session("onnxruntime", intra_threads=1).run(calibration())[kws.OUTPUT]
    assert np.allclose(ours, theirs, atol=1e-5)
    model = transformer.model()
    made = runtimes.get("tvm").load(BACKEND.build(model, recipe(CPU), {}), {}).run(transformer.ids(5))
    want = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {}).run(transformer.ids(5))
    assert np.allclose(made["sentence"], want["sentence"], atol=1e-4)


def test_equal_inputs_give_equal_bytes() -> None:
    assert BACKEND.build(keyword_spotter(), recipe(CPU), {}) == built()


def test_compiles_for_arm() -> None:
    files = BACKEND.build(keyword_spotter(), recipe("cortex-a72"), {})
    assert {machine(data) for name, data in files.items() if name.endswith(".so")} == {ELF_MACHINE["aarch64"]}
    about = json.loads(files["io.json"])
    assert (about["architecture"], about["cpu"]) == ("aarch64", "cortex-a72")
    if HERE != "aarch64":
        with pytest.raises(EngineError, match="compiled for aarch64"):
            runtimes.get("tvm").load(files, {})


@pytest.mark.skipif(HERE != "x86_64", reason="the recorded tuning is of an x86 processor")
def test_what_was_tuned_is_compiled_without_tuning() -> None:
    """data/tvm-tuning is what two trials of this recipe left behind. Tuning itself takes minutes."""
    model, one = one_product(), recipe(CPU, trials=2)
    place = tvm._place(model, one)
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(TUNED, place)
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    tuned = BACKEND.build(model, one, {})
    assert BACKEND.build(model, one, {}) == tuned
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before
    assert tuned["model.so"] != BACKEND.build(model, recipe(CPU), {})["model.so"], "tuned code is other code"
    rows = {"x": np.random.default_rng(2).normal(size=(3, 64)).astype(np.float32)}
    want = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {}).run(rows)
    assert np.allclose(runtimes.get("tvm").load(tuned, {}).run(rows)["y"], want["y"], atol=1e-5)


def test_what_cannot_be_compiled() -> None:
    lacks = refusal(tiny("Gelu2", "somewhere.else"), recipe(CPU))
    assert "no operator Gelu2 (node 'the-node')" in lacks.message
    open_size = refusal(tiny("Relu", shape=("batch", "n")), recipe(CPU))
    assert "'x' has an open dimension besides the batch" in open_size.message
    assert "'cpu' cannot be '6502'" in refusal(tiny("Relu"), recipe("6502")).message
    assert "'trials' cannot be 9999" in refusal(tiny("Relu"), recipe(CPU, 9999)).message


def test_tuning_needs_the_targets_architecture() -> None:
    assert isinstance(BACKEND, backends.Selective)
    foreign = "cortex-a72" if HERE == "x86_64" else "x86-64-v2"
    assert "tuning for" in BACKEND.worth(tiny("Relu"), recipe(foreign, 16))
    assert BACKEND.worth(tiny("Relu"), recipe(foreign)) == ""
    assert BACKEND.worth(tiny("Relu"), recipe(CPU, 16)) == ""
    error = refusal(tiny("Relu"), recipe(foreign, 16))
    assert "tuning for" in error.message
    assert "trials = 0" in error.hint
