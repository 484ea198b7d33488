"""`edgekit convert`, `optimize` and `bench`, the Python functions, and docs/ergonomics.md's example."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgekit
from edgekit import cli, runtimes
from edgekit.build import folder
from edgekit.errors import EdgekitError, EngineMissing, FormatError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("build")]

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
MODEL, DATA = KWS / "kws_fp32.onnx", KWS / "kws01_eval.npz"
ROWS = ["--calibration", f"{DATA}[0:60]", "--evaluate", f"{DATA}[200:400]", "--labels", "y"]
AFFINE = ["--affine", "0.5847029089927673,83"]


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("one-step")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_KEYS", str(home / "keys"))
        patch.setenv("EDGEKIT_CACHE", str(home / "cache"))
        yield home


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert cli.main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def optimized(places: Path) -> Path:
    target = places / "kws-int8"
    words = ["optimize", MODEL, "-o", target, "--precision", "int8", "--engine", "openvino", "--no-gate"]
    assert cli.main([*map(str, words), *ROWS, *AFFINE, "--profile", "generic-cpu"]) == 0
    return target


def test_convert_to_onnx_and_to_an_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "convert", MODEL, "-o", tmp_path / "clean.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "clean.onnx"))
    assert told["inputs"][0]["shape"] == [-1, 49, 10, 1]
    answer(capsys, "convert", MODEL, "-o", tmp_path / "ov", "--engine", "openvino")
    settings, files, certificate = folder.read(tmp_path / "ov")
    assert certificate is None
    row = {settings.inputs[0].name: np.ones((1, 49, 10, 1), np.float32)}
    first = runtimes.get("openvino").load(files, settings.options).run(row)
    second = (
        runtimes.get("onnxruntime").load({"model.onnx": (tmp_path / "clean.onnx").read_bytes()}, {}).run(row)
    )
    assert list(first) == list(second)
    assert all(np.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_optimize_leaves_plain_files_and_a_certificate(optimized: Path) -> None:
    settings, files, certificate = folder.read(optimized)
    assert certificate is not None
    assert (settings.engine.name, settings.precision) == ("openvino", "int8")
    assert set(files) == {"model.xml", "model.bin"}
    assert certificate.samples == 200
    assert certificate.accuracy.value > 0.85
    # A profile that does not list the engine or precision is no obstacle: one step was asked for.
    assert settings.profile == "generic-cpu"


def test_a_failing_gate_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zeros = tmp_path / "zeros.npz"
    np.savez(zeros, x=np.full((40, 49, 10, 1), 83, np.int8))
    words = ["optimize", MODEL, "-o", tmp_path / "out", "--precision", "int8", "--engine", "onnxruntime"]
    rows = ["--calibration", str(zeros), *ROWS[2:], *AFFINE, "--profile", "jetson"]
    assert cli.main([*map(str, words), *rows]) == 2
    assert "no candidate" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_bench_of_everything_that_runs(optimized: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "bench", optimized, "--baseline", MODEL)
    (one,) = told["results"]
    assert one["engine"] == "openvino"
    assert one["latency"]["runs"] >= 50
    assert sum(one["coverage"].values()) > 10
    assert told["speedups"][0] > 0
    both = answer(capsys, "bench", MODEL, "--engine", "onnxruntime", "--engine", "openvino")
    assert [one["engine"] for one in both["results"]] == ["onnxruntime", "openvino"]
    assert cli.main(["bench", str(MODEL)]) == 0
    assert "CPUExecutionProvider" in capsys.readouterr().out


def test_bench_of_what_cannot_run(
    tmp_path: Path, optimized: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for what in (tmp_path / "empty", tmp_path / "absent", DATA):
        assert cli.main(["bench", str(what)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
    with pytest.raises(EngineMissing, match="no-such-engine"):
        edgekit.bench(MODEL, engine="no-such-engine")
    evil = json.loads((optimized / folder.CONFIG).read_bytes())
    (tmp_path / folder.CONFIG).write_text(json.dumps({**evil, "files": ["../../etc/passwd"]}))
    with pytest.raises(FormatError, match="leads out"):
        edgekit.bench(tmp_path)


def test_importing_edgekit_loads_none_of_it() -> None:
    program = (
        "import sys, edgekit; dir(edgekit); print(sorted(m for m in sys.modules if m.startswith('edgekit')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['edgekit']"
    for name in ("build", "optimize", "convert", "bench", "compare", "rebuild"):
        assert callable(getattr(edgekit, name)), name
    with pytest.raises(AttributeError, match="no_such_thing"):
        edgekit.no_such_thing  # type: ignore[attr-defined]  # noqa: B018


def test_functions_raise_what_commands_print(tmp_path: Path) -> None:
    with pytest.raises(EdgekitError, match=r"absent[.]onnx"):
        edgekit.build(tmp_path / "absent.onnx", "jetson", calibration="x.npz", evaluate="x.npz")
    with pytest.raises(EdgekitError, match="jetsn"):
        edgekit.build(MODEL, "jetsn", calibration=str(DATA), evaluate=str(DATA))


def test_the_documented_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "ergonomics.md").read_text(), re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "EDGEKIT_KEYS": str(tmp_path / "keys")}
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "kws.html").read_text().startswith("<!doctype html>")
    assert "rebuilt: True" in done.stdout
