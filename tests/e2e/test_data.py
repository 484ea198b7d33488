"""Data as people have it, from the file to the device: pictures, tables and rows from Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekit
from edgekit import bundle, cli, runtimes, toolenv
from edgekit.build import data
from edgekit.build.data import Wanted, images
from edgekit.bundle.model import Image
from edgekit.crypto.keyring import KeyRing
from edgekit.errors import DataError
from edgekit.runtimes._preprocess import to_engine
from edgekit_agent.serve import documents
from tests.unit.build import models

SHARED = Path(__file__).parents[3] / "shared" / "data"
CIFAR, RESNET = SHARED / "cifar10-jpeg", SHARED / "cifar10-resnet20" / "resnet20.onnx"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("data"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_KEYS", str(path / "keys"))
        patch.setenv("EDGEKIT_CACHE", str(path / "cache"))
        yield path


def test_a_tar_of_pictures_becomes_a_bundle_that_takes_pixels(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "resnet20.edgekit"
    given = ["--calibration", f"{CIFAR / 'train_5000.tar'}[0:100]"]
    proof = ["--evaluate", f"{CIFAR / 'test_2000.tar'}[0:400]"]
    words = ["build", str(RESNET), "--profile", "jetson", "--engine", "onnxruntime", "--precision", "int8"]
    words += ["--effort", "quick", "--image", "imagenet", "--objective", "size", "--no-encrypt", "--json"]
    assert cli.main([*words, *given, *proof, "-o", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert "--image imagenet" in told["candidates"][0]["reproduce"]
    opened = bundle.open(out, [KeyRing.at().verify_key()])
    (entry,) = opened.variants
    assert entry.config.labels[:2] == ("airplane", "automobile")
    assert entry.config.preprocessing.image == (Image("input", "NCHW", "RGB", "stretch"),)
    assert not any("evaluation rows" in one for one in entry.certificate.warnings)

    spec = entry.config.inputs[0]
    wanted = Wanted((spec,), truth="class", image=images.parse("imagenet"))
    pixels = data.read(f"{CIFAR / 'test_2000.tar'}[0:400]", wanted)
    session = runtimes.get("onnxruntime").load(opened.read(entry, None), entry.config.options)
    sent = to_engine(pixels.inputs, [spec], entry.config.preprocessing)  # as the agent does with a request
    (said,) = session.run(sent).values()
    assert pixels.truth is not None
    assert (said.argmax(1) == pixels.truth).mean() == pytest.approx(
        entry.certificate.accuracy.value, abs=0.006
    )
    (entry_of_input,) = documents.metadata("resnet20", "1", entry.config)["inputs"]
    assert entry_of_input["parameters"]["stored_datatype"] == "UINT8"
    assert entry_of_input["parameters"]["color"] == "RGB"
    assert len(entry_of_input["parameters"]["scale"]) == 3

    again = ["rebuild", "--verify", str(out), "--model", str(RESNET), *given, *proof]
    assert cli.main(again) == 0
    capsys.readouterr()
    assert cli.main([*again, "--calibration", f"{CIFAR / 'train_5000.tar'}[0:99]"]) == 2
    assert "calibration data" in capsys.readouterr().err
    assert cli.main(["bench", str(out), "--data", f"{CIFAR / 'test_2000.tar'}[0:20]", "--json"]) == 0


def test_a_variant_that_saturates_is_warned_of(folder: Path, tmp_path: Path) -> None:
    """Two large values are compared. A quarter louder, both reach the end of int8's range; fp32 has none."""
    weight = np.eye(4, 2, dtype=np.float32)
    rows = np.random.default_rng(0).uniform(0.8, 1.0, (500, 4)).astype(np.float32)
    built = edgekit.build(
        models.saved(tmp_path, models.linear(weight=weight)),
        "jetson",
        calibration=rows[:200],
        evaluate=[(row, int(row[1] > row[0])) for row in rows[200:]],
        engines=["onnxruntime"],
        precisions=["int8"],
        effort="quick",
        objective="size",
        gate=False,
    )
    certificate = built.variants[0].certificate
    found = {one.disturbance: one for one in certificate.robustness}
    assert list(found) == ["noise", "gain"]
    gain = found["gain"]
    assert gain.baseline_clean == gain.baseline == 1.0
    assert gain.clean > 0.9 > 0.7 > gain.value
    (line,) = (line for line in certificate.warnings if "hurts it more than fp32" in line)
    assert line.startswith("gain hurts it more than fp32: accuracy 0.9")
    assert f"{certificate.variant}: {line}" in built.report["warnings"]
    assert "gain hurts it more than fp32" in built.html()
    assert certificate.drift[0].outside < 0.02
    assert built.report["candidates"][0]["reproduce"] == ""  # rows from Python have no command


DIGITS = """
import sys
from sklearn.datasets import load_digits
rows = load_digits()
with open(sys.argv[1], "w") as file:
    print(*(f"p{i}" for i in range(64)), "digit", sep=",", file=file)
    for pixels, digit in zip(rows.data, rows.target):
        print(*(f"{value:g}" for value in pixels), digit, sep=",", file=file)
"""


def test_a_table_and_rows_from_python_are_the_same_data(folder: Path) -> None:
    """scikit-learn's own digits and a model trained on them, as a CSV and as a generator."""
    table = folder / "digits.csv"
    subprocess.run([str(toolenv.ensure("sklearn")), "-I", "-c", DIGITS, str(table)], check=True)
    how: dict[str, Any] = {
        "engines": ["onnxruntime"],
        "precisions": ["int8"],
        "objective": "size",
        "effort": "quick",
        "trust_source": True,
    }
    model = SHARED / "tabular" / "digits_mlp.joblib"
    by_file = edgekit.build(
        model, "jetson", calibration=f"{table}[0:300]", evaluate=f"{table}[300:900]", labels="digit", **how
    )
    values = np.loadtxt(table, np.float32, delimiter=",", skiprows=1)
    by_rows = edgekit.build(
        model,
        "jetson",
        calibration=(row[:64] for row in values[:300]),
        evaluate=[({"input": row[:64]}, int(row[64])) for row in values[300:900]],
        **how,
    )
    first, second = (built.variants[0].certificate for built in (by_file, by_rows))
    assert first.accuracy.value > 0.95
    assert (first.calibration_sha256, first.dataset_sha256) == (
        second.calibration_sha256,
        second.dataset_sha256,
    )
    assert by_rows.variants[0].files == by_file.variants[0].files
    assert by_rows.report["provenance"]["evaluation"]["name"] == "rows from Python"
    with pytest.raises(DataError, match="row 0 has no label"):
        edgekit.build(model, "jetson", calibration=values[:, :64], evaluate=values[:, :64], **how)
