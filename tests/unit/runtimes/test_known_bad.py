"""The deny-list: whom its entries meet, and that every one of them carries evidence."""

from __future__ import annotations

import pytest

from edgekit import backends, host, profile, runtimes
from edgekit.bundle.model import EngineRange
from edgekit.profile import PRECISIONS
from edgekit.runtimes._known_bad import Made, Place, entries, of_range, of_version

PI4 = Place("aarch64", ("asimd",), ("Cortex-A72",))
PI5 = Place("aarch64", ("asimd", "asimddp"), ("Cortex-A76",))
NUC = Place("x86_64", ("avx2", "avx512_vnni|avx_vnni"))
HASWELL = Place("x86_64", ("avx2", "fma"))
SATURATING = {"reduce_range": False, "session.x64quantprecision": "0"}


@pytest.mark.parametrize(
    ("engine", "precision", "options", "version", "place", "symptom"),
    [
        ("openvino", "int8", {}, "2025.4.1", PI5, "unsigned"),
        ("openvino", "int8", {}, "2026.1.0", PI4, "unsigned"),
        ("openvino", "int8", {}, "2025.2.0", PI5, ""),
        ("openvino", "fp16", {}, "2025.4.1", PI5, ""),
        ("openvino", "int8", {}, "2025.4.1", NUC, ""),
        ("openvino", "int8", {}, "2026.4.1", PI4, "do not load"),
        ("openvino", "int8", {}, "2026.4.1", PI5, ""),
        ("litert", "int8-dynamic", {}, "2.14.0", PI4, "nonsense"),
        ("litert", "int4-weights", {}, "2.14.0", PI4, "end the process"),
        ("litert", "int8-dynamic", {}, "2.3.0", PI4, ""),
        ("onnxruntime", "int8", SATURATING, "1.32.0", HASWELL, "saturate"),
        ("onnxruntime", "int8", SATURATING, "1.32.0", NUC, ""),
        ("onnxruntime", "int8", {**SATURATING, "reduce_range": True}, "1.32.0", HASWELL, ""),
        ("onnxruntime", "int8", {"reduce_range": False}, "1.32.0", HASWELL, ""),
    ],
)
def test_whom_it_meets(
    engine: str, precision: str, options: dict[str, str], version: str, place: Place, symptom: str
) -> None:
    found = of_version(Made(engine, precision, options), version, place)
    assert (found is not None) == bool(symptom)
    assert found is None or symptom in found.symptom


@pytest.mark.parametrize(
    ("minimum", "below", "bad"),
    [
        ("2025.4", "2026.4", True),
        ("2025.4.1", "2025.5", True),
        ("2025.2", "2026.4", False),
        ("2025.4", "2026.5", False),
        ("2025.4", "", False),
        ("", "2026.1", False),
    ],
)
def test_a_range_is_bad_only_when_every_version_in_it_is(minimum: str, below: str, bad: bool) -> None:
    found = of_range(Made("openvino", "int8", {}), EngineRange("openvino", minimum, below), PI5)
    assert (found is not None) is bad


def test_every_entry_names_what_exists_and_brings_evidence() -> None:
    for entry in entries():
        assert entry.engine in runtimes.names()
        assert entry.engine in backends.names()
        assert set(entry.precisions) <= set(PRECISIONS)
        assert set(entry.lacks) <= host.ISA_FEATURES
        assert any(letter.isdigit() for letter in entry.evidence)
        assert entry.symptom in entry.reason
        assert entry.remedy in entry.reason


def test_no_shipped_profile_prefers_what_is_known_to_be_bad() -> None:
    for item in profile.all_profiles().values():
        place = Place(item.hardware.architecture, item.hardware.isa, (item.hardware.cpu,))
        for target in item.target:
            for precision in target.precisions:
                told = {"reduce_range": target.reduce_range, **target.options}
                versions = EngineRange(target.runtime, target.minimum, target.below)
                assert of_range(Made(target.runtime, precision, told), versions, place) is None
