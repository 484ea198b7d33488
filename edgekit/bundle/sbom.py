"""Software bill of materials: CycloneDX 1.6 with a machine-learning model card per variant.

Source: CycloneDX specification 1.6, JSON schema (component type `machine-learning-model`, `modelCard`).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from edgekit import codec
from edgekit.bundle.model import ReleaseInfo, Variant

_NAMESPACE = uuid.UUID("5b0f5a5e-6d5c-5f6e-9b8a-0a1b2c3d4e5f")


def sbom(info: ReleaseInfo, variants: Sequence[Variant], builder_version: str) -> dict[str, Any]:
    """The document of a release. Deterministic: its serial number is a hash of its contents."""
    root = f"release/{info.name}@{info.version}"
    metadata: dict[str, Any] = {
        "component": {
            "bom-ref": root,
            "type": "machine-learning-model",
            "name": info.name,
            "version": info.version,
        },
        "tools": {
            "components": [{"type": "application", "name": "edgekit-toolkit", "version": builder_version}]
        },
    }
    if info.created:
        metadata["timestamp"] = info.created
    engines = _engines(variants)
    models = [_model(info, variant) for variant in variants]
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": metadata,
        "components": [*models, *engines],
        "dependencies": [
            {"ref": root, "dependsOn": [model["bom-ref"] for model in models]},
            *({"ref": _ref(v), "dependsOn": [_engine_ref(v)]} for v in variants),
            *({"ref": engine["bom-ref"]} for engine in engines),
        ],
    }
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, codec.to_json(document).hex())}"
    return document


def _ref(variant: Variant) -> str:
    return f"variant/{variant.config.variant}"


def _engine_ref(variant: Variant) -> str:
    return f"engine/{variant.config.engine.name}@{variant.certificate.engine_version}"


def _engines(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The engines that the variants were certified with."""
    found = {
        _engine_ref(v): {
            "bom-ref": _engine_ref(v),
            "type": "framework",
            "name": v.config.engine.name,
            "version": v.certificate.engine_version,
        }
        for v in variants
    }
    return [found[key] for key in sorted(found)]


def _model(info: ReleaseInfo, variant: Variant) -> dict[str, Any]:
    config, certificate = variant.config, variant.certificate
    properties = {
        "edgekit:profile": config.profile,
        "edgekit:engine": config.engine.name,
        "edgekit:precision": config.precision,
        "edgekit:architecture": config.architecture,
        "edgekit:source-sha256": certificate.source_sha256,
        "edgekit:calibration-sha256": certificate.calibration_sha256,
        "edgekit:evaluation-sha256": certificate.dataset_sha256,
    }
    return {
        "bom-ref": _ref(variant),
        "type": "machine-learning-model",
        "name": config.variant,
        "version": info.version,
        "modelCard": {
            "modelParameters": {
                "inputs": [{"format": _format(t.datatype, t.shape)} for t in config.inputs],
                "outputs": [{"format": _format(t.datatype, t.shape)} for t in config.outputs],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(variant)},
            "considerations": {"technicalLimitations": _limitations(variant)},
        },
        "components": [
            {
                "bom-ref": f"{_ref(variant)}/file/{name}",
                "type": "file",
                "name": name,
                "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(data).hexdigest()}],
            }
            for name, data in sorted(variant.files.items())
        ],
        "properties": [{"name": name, "value": value} for name, value in properties.items()],
    }


def _metrics(variant: Variant) -> list[dict[str, Any]]:
    certificate = variant.certificate
    rows = (
        (certificate.metric, "this variant", certificate.accuracy),
        (certificate.metric, "fp32 baseline", certificate.baseline_accuracy),
    )
    return [
        {
            "type": kind,
            "slice": part,
            "value": f"{value.value:.6g}",
            "confidenceInterval": {"lowerBound": f"{value.low:.6g}", "upperBound": f"{value.high:.6g}"},
        }
        for kind, part, value in rows
    ]


def _limitations(variant: Variant) -> list[str]:
    certificate = variant.certificate
    failed = [f"gate {g.gate} failed: {g.reason}" for g in certificate.gates if not g.passed]
    unmeasured = [] if certificate.measured_on_target else ["not measured on the target device"]
    return [*failed, *unmeasured, *certificate.warnings]


def _format(datatype: str, shape: tuple[int, ...]) -> str:
    return f"{datatype}{list(shape)}"
