import pytest

from edgekit import bundle
from edgekit.bundle.model import EngineRange
from edgekit.errors import BundleError
from tests.support.bundles import INFO, Keys, make_config, make_variant

KEYS = Keys()
VARIANTS = (
    make_config(variant="any", profile="generic-cpu", engine=EngineRange("reference")),
    make_config(
        variant="pi.ov",
        profile="raspberry-pi-5",
        architecture="aarch64",
        isa=("asimddp",),
        engine=EngineRange("openvino", "2025.2", "2027"),
    ),
    make_config(
        variant="pi.ort",
        profile="raspberry-pi-5",
        architecture="aarch64",
        isa=("asimddp",),
        engine=EngineRange("onnxruntime", "1.23", ""),
    ),
    make_config(
        variant="vnni",
        profile="intel-nuc",
        architecture="x86_64",
        isa=("avx2", "avx512_vnni|avx_vnni"),
        engine=EngineRange("onnxruntime", "1.23", ""),
    ),
    make_config(
        variant="haswell",
        profile="x86-haswell",
        architecture="x86_64",
        isa=("avx2",),
        engine=EngineRange("onnxruntime", "1.23", ""),
    ),
)
BUNDLE = bundle.open(
    bundle.to_bytes(
        INFO, [make_variant(c) for c in VARIANTS], signer=KEYS.signer, recipients=[], encrypt=False
    )[0],
    [KEYS.signer.public()],
)
ALL = {"onnxruntime": "1.23.2", "openvino": "2025.4.1-20426-82bbf0292c5", "reference": "1"}


def _names(*args: object, **more: bool) -> list[str]:
    found = bundle.select(BUNDLE.variants, *args, **more)  # type: ignore[arg-type]
    return [entry.config.variant for entry in found]


def test_the_profile_comes_first_in_the_builders_order() -> None:
    assert _names("raspberry-pi-5", "aarch64", ("asimddp", "neon"), ALL) == ["pi.ov", "pi.ort", "any"]


def test_without_the_profile_the_most_specific_comes_first() -> None:
    assert _names("my-board", "x86_64", ("avx2", "avx_vnni"), ALL) == ["vnni", "haswell", "any"]
    assert _names("my-board", "x86_64", ("avx2",), ALL) == ["haswell", "any"]
    assert _names("my-board", "armv7l", (), ALL) == ["any"]


def test_engines_must_be_installed_and_in_range() -> None:
    assert _names("raspberry-pi-5", "aarch64", ("asimddp",), {"openvino": "2025.2"}) == ["pi.ov"]
    with pytest.raises(BundleError) as caught:
        _names("raspberry-pi-5", "aarch64", ("asimddp",), {"openvino": "2027.0", "onnxruntime": "1.22.9"})
    for reason in (
        "any: engine reference is not installed",
        "pi.ov: needs openvino >= 2025.2 and < 2027, installed is 2027.0",
        "pi.ort: needs onnxruntime >= 1.23, installed is 1.22.9",
        "vnni: needs x86_64, this is aarch64",
    ):
        assert reason in caught.value.message
    assert "raspberry-pi-5" in caught.value.message


def test_an_emulated_device_skips_the_hardware_of_its_own_profile_only() -> None:
    assert _names("raspberry-pi-5", "x86_64", ("avx2",), ALL, emulated=True) == [
        "pi.ov",
        "pi.ort",
        "haswell",
        "any",
    ]
    assert _names("raspberry-pi-5", "x86_64", (), ALL) == ["any"]


@pytest.mark.parametrize(
    ("version", "minimum", "below", "fits"),
    [
        ("1.20", "1.20.0", "", True),
        ("1.20.0", "1.20", "1.20.1", True),
        ("1.9", "1.10", "", False),
        ("2025.2.0-19140-c01cd93e24d", "2025.2", "2025.3", True),
        ("1.23.0rc1", "1.23", "", True),
        ("2.0", "", "2", False),
        ("unknown", "", "", True),
        ("unknown", "1", "", False),
    ],
)
def test_version_ranges(version: str, minimum: str, below: str, fits: bool) -> None:
    assert bundle.in_range(version, EngineRange("e", minimum, below)) is fits
