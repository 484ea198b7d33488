"""Small real bundles for tests, without the builder.

path, keys = tiny_bundle(tmp_path)
bundle = edgekit.bundle.open(path, [keys.signer.public()])
files = bundle.read(bundle.variants[0], bundle.content_key(keys.recipient))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import bundle
from edgekit.bundle.model import (
    Affine,
    Certificate,
    EngineRange,
    GateResult,
    GoldenSpec,
    Interval,
    Latency,
    Preprocessing,
    ReleaseInfo,
    TensorSpec,
    Variant,
    VariantConfig,
)
from edgekit.crypto.keys import SealingKey, SigningKey

INFO = ReleaseInfo("tiny", "1.0.0", "2026-01-01T00:00:00Z", {"note": "made by a test"})


@dataclass(frozen=True)
class Keys:
    """A builder and a recipient."""

    signer: SigningKey = field(default_factory=SigningKey.generate)
    recipient: SealingKey = field(default_factory=SealingKey.generate)


def make_config(**changes: Any) -> VariantConfig:
    """A two-class model of one (batch, 4) float input."""
    config = VariantConfig(
        variant="generic-cpu.reference.fp32",
        profile="generic-cpu",
        engine=EngineRange("reference", "1.0", ""),
        precision="fp32",
        options={"threads": 1},
        files=("model.bin",),
        inputs=(TensorSpec("x", "FP32", (-1, 4)),),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        labels=("no", "yes"),
        preprocessing=Preprocessing((Affine("x", "UINT8", 0.5, 128.0),)),
        architecture="any",
        isa=(),
        memory_forecast_mib=12.5,
    )
    return dataclasses.replace(config, **changes)


def make_certificate(variant: str, **changes: Any) -> Certificate:
    certificate = Certificate(
        variant=variant,
        metric="accuracy",
        samples=800,
        dataset_sha256="d" * 64,
        calibration_sha256="c" * 64,
        source_sha256="5" * 64,
        accuracy=Interval(0.9137, 0.8921, 0.9314),
        baseline_accuracy=Interval(0.9125, 0.8908, 0.9303),
        mcnemar_p=0.75,
        agreement=0.985,
        latency=Latency(0.21, 0.34, 0.5, 200),
        baseline_latency=Latency(0.4, 0.61, 0.8, 200),
        peak_rss_mib=42.5,
        size_bytes=81234,
        coverage={"CPUExecutionProvider": 17},
        engine="reference",
        engine_version="1.2.3",
        host_cpu="Example CPU",
        host_architecture="x86_64",
        host_isa=("avx2",),
        measured_on_target=False,
        gates=(GateResult("accuracy", True, "accuracy 0.9137 >= 0.99 x 0.9125"),),
        warnings=("latency is the host's",),
    )
    return dataclasses.replace(certificate, **changes)


def make_variant(
    config: VariantConfig | None = None,
    *,
    model: bytes = b"weights",
    files: dict[str, bytes] | None = None,
    golden: GoldenSpec | None = None,
    golden_files: dict[str, bytes] | None = None,
    **certificate: Any,
) -> Variant:
    """A variant whose every file is named `model` unless `files` gives them."""
    config = config or make_config()
    spec = golden or GoldenSpec(
        samples=2,
        inputs=tuple(dataclasses.replace(t, shape=(2, *t.shape[1:])) for t in config.inputs),
        outputs=tuple(dataclasses.replace(t, shape=(2, *t.shape[1:])) for t in config.outputs),
        max_abs_difference=0.05,
        min_reference_agreement=0.75,
    )
    samples = golden_files or {
        **{f"inputs/{t.name}": bytes(32) for t in spec.inputs},
        **{f"outputs/{t.name}": bytes(16) for t in spec.outputs},
        "reference": bytes(16),
    }
    certificate = {"engine": config.engine.name, **certificate}
    return Variant(
        config,
        make_certificate(config.variant, **certificate),
        spec,
        files if files is not None else dict.fromkeys(config.files, model),
        samples,
    )


def two_variants() -> tuple[Variant, Variant]:
    """One for any CPU, one for a Raspberry Pi."""
    pi = make_config(
        variant="raspberry-pi-5.reference.int8",
        profile="raspberry-pi-5",
        precision="int8",
        architecture="aarch64",
        isa=("asimddp",),
        files=("model.bin", "weights/part.bin"),
    )
    return make_variant(), make_variant(pi, files={"model.bin": b"int8", "weights/part.bin": b"\x01\x02"})


def tiny_bundle(
    folder: Path,
    *,
    variants: Sequence[Variant] | None = None,
    keys: Keys | None = None,
    info: ReleaseInfo = INFO,
    encrypt: bool = True,
    name: str = "tiny.edgekit",
) -> tuple[Path, Keys]:
    """Write a bundle into `folder`."""
    keys = keys or Keys()
    bundle.write(
        folder / name,
        info,
        variants or two_variants(),
        signer=keys.signer,
        recipients=[keys.recipient.public()],
        encrypt=encrypt,
    )
    return folder / name, keys
