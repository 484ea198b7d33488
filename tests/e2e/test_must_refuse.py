"""Variants that must not ship, each really built and run: the gate refuses it, and says the right reason.

Emulated ones: what a PC cannot show. Engines, the other architecture's wheels and the faults are real.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from edgekit import bundle, host, profile
from edgekit.build import pipeline
from edgekit.build.cache import Cache
from edgekit.build.choose import Outcome
from edgekit.build.data import Naming
from edgekit.build.request import Request
from edgekit.bundle.model import ReleaseInfo
from edgekit.crypto.keys import SigningKey
from edgekit.errors import BundleError, GateError, ProfileError
from edgekit_agent.device import Device
from edgekit_agent.prepare import fitting

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
DATA = SHARED / "kws-dscnn" / "kws01_eval.npz"
HERE = host.saturates(host.read())
"""This very host is one where 8-bit weights saturate; it needs no emulation to know."""
ZERO = 83
"""What the model takes for 0.0, as the file stores it."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("emulation"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def kws(board: profile.Profile, **changes: object) -> Request:
    plain = Request(
        model=ROOT / "examples" / "kws" / "kws_fp32.onnx",
        profiles=(board,),
        calibration=f"{DATA}[0:200]",
        evaluate=f"{DATA}[200:1000]",
        naming=Naming(labels="y"),
        affine=("0.5847029089927673,83",),
        precisions=("int8",),
        emulate_rows=30,
        effort="quick",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def board(name: str, engine: str, *, cpu: str = "", **changes: object) -> profile.Profile:
    """A profile with one target, changed."""
    plain = profile.get(name)
    first = next((t for t in plain.target if t.runtime == engine), plain.target[0])
    target = dataclasses.replace(first, runtime=engine, **changes)  # type: ignore[arg-type]
    hardware = dataclasses.replace(plain.hardware, emulate=cpu or plain.hardware.emulate)
    return dataclasses.replace(plain, target=(target,), hardware=hardware)


def refused(request: Request, cache: Cache) -> tuple[float, str]:
    """The accuracy that the refusal names, and the refusal."""
    with pytest.raises(GateError) as caught:
        pipeline.build(request, cache)
    found = re.search(r"accuracy (0\.\d{4}).* < 0\.99 x fp32's", caught.value.message)
    assert found, caught.value.message
    return float(found[1]), caught.value.message


class TestOnThisHost:
    def test_kws_with_4_bit_weights(self, cache: Cache) -> None:
        """LiteRT's: 0.885. With a scale per channel onnxruntime's keep 0.904, which is just enough."""
        four = board("generic-cpu", "litert", precisions=("int4-weights",), options={"intra_threads": 1})
        accuracy, _ = refused(kws(four, precisions=()), cache)
        assert 0.8 < accuracy < 0.9

    def test_resnet20_with_4_bit_weights(self, cache: Cache) -> None:
        four = board("generic-cpu", "onnxruntime", precisions=("int4-weights",))
        pictures = SHARED / "cifar10-jpeg"
        request = kws(
            four,
            model=SHARED / "cifar10-resnet20" / "resnet20.onnx",
            calibration=f"{pictures / 'train_5000.tar'}[0:40]",
            evaluate=str(pictures / "test_2000.tar"),
            image="imagenet",
            affine=(),
            naming=Naming(),
            precisions=(),
        )
        accuracy, _ = refused(request, cache)
        assert 0.6 < accuracy < 0.79

    def test_kws_calibrated_on_zeros(self, cache: Cache, tmp_path: Path) -> None:
        with np.load(DATA) as file:
            name = next(name for name in file.files if name != "y")
            np.savez(tmp_path / "zeros.npz", **{name: np.full_like(file[name][:100], ZERO)})
        plain = board("generic-cpu", "onnxruntime")
        accuracy, _ = refused(kws(plain, calibration=str(tmp_path / "zeros.npz")), cache)
        assert accuracy < 0.2

    @pytest.mark.parametrize(
        ("engine", "unit", "reason"),
        [
            ("openvino", "CPU/i8", r"of \d+ nodes on CPU/i8, 100% wanted; the others fell back to CPU/"),
            (
                "onnxruntime",
                "TensorrtExecutionProvider",
                r"0 of \d+ nodes on TensorrtExecutionProvider, 100% wanted; "
                r"the others fell back to CPUExecutionProvider \(\d+\)",
            ),
        ],
    )
    def test_a_silent_fallback_to_another_unit(
        self, cache: Cache, engine: str, unit: str, reason: str
    ) -> None:
        wanted = board("generic-cpu", engine, unit=unit, options={"intra_threads": 1})
        wanted = dataclasses.replace(
            wanted, budget=dataclasses.replace(wanted.budget, min_coverage=1.0, accuracy_ratio=0.9)
        )
        with pytest.raises(GateError, match=reason):
            pipeline.build(kws(wanted), cache)


@pytest.mark.arm
class TestOnTheTarget:
    def test_openvino_2025_4_with_unsigned_activations(self, cache: Cache) -> None:
        old = board("rpi5", "openvino", minimum="2025.4", below="2025.5", activation="u8")
        with pytest.raises(ProfileError, match=r"known to be bad.*0\.16 to 0\.19.*issue 34673"):
            pipeline.build(kws(old, emulate=True), cache)
        accuracy, reason = refused(kws(old, emulate=True, try_known_bad=True), cache)
        assert accuracy < 0.4
        assert "on an emulated cortex-a76 (qemu " in reason

    def test_litert_on_bad_silicon(self, cache: Cache) -> None:
        silicon = board("rpi4", "litert", cpu="max")
        with pytest.raises(ProfileError, match="SME"):
            pipeline.build(kws(silicon, emulate=True), cache)
        accuracy, reason = refused(kws(silicon, emulate=True, try_known_bad=True), cache)
        assert accuracy < 0.3
        assert "on an emulated max (qemu " in reason
        fine = pipeline.build(kws(board("rpi4", "litert"), emulate=True), cache)
        assert fine.variants[0].certificate.emulated.startswith("cortex-a72")

    @pytest.fixture(scope="class")
    def saturating(self) -> profile.Profile:
        """8-bit weights, without the exact kernels that edgekit's engine asks for by itself."""
        options = {"intra_threads": 1, "session.x64quantprecision": "0"}
        return board("x86-haswell", "onnxruntime", reduce_range=False, options=options)

    def test_saturation_is_seen_and_the_remedy_taken(self, cache: Cache, saturating: profile.Profile) -> None:
        """The same file passes on a host that has VNNI."""
        request = kws(saturating, emulate=True, try_known_bad=True, effort="normal", objective="size")
        made = pipeline.build(request, cache)
        first, second = made.outcomes[:2]
        assert not _is_seven_bit(first)
        assert re.search(r"accuracy 0\.[0-4]\d+" + " on an emulated Haswell" * (not HERE), first.reason)
        assert first.figures is not None
        assert first.measurement is not None
        assert (first.figures.host_gap > 0.5) is not HERE
        assert second.kept
        assert _is_seven_bit(second)
        assert made.variants[0].certificate.emulated.startswith("Haswell") is not HERE
        assert ("this host answers otherwise" in first.reason) is not HERE
        # Left alone, edgekit's engine asks for exact kernels there: the same 8-bit file is right.
        alone = board("x86-haswell", "onnxruntime", reduce_range=False, options={"intra_threads": 1})
        exact = pipeline.build(dataclasses.replace(request, profiles=(alone,)), cache)
        assert exact.outcomes[0].kept
        assert not _is_seven_bit(exact.outcomes[0])
        assert exact.outcomes[0].measurement is not None
        assert exact.outcomes[0].measurement.files == first.measurement.files
        # Without asking for it again the deny-list spares the attempt.
        spared = pipeline.build(dataclasses.replace(request, try_known_bad=False), cache)
        assert [o.kept for o in spared.outcomes] == [True]
        assert any("int8-u8 not tried" in note and "saturate" in note for note in spared.notes)

    def test_a_device_avoids_what_is_known_to_saturate_there(
        self, cache: Cache, saturating: profile.Profile, tmp_path: Path
    ) -> None:
        """Built on a host with VNNI it looks fine; the device knows better, before it loads it."""
        request = kws(saturating, try_known_bad=True, objective="size")
        made = pipeline.build(dataclasses.replace(request, gate=not HERE), cache)
        key = SigningKey.generate()
        bundle.write(
            tmp_path / "a.edgekit",
            ReleaseInfo("a", "1"),
            made.variants,
            signer=key,
            recipients=(),
            encrypt=False,
        )
        opened = bundle.open(tmp_path / "a.edgekit", [key.public()])
        engines = {"onnxruntime": made.variants[0].certificate.engine_version}
        old = Device("d", "t", "x86-haswell", False, "x86_64", ("avx2", "fma"), engines)
        with pytest.raises(BundleError, match=r"no variant is right on this device.*0\.11 right"):
            fitting(opened, old)
        new = dataclasses.replace(old, isa=("avx2", "avx512_vnni", "fma"))
        assert len(fitting(opened, new)) == 1


def _is_seven_bit(outcome: Outcome) -> bool:
    return outcome.candidate.recipe.options["reduce_range"] is True
