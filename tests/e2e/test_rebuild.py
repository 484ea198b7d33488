"""`edgekit rebuild --verify`: the proof holds, and everything that breaks it is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import edgekit
from edgekit import bundle, cli, profile
from edgekit.build.api import Built
from edgekit.bundle.model import ReleaseInfo, Variant
from edgekit.crypto.keyring import KeyRing

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("build")]

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
MODEL, DATA = KWS / "kws_fp32.onnx", KWS / "kws01_eval.npz"
GOLDEN = ROOT / "tests" / "golden" / "v1"
CALIBRATION, EVALUATION = f"{DATA}[0:100]", f"{DATA}[200:500]"


@dataclasses.dataclass(frozen=True)
class Site:
    """A folder with keys, and a bundle of an ONNX Runtime and an OpenVINO variant."""

    folder: Path
    built: Built

    def write(self, name: str, *variants: Variant) -> Path:
        """Another bundle by the same builder."""
        path = self.folder / name
        ring = KeyRing.at()
        bundle.write(
            path, ReleaseInfo("kws", "1"), variants, signer=ring.signing_key(), recipients=[], encrypt=False
        )
        return path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("rebuild")
    head, openvino, *_ = profile.path_of("intel-nuc").read_text().split("[[target]]")
    (folder / "nuc.toml").write_text(f"{head}[[target]]{openvino}")  # without its other engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_KEYS", str(folder / "keys"))
        built = edgekit.build(
            MODEL,
            ["jetson", str(folder / "nuc.toml")],
            calibration=CALIBRATION,
            evaluate=EVALUATION,
            labels="y",
            affine=["0.5847029089927673,83"],
            precisions=["int8"],
            effort="quick",
            output=folder / "kws.edgekit",
            cache=folder / "cache",
        )
    assert {v.config.engine.name for v in built.variants} == {"onnxruntime", "openvino", "tensorrt"}
    return Site(folder, built)


@pytest.fixture(autouse=True)
def keys(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_KEYS", str(site.folder / "keys"))


def rebuild(path: Path, *words: str, model: Path = MODEL, calibration: str = CALIBRATION) -> int:
    given = ["--model", str(model), "--calibration", calibration, "--labels", "y"]
    return cli.main(["rebuild", "--verify", str(path), *given, *words])


def test_the_same_inputs_give_the_same_bytes(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    out = site.folder / "files"
    words = ("--evaluate", EVALUATION, "-o", str(out), "--json")
    assert rebuild(site.folder / "kws.edgekit", *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same"]
    assert [one["variant"] for one in told["variants"]] == [v.config.variant for v in site.built.variants]
    assert all(check["wanted"] == check["found"] for one in told["variants"] for check in one["files"])
    for variant in site.built.variants:
        written = {name: (out / variant.config.variant / name).read_bytes() for name in variant.files}
        assert written == variant.files


def test_other_bytes_are_found(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """Signed by the right builder, with the right inputs recorded, but the file is not what they give."""
    variant = next(v for v in site.built.variants if v.config.engine.name == "onnxruntime")
    data = bytearray(variant.files["model.onnx"])
    data[len(data) // 2] ^= 1
    path = site.write("edited.edgekit", dataclasses.replace(variant, files={"model.onnx": bytes(data)}))
    assert rebuild(path) == 2
    out = capsys.readouterr().out
    assert f"DIFFERS  {variant.config.variant}  model.onnx" in out
    assert "NOT the same bytes" in out


def test_other_inputs_are_refused_by_name(
    site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = site.folder / "kws.edgekit"
    other = tmp_path / "other.onnx"
    edgekit.convert(MODEL, other, cache=False)  # cleaned: the same answers, another file
    for words, said in (
        ({"calibration": f"{DATA}[0:99]"}, "calibration data"),
        ({"model": other}, "source model"),
    ):
        assert rebuild(path, **words) == 2
        err = capsys.readouterr().err
        assert f"not the build's inputs: {said}" in err
    assert rebuild(path, "--evaluate", f"{DATA}[200:499]") == 2
    assert "evaluation data" in capsys.readouterr().err
    assert cli.main(["rebuild", str(path), "--model", str(MODEL), "--calibration", CALIBRATION]) == 2
    assert "nothing to do" in capsys.readouterr().err


def test_other_tools_are_refused_by_name(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    variant = site.built.variants[0]
    path = site.write("tools.edgekit", dataclasses.replace(variant, tools={**variant.tools, "onnx": "0.9"}))
    assert rebuild(path) == 2
    assert "made with onnx 0.9, here is" in capsys.readouterr().err


def test_bundles_of_before_say_that_they_cannot(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    trust = ("--trust", str(GOLDEN / "builder.pub"))
    assert rebuild(GOLDEN / "tiny.edgekit", *trust) == 2
    assert "does not record how its variants were made" in capsys.readouterr().err
