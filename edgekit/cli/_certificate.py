"""A certificate in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from edgekit.bundle import VariantEntry
from edgekit.bundle.model import Certificate, Drift, Interval, Reference, Serving, Training
from edgekit.cli._output import kib


def text(entry: VariantEntry) -> str:
    """What was measured, on what, and what it is worth."""
    return "\n".join(_lines(entry))


def _lines(entry: VariantEntry) -> Iterator[str]:
    c, config = entry.certificate, entry.config
    yield f"Certificate of {c.variant}"
    yield ""
    yield (
        f"  A {config.precision} model for {config.profile} ({config.architecture}"
        f"{', ' + ' '.join(config.isa) if config.isa else ''}), run by "
        f"{' '.join((c.engine, *c.engine_version.split()))}."
    )
    if c.stand_in:
        yield f"  NOT MEASURED ON {c.engine}: every figure below is of {c.stand_in} on the same graph."
    yield (
        f"  On {c.samples} evaluation samples its {c.metric} is {_interval(c.accuracy)}; "
        f"the fp32 model on the same engine reaches {_interval(c.baseline_accuracy)}."
    )
    yield f"  Both give the same answer for {c.agreement:.1%} of the samples; {_mcnemar(c)}."
    yield (
        f"  One inference takes {c.latency.p50_ms:.3g} ms (95 % below {c.latency.p95_ms:.3g} ms, "
        f"99 % below {c.latency.p99_ms:.3g} ms, {c.latency.runs} runs); "
        f"fp32 takes {c.baseline_latency.p50_ms:.3g} ms{_ratio(c)}."
    )
    yield f"  It is {kib(c.size_bytes)} large and needed {c.peak_rss_mib:.1f} MiB of memory at its peak."
    if c.coverage:
        yield f"  Its nodes ran on {', '.join(f'{unit}: {n}' for unit, n in sorted(c.coverage.items()))}."
    yield f"  Measured on {c.host_cpu or 'an unnamed CPU'} ({c.host_architecture})."
    if c.serving:
        yield f"  {_serving(c.serving)}"
    if c.emulated:
        whole = "the answers" if c.emulated_samples == c.samples else f"{c.emulated_samples} of the answers"
        yield f"  An emulated {c.emulated} gave {whole}, and the golden samples; it says nothing about speed."
    if c.baseline_sha256:
        yield f"  fp32 is another model here, {c.baseline_sha256[:16]}: the original of this one."
    if c.training:
        yield f"  {_training(c.training)}"
    yield (
        f"  Source model {c.source_sha256[:16]}, calibration data {c.calibration_sha256[:16] or 'none'}, "
        f"evaluation data {c.dataset_sha256[:16]}."
    )
    golden = entry.golden
    yield (
        f"  A device proves it with {golden.samples} golden samples: outputs within "
        f"{golden.max_abs_difference:g}, same class as the source model for at least "
        f"{golden.min_reference_agreement:.0%}."
    )
    yield from _robustness(c)
    yield from (f"  {_drift(one)}" for one in c.drift)
    if c.reference:
        yield f"  {_reference(c.reference)}"
    yield ""
    yield "  Gates"
    for gate in c.gates:
        yield f"    {'passed' if gate.passed else 'FAILED'}  {gate.gate}: {gate.reason}"
    if not c.gates:
        yield "    none was asked for"
    if found := warnings(c):
        yield ""
        yield "  Warnings"
        yield from (f"    {warning}" for warning in found)


def _serving(found: Serving) -> str:
    threads = {0: "", 1: " with one thread"}.get(found.threads, f" with {found.threads} threads")
    joined = f"up to {found.batch} in {found.batch_ms:.3g} ms" if found.batch > 1 else "not joined"
    return (
        f"Such a machine ({found.cores} cores) serves it{threads}; a run takes {found.run_ms:.3g} ms, and "
        f"requests are {joined}."
    )


def _training(made: Training) -> str:
    losses = f", loss {made.losses[0]:.4g} to {made.losses[-1]:.4g}" if made.losses else ""
    return (
        f"The source model says that it was made from {made.parent_sha256[:16]}: {'; '.join(made.methods)} "
        f"({made.epochs} epochs, seed {made.seed}{losses})."
    )


def _robustness(c: Certificate) -> Iterator[str]:
    for one in c.robustness:
        yield (
            f"  With {one.disturbance} its {c.metric} goes from {one.clean:.4f} to {one.value:.4f}, fp32's "
            f"from {one.baseline_clean:.4f} to {one.baseline:.4f} ({one.samples} rows)."
        )


def _drift(one: Drift) -> str:
    column = f", column {one.column} the most" if one.column >= 0 else ""
    return (
        f"Of the evaluation rows' {one.input!r} {one.outside:.1%} lie outside the calibrated range "
        f"(population stability index {one.psi:.2f}{column})."
    )


def _reference(found: Reference) -> str:
    answers = "their classes" if found.classes else "their answers" if found.outputs else ""
    inputs = ", ".join(repr(name) for name in dict.fromkeys(one.tensor for one in found.inputs))
    what = " and ".join(filter(None, (inputs, answers)))
    return f"Devices hold requests against the distribution of {found.rows} evaluation rows: {what}."


def warnings(certificate: Certificate) -> list[str]:
    """What a reader must know before trusting the figures."""
    found = list(certificate.warnings)
    told = certificate.emulated or any("not measured on the target" in one for one in found)
    if not certificate.measured_on_target and not told:
        found.insert(0, "not measured on the target: latency and memory are the host's, a device decides")
    if certificate.gate_skipped:
        found.insert(0, "a failing gate was overridden (--no-gate): this variant should not be rolled out")
    return found


def _interval(value: Interval) -> str:
    return f"{value.value:.4f} (95 % confidence {value.low:.4f} to {value.high:.4f})"


def _mcnemar(certificate: Certificate) -> str:
    if certificate.mcnemar_p < 0.05:
        return f"the difference is statistically significant (McNemar p = {certificate.mcnemar_p:.2g})"
    return f"no significant difference was found (McNemar p = {certificate.mcnemar_p:.2g})"


def _ratio(certificate: Certificate) -> str:
    if certificate.latency.p50_ms <= 0:
        return ""
    return f", {certificate.baseline_latency.p50_ms / certificate.latency.p50_ms:.2f} times as long"
