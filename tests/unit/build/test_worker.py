"""Jobs in processes of their own: whatever happens to the child is one line here."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.backends import Recipe, SourceModel
from edgekit.build import measure, worker
from edgekit.build.measure import Plan
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, SystemFault
from edgekit.profile import Verify
from edgekit.runtimes import Files, Options, Session
from edgekit.runtimes._answers import unpack_outputs
from tests.unit.runtimes import kws

ROOT = Path(__file__).parents[3]
MODEL = SourceModel(b"weights", (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 2)),))


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine "crasher", found by the children as any stranger's engine is."""
    info = tmp_path / "site" / "crasher-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crasher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.backends]\ncrasher = tests.unit.build.crasher:BACKEND\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{ROOT}")


def build(how: str, timeout_s: float = 60) -> dict[str, bytes]:
    arrays = {"x/y:0": np.arange(4, dtype=np.int16)}
    job = worker.Job("build", Recipe("crasher", "fp32", {"how": how}), model=MODEL, arrays=arrays)
    return worker.run(job, timeout_s)[1]


@pytest.mark.usefixtures("plug_in")
def test_files_go_in_and_out() -> None:
    values = np.arange(4, dtype=np.int16).tobytes()
    assert build("well") == {"model.bin": b"weights", "deep/er.bin": values}


@pytest.mark.usefixtures("plug_in")
@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("signal", "crasher.fp32-how.{how}: build was ended by signal 11"),
        ("raise", "crasher.fp32-how.{how}: build failed with exit code 1: second line"),
        ("exit", "crasher.fp32-how.{how}: build failed with exit code 3: out of luck"),
        ("silent", "crasher.fp32-how.{how}: build failed with exit code 0"),
    ],
)
def test_a_child_that_goes_wrong_is_one_line(how: str, words: str) -> None:
    with pytest.raises(EngineError) as error:
        build(how)
    assert error.value.message == words.format(how=how)


@pytest.mark.usefixtures("plug_in")
def test_a_child_that_hangs_is_ended() -> None:
    with pytest.raises(EngineError, match="took more than 3 s"):
        build("hang", timeout_s=3)  # it sleeps for 600: pytest's own limit would end the test


def test_an_unknown_engine_says_what_there_is() -> None:
    with pytest.raises(EngineError, match="nothing builds for the engine 'crasher'") as error:
        build("well")
    assert "onnxruntime" in error.value.hint


def test_files_in_the_current_folder_do_not_stand_in_for_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('hijacked')\n")
    monkeypatch.chdir(tmp_path)
    job = worker.Job("build", Recipe("onnxruntime", "fp32"), model=MODEL)
    assert worker.run(job)[1] == {"model.onnx": b"weights"}


def test_an_engine_that_refuses_the_model_is_one_line() -> None:
    files = {"candidate/model.onnx": b"nonsense", "baseline/model.onnx": b"nonsense"}
    inputs = {"input/x": np.zeros((3, 2), np.float32)}
    plan = Plan(Verify(), classify=True, baseline_options={})
    job = worker.Job("measure", Recipe("onnxruntime", "int8"), measure=plan, files=files, arrays=inputs)
    with pytest.raises(EngineError, match="onnxruntime: cannot load the model") as error:
        worker.run(job)
    assert "\n" not in error.value.message


def test_a_real_model_is_measured_as_the_runtime_answers() -> None:
    rows = kws.data()[0][200:240].astype(np.float32)
    files = {"candidate/model.onnx": kws.model(), "baseline/model.onnx": kws.model()}
    plan = Plan(Verify(golden_samples=5), classify=True, baseline_options={"intra_threads": 1})
    recipe = Recipe("onnxruntime", "fp32", runtime_options={"intra_threads": 1})
    job = worker.Job("measure", recipe, measure=plan, files=files, arrays={f"input/{kws.INPUT}": rows})
    result, golden = worker.run(job)
    session = kws.session("onnxruntime", intra_threads=1)
    expected = [int(session.run({kws.INPUT: row[None]})[kws.OUTPUT].argmax()) for row in rows]
    measured = result["measured"]
    outputs = unpack_outputs(tuple(measured["outputs"]), golden)
    assert outputs[kws.OUTPUT].argmax(axis=1).tolist() == expected
    assert measured["golden"]["samples"] == 5
    assert len(golden[f"inputs/{kws.INPUT}"]) == 5 * 49 * 10 * 4
    assert 0 < measured["latency"]["p50_ms"] <= measured["latency"]["p95_ms"] <= measured["latency"]["p99_ms"]
    assert 10 < measured["peak_rss_mib"] < 1000
    assert 0 < measured["load_rss_mib"] < measured["peak_rss_mib"]


def measured_with(recipe: Recipe, model: str, content: bytes, plan: Plan) -> dict[str, Any]:
    rows = kws.data()[0][:20].astype(np.float32)
    files = {f"candidate/{model}": content, f"baseline/{model}": content}
    job = worker.Job("measure", recipe, measure=plan, files=files, arrays={f"input/{kws.INPUT}": rows})
    return dict(worker.run(job)[0]["measured"])


def test_how_it_is_served_best_is_found_out() -> None:
    asked = Plan(Verify(golden_samples=3), classify=True, baseline_options={}, cores=2, joins=True)
    one = Recipe("onnxruntime", "fp32", runtime_options={"intra_threads": 1})
    found = measured_with(one, "model.onnx", kws.model(), asked)["serving"]
    assert found["threads"] in (1, 2) and found["cores"] >= 1 and found["run_ms"] > 0
    assert found["batch"] == 1 or found["batch_ms"] > 0


def test_threads_that_the_recipe_names_are_left_alone() -> None:
    options: dict[str, str | int | float | bool] = {"intra_threads": 3}
    asked = Plan(Verify(golden_samples=3), classify=True, baseline_options=options, cores=2)
    recipe = Recipe("onnxruntime", "fp32", runtime_options=options)
    found = measured_with(recipe, "model.onnx", kws.model(), asked)["serving"]
    assert (found["threads"], found["batch"]) == (0, 1)  # and nobody said that rows may be joined
    unasked = dataclasses.replace(asked, cores=0)
    assert "serving" not in measured_with(recipe, "model.onnx", kws.model(), unasked)


def test_an_engine_without_threads_is_served_as_it_is() -> None:
    class Plain:
        """Knows no options."""

        def load(self, files: Files, options: Options) -> Session:
            raise EngineError(f"unknown option {next(iter(options))!r}, files {len(files)}")

    assert measure._threads(Plain(), {}, {}, {}, 4) == 0  # type: ignore[arg-type]


def test_more_threads_must_be_worth_it() -> None:
    class Sleeping:
        def __init__(self, seconds: float) -> None:
            self.seconds, self.closed = seconds, False

        def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            time.sleep(self.seconds)
            return dict(inputs)

        def close(self) -> None:
            self.closed = True

    def chosen(many_s: float) -> int:
        made = {1: Sleeping(0.004), 4: Sleeping(many_s)}

        class Engine:
            def load(self, files: Files, options: Options) -> Sleeping:
                return made[int(options["intra_threads"])]

        row = {"x": np.zeros((1, 1), np.float32)}
        found = measure._threads(Engine(), {}, {}, row, 4)  # type: ignore[arg-type]
        assert all(one.closed for one in made.values())
        return found

    assert chosen(0.001) == 4 and chosen(0.004) == 1


def test_evaluation_rows_do_not_count_as_the_models_memory() -> None:
    files = {"candidate/model.onnx": kws.model(), "baseline/model.onnx": kws.model()}
    plan = Plan(Verify(golden_samples=2), classify=True, baseline_options={})
    rows = {f"input/{kws.INPUT}": kws.data()[0][:20].astype(np.float32)}
    peaks = []
    for extra in ({}, {"ballast": np.ones(100 * 1024 * 1024, np.int8)}):
        job = worker.Job(
            "measure", Recipe("onnxruntime", "fp32"), measure=plan, files=files, arrays={**rows, **extra}
        )
        peaks.append(worker.run(job)[0]["measured"]["peak_rss_mib"])
    assert abs(peaks[0] - peaks[1]) < 20


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_scratch_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        monkeypatch.setattr("tempfile.tempdir", str(place))
        job = worker.Job("build", Recipe("onnxruntime", "fp32"), model=SourceModel(bytes(10**6), (), ()))
        with pytest.raises(SystemFault, match="No space left") as fault:
            worker.run(job)
        assert "free some space" in fault.value.hint
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", str(place)], check=True)
