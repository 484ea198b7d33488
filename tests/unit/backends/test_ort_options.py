"""The `.ort` format, every way to find ranges, and what the quantizer says when it cannot."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgekit import backends, runtimes
from edgekit.backends import Recipe
from edgekit.errors import EngineError
from edgekit.profile import CalibrationPolicy, Target
from tests.support import transformer
from tests.unit.backends.test_recipes import calibration
from tests.unit.backends.test_recipes import model as keyword_spotter
from tests.unit.runtimes import kws

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("backends")]
BACKEND = backends.get("onnxruntime")
ORT = Target("onnxruntime", ("fp32", "int8"), format="ort")


@pytest.mark.parametrize(("precision", "operator"), [("fp32", "FusedConv"), ("int8", "QLinearConv")])
def test_ort_format_answers_as_onnx_does(precision: str, operator: str) -> None:
    recipe = next(iter(BACKEND.recipes(precision, ORT, CalibrationPolicy())))
    assert recipe.name.endswith("format.ort")
    files = BACKEND.build(keyword_spotter(), recipe, calibration())
    assert set(files) == {"model.ort", "required_operators.config"}
    assert files["model.ort"][4:8] == b"ORTM"
    assert files == BACKEND.build(keyword_spotter(), recipe, calibration())

    plain = Recipe("onnxruntime", precision, {k: v for k, v in recipe.options.items() if k != "format"})
    same = BACKEND.build(keyword_spotter(), plain, calibration())
    engine = runtimes.get("onnxruntime")
    ours, theirs = (engine.load(made, {"intra_threads": 1}).run(calibration()) for made in (files, same))
    assert np.allclose(ours[kws.OUTPUT], theirs[kws.OUTPUT], atol=2e-6 if precision == "fp32" else 0.02)

    lines = files["required_operators.config"].decode().splitlines()
    assert all(re.fullmatch(r"[\w.]+;\d+;.+", line) for line in lines), "domain;opset;operators and types"
    assert any(re.search(rf"\b{operator}\b", line) for line in lines)
    assert not any("edgekit" in line or "tmp" in line for line in lines)


@pytest.mark.parametrize("method", ["minmax", "average", "percentile", "entropy"])
def test_every_method_finds_ranges(method: str, capsys: pytest.CaptureFixture[str]) -> None:
    policy = CalibrationPolicy(method="entropy" if method == "entropy" else "minmax")
    offered = BACKEND.recipes("int8", Target("onnxruntime", ("int8",)), policy)
    recipe = next(one for one in offered if one.options["method"] == method)
    files = BACKEND.build(keyword_spotter(), recipe, calibration())
    assert capsys.readouterr().out == ""
    session = runtimes.get("onnxruntime").load(files, {"intra_threads": 1})
    fp32 = kws.session("onnxruntime", intra_threads=1)
    same = session.run(calibration())[kws.OUTPUT].argmax(1) == fp32.run(calibration())[kws.OUTPUT].argmax(1)
    assert same.mean() >= 0.95


def test_calibration_that_fails_is_one_line() -> None:
    """Here for rows of another length; MiniLM's attention masks make it "Too many bins for data range"."""
    options: dict[str, str | int | float | bool] = {
        "activation": "u8",
        "reduce_range": False,
        "method": "entropy",
    }
    recipe = Recipe("onnxruntime", "int8", options, needs_calibration=True)
    with pytest.raises(EngineError) as caught:
        BACKEND.build(transformer.model(), recipe, {"ids": np.full((4, 3), 1, np.int64)})
    assert caught.value.message.startswith("onnxruntime.int8-u8-entropy: ")
    assert "\n" not in caught.value.message
