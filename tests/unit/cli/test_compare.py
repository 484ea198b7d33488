"""`edgekit compare`, on real bundles and reports."""

import json
from pathlib import Path
from typing import Any

import pytest

from edgekit import bundle, cli
from edgekit.bundle.model import Interval, Latency, Variant
from edgekit.crypto.keys import SigningKey
from tests.support.bundles import INFO, make_config, make_variant

REPORT = Path(__file__).parents[1] / "build" / "data" / "report.json"


def variant(profile: str = "generic-cpu", model: bytes = b"weights", **certificate: Any) -> Variant:
    return make_variant(
        make_config(variant=f"{profile}.reference.fp32", profile=profile), model=model, **certificate
    )


class Shelf:
    """Bundles signed by two builders, both trusted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signers = [SigningKey.generate(), SigningKey.generate()]
        for i, signer in enumerate(self.signers):
            (folder / f"{i}.pub").write_bytes(signer.public().to_pem())

    def write(self, name: str, *variants: Variant, signer: int = 0) -> Path:
        path = self.folder / name
        bundle.write(path, INFO, variants, signer=self.signers[signer], recipients=[], encrypt=False)
        return path

    def compare(self, *words: object, capsys: pytest.CaptureFixture[str]) -> str:
        trust = [word for i in range(2) for word in ("--trust", str(self.folder / f"{i}.pub"))]
        assert cli.main(["compare", *map(str, words), *trust]) == 0
        return capsys.readouterr().out


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_bundle_beside_itself(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    path = shelf.write("a.edgekit", variant())
    text = shelf.compare(path, path, capsys=capsys)
    assert "+0.0000, equal" in text
    assert "the same bytes" in text
    assert "warning" not in text
    assert "different keys" not in text


def test_what_changed(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    first = shelf.write("a.edgekit", variant(), variant("jetson"))
    better = variant(
        model=b"other weights",
        accuracy=Interval(0.95, 0.94, 0.96),
        latency=Latency(0.105, 0.17, 0.2, 200),
        host_cpu="Another CPU",
    )
    second = shelf.write("b.edgekit", better, variant("raspberry-pi-5"), signer=1)
    found = json.loads(shelf.compare(first, second, "--json", capsys=capsys))
    assert not found["same_signer"]
    pairs = {pair["profile"]: pair for pair in found["pairs"]}
    assert list(pairs) == ["generic-cpu", "jetson", "raspberry-pi-5"]
    both = pairs["generic-cpu"]
    assert both["accuracy_change"] == pytest.approx(0.95 - 0.9137)
    assert both["beyond_intervals"]  # 0.9314 < 0.94
    assert both["files_changed"] == ["model.bin"]
    assert {f["name"]: f["ratio"] for f in both["figures"]}["latency_p50_ms"] == pytest.approx(0.5)
    assert both["caveats"] == ["timed on different CPUs: the latencies are not of the same machine"]
    assert "second" not in pairs["jetson"]
    text = shelf.compare(first, second, capsys=capsys)
    for words in ("signed by different keys", "beyond the intervals", "0.50 x", "jetson: only in the first"):
        assert words in text


def test_overlapping_intervals_decide_nothing(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    first = shelf.write("a.edgekit", variant())
    second = shelf.write("b.edgekit", variant(accuracy=Interval(0.92, 0.90, 0.94), dataset_sha256="e" * 64))
    text = shelf.compare(first, second, capsys=capsys)
    assert "+0.0063, within the intervals" in text
    assert "evaluated on different data" in text


def test_reports(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    text = shelf.compare(REPORT, REPORT, capsys=capsys)
    assert "jetson.onnxruntime.int8-s8" in text
    assert "files" not in text.replace("profiles", "")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"candidates": 3}', "not a build report"),
        (b"{", "not valid JSON"),
        (b"nonsense", "error: "),
        (b"", "error: "),
    ],
)
def test_bad_files(
    shelf: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, words: str
) -> None:
    good, bad = shelf.write("a.edgekit", variant()), tmp_path / "bad"
    bad.write_bytes(content)
    assert cli.main(["compare", str(good), str(bad), "--trust", str(tmp_path / "0.pub")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert cli.main(["compare", str(tmp_path / "absent"), str(good), "--trust", str(tmp_path / "0.pub")]) == 2
