"""What a device counts, under the names that telemetry and /metrics share."""

from __future__ import annotations

from dataclasses import dataclass

LATENCY_BOUNDS_MS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


@dataclass(frozen=True)
class MetricInfo:
    """One measured quantity: Prometheus name, unit, kind and help."""

    name: str
    unit: str
    kind: str
    help: str


METRICS = (
    MetricInfo("edgekit_requests_total", "requests", "counter", "Inference requests answered"),
    MetricInfo("edgekit_request_errors_total", "requests", "counter", "Requests that failed in the server"),
    MetricInfo("edgekit_rejected_total", "requests", "counter", "Requests refused as the client's mistake"),
    MetricInfo("edgekit_inferences_total", "samples", "counter", "Samples inferred"),
    MetricInfo("edgekit_latency_ms", "ms", "histogram", "Time from request read to answer written"),
    MetricInfo("edgekit_serving_restarts_total", "restarts", "counter", "Times serving came back"),
    MetricInfo("edgekit_rss_mib", "MiB", "gauge", "Resident memory of the serving process"),
    MetricInfo(
        "edgekit_input_drift_psi", "", "gauge", "How far inputs are from the reference (stability index)"
    ),
    MetricInfo(
        "edgekit_output_drift_psi", "", "gauge", "How far answers are from the reference (stability index)"
    ),
    MetricInfo("edgekit_drift_samples_total", "samples", "counter", "Samples held against the reference"),
    MetricInfo("edgekit_release_info", "", "gauge", "1, labelled with the release that is served"),
)
