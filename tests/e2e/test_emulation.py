"""Certificates that hold on the target: real engines on emulated CPUs, in systems made for the purpose."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit import host, profile
from edgekit.build import emulate, pipeline
from edgekit.build.cache import Cache
from edgekit.build.data import Naming
from edgekit.build.emulate import _machine, _sysroot
from edgekit.build.progress import Silent
from edgekit.build.request import Request
from edgekit.bundle.model import EngineRange
from edgekit.cli import main
from edgekit.errors import DataError, SystemFault

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
DATA = ROOT.parent / "shared" / "data" / "kws-dscnn" / "kws01_eval.npz"

pytestmark = [
    pytest.mark.arm,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("emulation"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def kws(profiles: tuple[profile.Profile, ...], **changes: object) -> Request:
    plain = Request(
        model=KWS / "kws_fp32.onnx",
        profiles=profiles,
        calibration=f"{DATA}[0:200]",
        evaluate=f"{DATA}[200:1000]",
        naming=Naming(labels="y"),
        affine=("0.5847029089927673,83",),
        engines=("onnxruntime",),
        precisions=("int8",),
        emulate=True,
        emulate_rows=100,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_int8_on_a_raspberry_pi_4_is_bit_exact_and_ships_with_its_cpu(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pipeline.build(kws((profile.get("rpi4"),)), cache)
    (variant,) = made.variants
    certificate = variant.certificate
    assert certificate.emulated.startswith("cortex-a72 (qemu ")
    assert (certificate.emulated_samples, certificate.samples) == (100, 800)
    assert not certificate.measured_on_target
    assert any("100 rows come from an emulated cortex-a72" in text for text in certificate.warnings)
    (outcome,) = [o for o in made.outcomes if o.kept]
    assert outcome.measurement is not None
    # Only fp32, the baseline, differs, and by rounding: signed int8 gives the same bits on both CPUs.
    assert outcome.figures is not None
    assert outcome.figures.host_gap < 1e-5
    plain = pipeline.build(kws((profile.get("rpi4"),), emulate=False), cache)
    (here,) = [o for o in plain.outcomes if o.kept]
    assert here.measurement is not None
    for name, answers in outcome.measurement.outputs.items():
        assert np.array_equal(answers, here.measurement.outputs[name])
    assert certificate.accuracy == plain.variants[0].certificate.accuracy
    assert plain.variants[0].certificate.emulated == ""
    # The second time nothing is emulated, nothing is fetched.
    monkeypatch.setattr(emulate.Machine, "run", None)
    again = pipeline.build(kws((profile.get("rpi4"),)), cache)
    assert again.variants[0].certificate == certificate


def test_a_32_bit_board_runs_its_own_older_engine(cache: Cache) -> None:
    """tflite-runtime with Debian's NumPy 1, where the host has ai-edge-litert: another engine, so judged."""
    made = pipeline.build(kws((profile.get("rpi3"),), engines=("litert",), emulate_rows=50), cache)
    certificate = made.variants[0].certificate
    assert certificate.emulated.startswith("cortex-a7 (qemu ")
    assert certificate.engine_version == "2.14.0"
    assert certificate.emulated_samples == 50


def test_a_furnished_folder_is_recognised_as_the_board(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "jetson", "x86-haswell"):
        board = profile.get(name)
        for path, text in emulate.board(board).items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(text)
        machine = board.hardware.architecture
        words = ["profile", "detect", "--root", str(tmp_path / name), "--machine", machine, "--json"]
        assert main(words) == 0
        found = json.loads(capfd.readouterr().out)
        assert found["matches"] == name
        assert found["host"]["cores"] == board.hardware.cores
        assert found["host"]["ram_mib"] == board.hardware.ram_mib


def test_a_system_that_was_interrupted_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_SYSROOTS", str(tmp_path))
    lock = _sysroot.lock_for(EngineRange("onnxruntime"), "aarch64")
    assert lock is not None
    made = _sysroot.ensure(lock, Silent())
    (made.site / ".complete").unlink()
    shutil.rmtree(made.site / "onnxruntime")
    again = _sysroot.ensure(lock, Silent())
    assert (again.site / "onnxruntime" / "__init__.py").is_file()
    assert list(tmp_path.glob("*.python")) == []


def test_rows_that_would_take_too_long_are_refused_with_the_number_that_fits(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_machine, "BUDGET_S", 0.01)
    with pytest.raises(DataError, match=r"a row takes \d+\.\d s on the emulated CPU, 90 rows") as caught:
        pipeline.build(kws((profile.get("rpi5"),), emulate_rows=90), cache)
    assert caught.value.hint == "--emulate-rows 1"


def test_setup_makes_what_a_profile_needs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["setup", "--emulate", "rpi4", "--emulate", "generic-cpu", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "rpi4": "ready to be emulated",
        "generic-cpu": "generic-cpu: this host will do",
    }


def test_without_the_emulator_the_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemFault, match=r"qemu-aarch64-static is not installed") as caught:
        pipeline.build(kws((profile.get("rpi4"),)), Cache(None))
    assert caught.value.hint == "apt-get install qemu-user-static mmdebstrap"


def test_only_what_this_host_is_not_is_emulated() -> None:
    vnni = dataclasses.replace(host.read(), architecture="x86_64", isa=("avx2", "fma", "avx512_vnni"))
    old = dataclasses.replace(vnni, isa=("avx2", "fma"))
    needed = {name: emulate.needed(profile.get(name), vnni) for name in ("rpi4", "nuc", "x86-haswell")}
    assert needed == {"rpi4": True, "nuc": False, "x86-haswell": True}
    assert not emulate.needed(profile.get("x86-haswell"), old)
    assert not emulate.needed(profile.get("generic-cpu"), old)
