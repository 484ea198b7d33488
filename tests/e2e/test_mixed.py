"""A detector that int8 hurts is shipped by mixed precision; its report tells which layers are to blame."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks.zoo import board, fastestdet
from edgekit.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT.parent / "shared" / "data" / "fastestdet"
DECODER = f"{ROOT / 'benchmarks' / 'zoo' / 'fastestdet.py'}:boxes"

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
    pytest.mark.xdist_group("mixed"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A build of int8 for OpenVINO, without its output."""
    folder = tmp_path_factory.mktemp("fastestdet")
    fastestdet.main(MODEL, folder)
    # Not intel-nuc everywhere: 8-bit weights saturate without VNNI, which no choice of layers mends.
    found = ["build", str(MODEL / "FastestDet.onnx"), "--profile", board(), "--precision", "int8"]
    found += ["--engine", "openvino", "--metric", "f1-agreement", "--decode", DECODER]
    found += ["--calibration", f"{folder / 'calibration.npz'}[0:80]"]
    found += ["--evaluate", f"{folder / 'evaluation.npz'}[0:75]", "--cache", str(folder / "cache")]
    # No speed gate: whatever else this machine does now must not decide.
    return [*found, "--no-robustness", "--no-encrypt", "--objective", "size", "--json"]


def test_mixed_precision_gives_more_than_plain_int8(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def build(*more: str) -> dict[str, Any]:
        assert main([*more]) == 0
        return dict(json.loads(capfd.readouterr().out))

    plain = build(*words, "--effort", "quick", "--no-gate", "--output", str(tmp_path / "plain.edgekit"))
    (before,) = (one for one in plain["candidates"] if one["kept"])
    reached = before["figures"]["accuracy"]["value"]
    wanted = str(round(reached + 0.002, 4))

    found = build(*words, "--accuracy-ratio", wanted, "--output", str(tmp_path / "mixed.edgekit"))
    (kept,) = (one for one in found["candidates"] if one["kept"])
    assert kept["precision"] == "int8"
    given_back = kept["options"]["keep"].split("\n")
    assert kept["figures"]["accuracy"]["value"] >= max(0.95, reached + 0.002)
    assert {gate["gate"] for gate in kept["gates"]} == {"accuracy", "speed"}

    layers = {layer["name"]: layer["sqnr_db"] for layer in kept["layers"]}
    start = next(one for one in found["candidates"] if one["layers"] and "keep" not in one["options"])
    ranked = {layer["name"]: layer["sqnr_db"] for layer in start["layers"]}
    assert len(ranked) > 100
    assert set(ranked) - set(layers) == set(given_back)
    worst = sorted(ranked, key=lambda name: ranked[name])[: len(given_back)]
    assert set(worst) & set(given_back)

    page = tmp_path / "report.json"
    page.write_text(json.dumps(found))
    assert main(["report", str(page), "--overlay", str(tmp_path / "overlay.json")]) == 0
    overlay = json.loads((tmp_path / "overlay.json").read_text())
    assert {name: value["value"] for name, value in overlay["results"].items()} == layers
    capfd.readouterr()

    again = shlex.split(kept["reproduce"])[1:]
    again[again.index("--output") + 1] = str(tmp_path / "again.edgekit")
    repeated = build(*again, "--no-robustness", "--no-encrypt", "--json", "--no-cache")
    (one,) = repeated["candidates"]
    assert one["options"] == kept["options"]
    assert one["figures"]["size_bytes"] == kept["figures"]["size_bytes"]
    assert one["figures"]["accuracy"] == kept["figures"]["accuracy"]
