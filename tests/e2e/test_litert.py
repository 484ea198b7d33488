"""LiteRT from the model to the device's engine: the certified answers are the answers that are served."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekit import bundle, profile, runtimes
from edgekit.build import pipeline
from edgekit.build.cache import Cache
from edgekit.build.data import Naming
from edgekit.build.request import Request
from edgekit.cli import main
from edgekit.crypto.keyring import KeyRing
from edgekit.profile import Target
from edgekit.runtimes import Array, _golden

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
SPOKEN = KWS / "kws01_eval.npz"
DATA = ROOT.parent / "shared" / "data"

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("litert")]


def test_the_keyword_spotter_is_served_as_it_was_certified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEKIT_KEYS", str(tmp_path / "keys"))
    out = tmp_path / "kws.edgekit"
    words = ["build", str(KWS / "kws_fp32.onnx"), "--profile", "raspberry-pi-3", "--engine", "litert"]
    words += ["--precision", "int8", "--calibration", f"{SPOKEN}[0:200]"]
    words += ["--evaluate", f"{SPOKEN}[200:1000]", "--labels", "y", "--json"]
    words += ["--affine", "0.5847029089927673,83", "--cache", str(tmp_path / "cache"), "-o", str(out)]
    assert main(words) == 0
    (candidate,) = json.loads(capfd.readouterr().out)["candidates"]
    assert candidate["kept"], candidate
    assert {gate["gate"] for gate in candidate["gates"]} >= {"accuracy", "error growth"}
    assert all(gate["passed"] for gate in candidate["gates"])

    ring = KeyRing(tmp_path / "keys")
    opened = bundle.open(out, [ring.verify_key()])
    key = opened.content_key(ring.sealing_key())
    (entry,) = opened.variants
    certificate = entry.certificate
    assert (certificate.engine, entry.config.precision) == ("litert", "int8")
    assert certificate.coverage["xnnpack"] >= 15
    assert entry.config.options == {"intra_threads": 1}

    # What an agent does, first with the golden samples and then with every row that was certified.
    session = runtimes.get(entry.config.engine.name).load(opened.read(entry, key), entry.config.options)
    assert _golden.check(session, entry.golden, opened.read_golden(entry, key)).max_abs_difference == 0
    with np.load(SPOKEN) as file:
        rows = (file["x"][200:].astype(np.float32) - np.float32(83)) * np.float32(0.5847029089927673)
        labels = file["y"][200:]
    (scores,) = session.run({entry.config.inputs[0].name: rows}).values()
    assert float(np.mean(scores.argmax(1) == labels)) == pytest.approx(certificate.accuracy.value)


def pictures(archive: Path, per_class: int) -> tuple[Array, Array]:
    """(n, 3, 32, 32) as resnet20 was trained, and classes; `per_class` of each."""
    images: list[Array] = []
    labels: list[int] = []
    with tarfile.open(archive) as tar:
        members = sorted((m for m in tar if m.name.endswith(".jpg")), key=lambda m: m.name)
        names = sorted({Path(m.name).parent.name for m in members})
        for place, name in enumerate(names):
            for member in [m for m in members if Path(m.name).parent.name == name][:per_class]:
                data = tar.extractfile(member)
                assert data is not None
                images.append(np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB")))
                labels.append(place)
    scaled = (np.stack(images) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return scaled.transpose(0, 3, 1, 2).astype(np.float32), np.array(labels)


def test_a_channels_first_network_in_int8(tmp_path: Path) -> None:
    """resnet20: LiteRT wants channels last, nobody outside notices."""
    rows, _ = pictures(DATA / "cifar10-jpeg" / "train_5000.tar", 10)
    np.savez(tmp_path / "calibration.npz", input=rows)
    rows, labels = pictures(DATA / "cifar10-jpeg" / "test_2000.tar", 40)
    np.savez(tmp_path / "evaluation.npz", input=rows, y=labels)
    base = profile.get("generic-cpu")
    target = Target("litert", ("int8", "int8-dynamic", "fp32"), options={"intra_threads": 1})
    request = Request(
        model=DATA / "cifar10-resnet20" / "resnet20.onnx",
        profiles=(dataclasses.replace(base, target=(target,)),),
        calibration=str(tmp_path / "calibration.npz"),
        evaluate=str(tmp_path / "evaluation.npz"),
        naming=Naming(labels="y"),
        objective="size",
    )
    report = pipeline.build(request, Cache(tmp_path / "cache"))
    by_precision = {o.candidate.recipe.precision: o for o in report.outcomes}
    for outcome in by_precision.values():
        assert outcome.accurate, outcome.error
    fp32, int8 = by_precision["fp32"].figures, by_precision["int8"].figures
    assert fp32 is not None
    assert int8 is not None
    assert fp32.accuracy.value > 0.75
    assert int8.size_bytes < 0.3 * fp32.size_bytes
    (variant,) = report.variants
    assert variant.config.inputs[0].shape == (-1, 3, 32, 32)
    session = runtimes.get("litert").load(variant.files, variant.config.options)
    served = session.run({"input": rows})["logits"].argmax(1)
    assert float(np.mean(served == labels)) == pytest.approx(variant.certificate.accuracy.value)
