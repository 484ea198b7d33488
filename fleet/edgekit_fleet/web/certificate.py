"""A certificate as text that a person can read; the bundle is verified again before it is shown."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from edgekit import bundle
from edgekit.bundle.model import Certificate, Interval
from edgekit.crypto.keys import VerifyKey

MAX_BYTES = 512 * 1024 * 1024
"""Larger bundles take too long to verify while a person waits for a page."""


def certificates(path: Path, trusted: list[VerifyKey]) -> dict[str, str]:
    """Text by variant. Raises BundleError (no longer trusted, damaged), OSError; {} for a large bundle."""
    status = path.stat()
    if status.st_size > MAX_BYTES:
        return {}
    return dict(_read(path, status.st_mtime_ns, tuple(key.to_pem() for key in trusted)))


@lru_cache(maxsize=64)
def _read(path: Path, _changed_ns: int, trusted: tuple[bytes, ...]) -> tuple[tuple[str, str], ...]:
    opened = bundle.open(path, [VerifyKey.from_pem(pem) for pem in trusted])
    return tuple((entry.config.variant, text(entry.certificate)) for entry in opened.variants)


def text(certificate: Certificate) -> str:
    """One line per fact, with units."""
    c = certificate
    where = "on the target" if c.measured_on_target else "on the build host, the device proves it again"
    lines = [
        ("Variant", c.variant),
        ("Metric", f"{c.metric} over {c.samples} samples"),
        ("Variant's", _interval(c.accuracy)),
        ("fp32 baseline", _interval(c.baseline_accuracy)),
        ("Agreement", f"same class as fp32 on {c.agreement:.2%}; McNemar p = {c.mcnemar_p:.3g}"),
        ("Latency", f"p50 {c.latency.p50_ms:.3f}, p95 {c.latency.p95_ms:.3f}, p99 {c.latency.p99_ms:.3f} ms"),
        ("fp32 latency", f"p50 {c.baseline_latency.p50_ms:.3f}, p95 {c.baseline_latency.p95_ms:.3f} ms"),
        ("Peak memory", f"{c.peak_rss_mib:.1f} MiB"),
        ("Model size", f"{c.size_bytes / 1000:.1f} kB"),
        ("Nodes", ", ".join(f"{n} on {unit}" for unit, n in sorted(c.coverage.items())) or "not known"),
        ("Engine", _engine(c)),
        ("Measured on", f"{c.host_cpu} ({c.host_architecture}), {where}"),
        ("CPU features", " ".join(c.host_isa) or "none known"),
        ("Dataset", f"sha256 {c.dataset_sha256}"),
        ("Calibration", f"sha256 {c.calibration_sha256}"),
        ("Source model", f"sha256 {c.source_sha256}"),
        *(("Gate", f"{'passed' if g.passed else 'FAILED'}  {g.gate}: {g.reason}") for g in c.gates),
        *((("Gate", "SKIPPED by a person (--no-gate)"),) if c.gate_skipped else ()),
        *(("Warning", warning) for warning in c.warnings),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in lines)


def _engine(certificate: Certificate) -> str:
    if certificate.stand_in:
        return f"not measured on {certificate.engine}: {certificate.stand_in} stood in"
    return f"{certificate.engine} {certificate.engine_version}"


def _interval(value: Interval) -> str:
    return f"{value.value:.4f}  (95 % confidence {value.low:.4f} to {value.high:.4f})"
