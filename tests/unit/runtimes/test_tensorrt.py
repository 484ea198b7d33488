"""TensorRT on a machine that has none: what must be said, what can be computed, and falling back for real.

The engine itself is tried by benchmarks/tensorrt_gpu.py where a GPU is lent.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import backends, codec, runtimes
from edgekit.backends import SourceModel
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Target
from edgekit.runtimes import _cuda, _trt_cache, _trt_engine, _trt_plan, _trt_provider, tensorrt
from edgekit.runtimes._trt_plan import Plan, Range, Tensor
from tests.conformance.models import INPUTS, expected, onnx_files

RUNTIME = runtimes.get("tensorrt")
PLAN = Plan(
    "int8",
    (Tensor("a", "FP32", (-1, 3)), Tensor("b", "FP32", (-1, 3))),
    (Tensor("total", "FP32", (-1, 3)), Tensor("score", "FP32", (-1, 2))),
    (Range("a", (1, 3), (1, 3), (4, 3)), Range("b", (1, 3), (1, 3), (4, 3))),
    workspace_mib=64,
)


@pytest.fixture
def files() -> dict[str, bytes]:
    ports = tuple(TensorSpec(name, "FP32", (-1, 3)) for name in INPUTS)
    outputs = (TensorSpec("total", "FP32", (-1, 3)), TensorSpec("score", "FP32", (-1, 2)))
    backend = backends.get("tensorrt")
    recipe = next(iter(backend.recipes("fp32", Target("tensorrt", ("fp32",)), CalibrationPolicy())))
    return backend.build(SourceModel(onnx_files(Path())["model.onnx"], ports, outputs), recipe, {})


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine whose driver and TensorRT answer, but whose onnxruntime cannot start the provider."""
    if _has_gpu():
        pytest.skip("this machine has a GPU: benchmarks/tensorrt_gpu.py tries the real thing")
    monkeypatch.setattr(_cuda, "identify", lambda device: _cuda.Gpu("Orin", "8.7", "12.6"))
    monkeypatch.setattr(tensorrt, "_library_version", lambda: "10.3.0")
    monkeypatch.setattr(_trt_provider, "offered", lambda: True)
    monkeypatch.setenv(runtimes.ENGINE_CACHE, str(tmp_path / "engines"))
    yield


def _has_gpu() -> bool:
    try:
        _cuda.identify(0)
    except EngineMissing:
        return False
    return True


# -- nothing is installed --------------------------------------------------------------------------


@pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_the_engine_is_missing_and_says_what_to_install(files: dict[str, bytes]) -> None:
    for action in (RUNTIME.version, lambda: RUNTIME.load(files, {})):
        with pytest.raises(EngineMissing, match=r"^tensorrt: no (NVIDIA driver|usable NVIDIA GPU)") as caught:
            action()
        assert "JetPack" in caught.value.hint
        assert "\n" not in str(caught.value)


def test_without_the_library_the_hint_names_both_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "identify", lambda device: _cuda.Gpu("Orin", "8.7", "12.6"))
    monkeypatch.setattr(tensorrt, "_library_version", lambda: "")
    with pytest.raises(EngineMissing, match="libnvinfer") as caught:
        RUNTIME.version()
    assert "nvidia-jetpack" in caught.value.hint and "pip install onnxruntime-gpu" in caught.value.hint
    monkeypatch.setattr(tensorrt, "_library_version", lambda: "10.3.0")
    monkeypatch.setattr(_trt_provider, "offered", lambda: False)
    monkeypatch.setattr(tensorrt, "_package", lambda: None)
    with pytest.raises(EngineMissing, match="neither an onnxruntime with its provider nor"):
        RUNTIME.version()


def test_importing_the_engine_imports_no_library() -> None:
    program = (
        "import sys; from edgekit.runtimes import tensorrt;"
        "print({'tensorrt', 'onnxruntime'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(("number", "text"), [(8601, "8.6.1"), (100300, "10.3.0"), (110400, "11.4.0")])
def test_version_numbers(number: int, text: str) -> None:
    assert tensorrt.spelled(number) == text


# -- options, plan, provider -----------------------------------------------------------------------


def test_options() -> None:
    assert tensorrt.parse_options({}).fallback == ("cuda", "cpu")
    asked = tensorrt.parse_options({"fallback": "cpu", "min_coverage": 1, "via": "tensorrt", "cache": "none"})
    assert (asked.fallback, asked.min_coverage, asked.via, asked.cache) == (("cpu",), 1.0, "tensorrt", "none")
    assert tensorrt.parse_options({"fallback": ""}).fallback == ()
    bad: list[dict[str, Any]] = [
        {"fallback": "gpu"}, {"fallback": "cpu,cpu"}, {"min_coverage": 2}, {"via": "trtexec"},
        {"cache": "tape"}, {"device": -1}, {"device": "0"}, {"no_such_option": 1}, {"NO_SUCH_OPTION": 1},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(EngineError, match=next(iter(options))):
            tensorrt.parse_options(options)


def test_the_providers_words(tmp_path: Path) -> None:
    said = _trt_provider.provider_options(PLAN, 1, tmp_path / "e", tmp_path / "t")
    assert said == {
        "device_id": "1",
        "trt_max_workspace_size": str(64 << 20),
        "trt_builder_optimization_level": "3",
        "trt_fp16_enable": "False",
        "trt_int8_enable": "True",
        "trt_sparsity_enable": "False",
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(tmp_path / "e"),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(tmp_path / "t"),
        "trt_profile_min_shapes": "a:1x3,b:1x3",
        "trt_profile_opt_shapes": "a:1x3,b:1x3",
        "trt_profile_max_shapes": "a:4x3,b:4x3",
    }
    kept_nowhere = _trt_provider.provider_options(PLAN, 0, None, None)
    assert kept_nowhere["trt_engine_cache_enable"] == kept_nowhere["trt_timing_cache_enable"] == "False"
    assert not any("path" in key for key in kept_nowhere)


def test_names_that_the_provider_would_cut_are_not_told() -> None:
    ranges = (dataclasses.replace(PLAN.ranges[0], input="input:0"),)
    assert "trt_profile_min_shapes" not in _trt_provider.provider_options(
        dataclasses.replace(PLAN, ranges=ranges), 0, None, None
    )


def test_the_chain_follows_the_profiles_order() -> None:
    listed = _trt_provider.providers(("tensorrt", "cuda", "cpu"), PLAN, 0, None, None)
    assert [name for name, _ in listed] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    assert listed[1][1] == {"device_id": "0", "use_tf32": "0"}, "fp32 means fp32"
    assert tensorrt.use_provider(tensorrt.Asked(), offered=True)
    assert not tensorrt.use_provider(tensorrt.Asked(), offered=False)
    assert not tensorrt.use_provider(tensorrt.Asked(via="tensorrt"), offered=True)


def test_builder_flags() -> None:
    typed = _trt_engine.builder_flags(dataclasses.replace(PLAN, sparse_weights=True), typed=True)
    assert typed == {
        "TF32": False, "SPARSE_WEIGHTS": True, "VERSION_COMPATIBLE": False, "FP16": False, "INT8": False,
    }  # fmt: skip
    assert _trt_engine.builder_flags(PLAN, typed=False)["INT8"], "before TensorRT 9 the builder must be told"


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 2},
        {"precision": "int4"},
        {"workspace_mib": 0},
        {"optimization_level": 6},
        {"ranges": ()},
        {"ranges": (Range("a", (2, 3), (1, 3), (4, 3)), PLAN.ranges[1])},
        {"ranges": (Range("a", (1, 4), (1, 4), (4, 4)), PLAN.ranges[1])},
        {"inputs": (Tensor("a", "INT4", (-1, 3)), PLAN.inputs[1])},
    ],
)
def test_bad_plans(change: dict[str, Any]) -> None:
    with pytest.raises(EngineError, match=r"^tensorrt: plan\.json"):
        _trt_plan.parse(codec.to_json(dataclasses.replace(PLAN, **change)))
    assert _trt_plan.parse(codec.to_json(PLAN)) == PLAN


def test_large_batches_are_cut_to_what_the_engine_takes() -> None:
    inputs = {name: np.arange(30, dtype=np.float32).reshape(10, 3) for name in INPUTS}
    seen: list[int] = []

    def run(part: Any) -> dict[str, Any]:
        seen.append(len(part["a"]))
        return expected(part["a"], part["b"])

    answers = _trt_engine.joined(run, inputs, PLAN)
    assert seen == [4, 4, 2]
    assert np.array_equal(answers["total"], inputs["a"] + inputs["b"])
    with pytest.raises(EngineError, match="different numbers of rows"):
        _trt_engine.joined(run, {**inputs, "b": inputs["b"][:2]}, PLAN)


# -- falling back ----------------------------------------------------------------------------------


def test_falls_back_to_the_cpu_in_the_open(
    files: dict[str, bytes], pretended: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Real onnxruntime without the provider: by itself it would answer from the CPU and say nothing."""
    with caplog.at_level(logging.INFO, "edgekit.runtimes.tensorrt"):
        session = RUNTIME.load(files, {"fallback": "cuda,cpu", "cache": "disk"})
    assert set(session.coverage()) == {"CPUExecutionProvider"}
    said = [record.message for record in caplog.records]
    assert any("tensorrt did not load" in line and "TensorrtExecutionProvider" in line for line in said)
    assert any("cuda did not load" in line for line in said)
    assert any("loaded by cpu" in line for line in said)
    inputs = {name: np.full((6, 3), 2, np.float32) for name in INPUTS}
    answers = session.run(inputs)
    assert np.allclose(answers["score"], expected(inputs["a"], inputs["b"])["score"])
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run(inputs)


def test_too_little_on_tensorrt_fails(files: dict[str, bytes], pretended: None) -> None:
    with pytest.raises(EngineError, match=r"90% of the nodes .* CPUExecutionProvider 2"):
        RUNTIME.load(files, {"min_coverage": 0.9, "cache": "none"})
    tensorrt.check_coverage(
        {"TensorrtExecutionProvider": 9, "CPUExecutionProvider": 1}, tensorrt.Asked(min_coverage=0.9)
    )
    with pytest.raises(EngineError, match="nothing is told"):
        tensorrt.check_coverage({}, tensorrt.Asked(min_coverage=0.1))


def test_without_a_fallback_nothing_is_served(files: dict[str, bytes], pretended: None) -> None:
    with pytest.raises(EngineError, match="nothing loads the model: tensorrt: "):
        RUNTIME.load(files, {"fallback": "", "cache": "none"})


def test_bad_files(files: dict[str, bytes], pretended: None) -> None:
    for case in ({}, {"model.onnx": files["model.onnx"]}, {**files, "plan.json": b"{}"}):
        with pytest.raises(EngineError, match=r"^tensorrt"):
            RUNTIME.load(case, {"cache": "none"})
    with pytest.raises(EngineError, match="nothing loads the model"):
        RUNTIME.load({**files, "model.onnx": b"\0\xff"}, {"cache": "none"})


# -- the engine cache ------------------------------------------------------------------------------

MADE_FROM = {
    "model": "m", "plan": "p", "tensorrt": "10.3.0", "name": "Orin", "capability": "8.7", "driver": "12.6",
}  # fmt: skip


def fill(folder: Path, made_from: dict[str, str]) -> Path:
    with _trt_cache.entry(folder, made_from) as entry:
        assert not entry.intact
        (entry.folder / "engine.plan").write_bytes(b"engine")
        entry.seal()
        return entry.folder


def intact(folder: Path, made_from: dict[str, str]) -> bool:
    with _trt_cache.entry(folder, made_from) as entry:
        return entry.intact


@pytest.mark.parametrize("part", sorted(MADE_FROM))
def test_an_engine_belongs_to_all_it_was_made_from(tmp_path: Path, part: str) -> None:
    fill(tmp_path, MADE_FROM)
    assert intact(tmp_path, dict(MADE_FROM))
    assert not intact(tmp_path, {**MADE_FROM, part: "another"})
    assert intact(tmp_path, MADE_FROM), "the other engine lies beside it"


@pytest.mark.parametrize("damage", ["byte", "cut", "extra", "gone", "manifest", "no manifest"])
def test_a_damaged_engine_is_built_anew(tmp_path: Path, damage: str) -> None:
    place = fill(tmp_path, MADE_FROM)
    match damage:
        case "byte":
            (place / "engine.plan").write_bytes(b"enginf")
        case "cut":
            os.truncate(place / "engine.plan", 3)
        case "extra":
            (place / "stranger").write_bytes(b"x")
        case "gone":
            (place / "engine.plan").unlink()
        case "manifest":
            (place / "manifest.json").write_bytes(b"{")
        case _:
            (place / "manifest.json").unlink()  # the power failed before the engine was complete
    with _trt_cache.entry(tmp_path, MADE_FROM) as entry:
        assert not entry.intact
        assert list(entry.folder.iterdir()) == [], "nothing damaged is left for a library to read"
    fill(tmp_path, MADE_FROM)
    assert intact(tmp_path, MADE_FROM)


def test_two_processes_do_not_build_the_same_engine(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from edgekit.runtimes import _trt_cache as c\n"
        "with c.entry(Path(sys.argv[1]), {'model': 'm'}) as e:\n"
        "    print('in', e.intact, flush=True); sys.stdin.readline()\n"
        "    (e.folder / 'engine.plan').write_bytes(b'x'); e.seal()\n"
    )
    start = [sys.executable, "-c", program, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(start, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdin and first.stdout
        assert first.stdout.readline() == "in False\n"
        with subprocess.Popen(start, stdin=pipe, stdout=pipe, text=True) as second:
            assert second.stdin and second.stdout
            second.stdin.write("\n")
            second.stdin.flush()
            first.stdin.write("\n")
            first.stdin.flush()
            assert second.stdout.readline() == "in True\n", "it waited, and found the engine"


def test_old_engines_are_forgotten(tmp_path: Path) -> None:
    for number in range(_trt_cache.KEEP + 2):
        fill(tmp_path, {"model": str(number)})
    assert sum(path.is_dir() for path in tmp_path.iterdir()) <= _trt_cache.KEEP + 1
    assert not intact(tmp_path, {"model": "0"})


def test_the_cache_is_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtimes.ENGINE_CACHE, str(tmp_path / "engines"))
    folder = _trt_cache.root("disk")
    assert folder == tmp_path / "engines" and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(EngineError, match="not this user's alone"):
        _trt_cache.root("disk")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(EngineError, match="not this user's alone"):
        _trt_cache.root("disk")
    memory = _trt_cache.root("memory")
    assert memory.is_relative_to("/dev/shm"), "plaintext-derived weights stay off the disk"
