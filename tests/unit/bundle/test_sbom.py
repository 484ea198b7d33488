"""Required fields of CycloneDX 1.6 and of its model card."""

import hashlib
import re
from typing import Any

from edgekit.bundle.sbom import sbom
from tests.support.bundles import INFO, make_certificate, make_variant, two_variants

DOCUMENT: dict[str, Any] = sbom(INFO, two_variants(), "0.1.0")


def test_header() -> None:
    assert (DOCUMENT["bomFormat"], DOCUMENT["specVersion"], DOCUMENT["version"]) == ("CycloneDX", "1.6", 1)
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", DOCUMENT["serialNumber"])
    assert DOCUMENT["metadata"]["timestamp"] == INFO.created
    assert DOCUMENT["metadata"]["component"]["type"] == "machine-learning-model"


def test_every_component_has_what_the_schema_requires() -> None:
    kinds = {"machine-learning-model", "framework", "file"}
    refs = []
    for component in DOCUMENT["components"]:
        for item in (component, *component.get("components", ())):
            assert item["type"] in kinds
            assert item["name"]
            refs.append(item["bom-ref"])
    assert len(set(refs)) == len(refs)
    known = {*refs, DOCUMENT["metadata"]["component"]["bom-ref"]}
    for dependency in DOCUMENT["dependencies"]:
        assert {dependency["ref"], *dependency.get("dependsOn", ())} <= known


def test_each_variant_has_a_model_card_with_its_figures() -> None:
    models = [c for c in DOCUMENT["components"] if c["type"] == "machine-learning-model"]
    assert len(models) == 2
    for model, variant in zip(models, two_variants(), strict=True):
        card = model["modelCard"]
        metric = card["quantitativeAnalysis"]["performanceMetrics"][0]
        assert (metric["type"], metric["value"]) == ("accuracy", "0.9137")
        assert metric["confidenceInterval"] == {"lowerBound": "0.8921", "upperBound": "0.9314"}
        assert card["modelParameters"]["inputs"] == [{"format": "FP32[-1, 4]"}]
        hashes = {f["name"]: f["hashes"][0]["content"] for f in model["components"]}
        assert hashes == {n: hashlib.sha256(d).hexdigest() for n, d in variant.files.items()}


def test_limitations_name_failed_gates() -> None:
    from edgekit.bundle.model import GateResult

    gates = (GateResult("speed", False, "0.5 times as fast"),)
    variant = make_variant(gates=gates)
    assert variant.certificate == make_certificate(variant.config.variant, gates=gates, engine="reference")
    card = sbom(INFO, [variant], "0.1.0")["components"][0]["modelCard"]
    assert card["considerations"]["technicalLimitations"][:2] == [
        "gate speed failed: 0.5 times as fast",
        "not measured on the target device",
    ]


def test_it_is_deterministic_and_unique() -> None:
    assert sbom(INFO, two_variants(), "0.1.0") == DOCUMENT
    assert sbom(INFO, two_variants(), "0.1.1")["serialNumber"] != DOCUMENT["serialNumber"]
