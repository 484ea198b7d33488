"""What agent and fleet say to each other: topics, messages, states, metrics; MQTT 5 unless said.

Topics are `ek/v1/{tenant}/{device}/{channel}`. Every message is one canonical JSON document of a
dataclass below. Unknown fields are refused: a required field means a new `v` in the topic, and one with a
default is sent only where it differs from it, so that fleets are to be updated before their agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from edgekit.catalogue import LATENCY_BOUNDS_MS as LATENCY_BOUNDS_MS
from edgekit.catalogue import METRICS as METRICS
from edgekit.catalogue import MetricInfo as MetricInfo
from edgekit.codec import LATER

PREFIX = "ek/v1"
TENANT = "default"

PRESENCE = "presence"  # retained; the last will says online=false
REPORTED = "state/reported"  # retained; device -> fleet
DESIRED = "state/desired"  # retained; fleet -> device: the Desired release
JOB_NOTIFY = "job/notify"  # fleet -> device, QoS 1
JOB_UPDATE = "job/update"  # device -> fleet, QoS 1, through the durable outbox
JOB_ACK = "job/ack"  # fleet -> device: this JobUpdate is stored, forget it
TELEMETRY = "telemetry"  # device -> fleet, QoS 1, stored and forwarded
TELEMETRY_ACK = "telemetry/ack"  # fleet -> device

ASSIGNMENT_TYPE = "application/vnd.edgekit.assignment.v1+json"
"""DSSE payload type of a signed `Assignment`."""


def topic(device: str, channel: str, tenant: str = TENANT) -> str:
    """`ek/v1/{tenant}/{device}/{channel}`."""
    return f"{PREFIX}/{tenant}/{device}/{channel}"


def split_topic(name: str) -> tuple[str, str, str] | None:
    """(tenant, device, channel), or None when `name` is not ours."""
    parts = name.split("/", 4)
    if len(parts) != 5 or parts[:2] != PREFIX.split("/"):
        return None
    return parts[2], parts[3], parts[4]


class JobState(StrEnum):
    """A device's part in a rollout (names of AWS IoT JobExecution, plus ROLLED_BACK)."""

    QUEUED = "QUEUED"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    TIMED_OUT = "TIMED_OUT"
    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    ROLLED_BACK = "ROLLED_BACK"

    @property
    def terminal(self) -> bool:
        return self not in (JobState.QUEUED, JobState.IN_PROGRESS)


class Stage(StrEnum):
    """Steps of an activation, in order."""

    DOWNLOAD = "DOWNLOAD"
    VERIFY = "VERIFY"
    DECRYPT = "DECRYPT"
    PROBE = "PROBE"
    SWAP = "SWAP"
    WATCH = "WATCH"
    COMMIT = "COMMIT"
    ROLLBACK = "ROLLBACK"


@dataclass(frozen=True)
class Assignment:
    """Which device runs which release. Signed by the fleet (DSSE), so a broker cannot invent one."""

    tenant: str
    device: str
    counter: int
    """Strictly increasing per device: an older assignment is refused, a rollback is a new one."""
    job: str
    release: str
    """ "name:version" """
    bundle_digest: str
    """sha256:... of the bundle's index blob: which bundle, whatever the file around it."""
    bundle_size_bytes: int
    url_path: str
    """Where the fleet's device endpoint serves the bundle, e.g. /v1/bundles/sha256:..."""
    sealed_key: str
    """base64 of the content key, HPKE-sealed to this device (info: see crypto.sealing)."""
    deadline_s: float
    """Whole job, from notification to commit."""
    watch_s: float
    max_error_rate: float
    """In the watch window; above it the device rolls back by itself."""
    max_latency_p95_ms: float = 0.0
    """0: no limit."""


@dataclass(frozen=True)
class JobNotify:
    """A job for the device, or its cancellation."""

    job: str
    assignment: str = ""
    """DSSE envelope (JSON text) around an Assignment; empty when `cancel`."""
    cancel: bool = False


@dataclass(frozen=True)
class Desired:
    """The latest JobNotify, retained, so that a device which was away finds it."""

    notify: JobNotify


@dataclass(frozen=True)
class JobUpdate:
    job: str
    seq: int
    """Grows with each update of the device; (device, seq) is the idempotency key."""
    state: JobState
    stage: str = ""
    code: str = ""
    """Error class name, e.g. GoldenError; empty on success."""
    message: str = ""
    at: str = ""


@dataclass(frozen=True)
class JobAck:
    seq: int


@dataclass(frozen=True)
class Presence:
    online: bool
    boot: str = ""
    """Random per agent start: a late last will of an earlier connection is recognised by it."""


@dataclass(frozen=True)
class DeviceCertificate:
    """What a device measured of the variant it serves, with the bundle's golden samples, in a process of its
    own: made where the builder could not measure on the target. Accuracy is the builder's to certify."""

    release: str
    variant: str
    bundle_digest: str
    engine: str
    engine_version: str
    host_cpu: str
    host_architecture: str
    host_isa: tuple[str, ...]
    measured_on_target: bool
    """False on a device that stands for other hardware (emulated)."""
    samples: int
    """Golden samples that were repeated."""
    max_abs_difference: float
    """From the certified answers; -1: infinite."""
    reference_agreement: float
    """Share of samples with the source model's class."""
    latency_p50_ms: float
    """Of one sample."""
    latency_p95_ms: float
    latency_p99_ms: float
    runs: int
    load_ms: float
    """Load, golden samples and the first timings; an engine that compiles on the device does it here."""
    peak_rss_mib: float
    """Of a process that serves nothing else, engine and interpreter included."""
    coverage: dict[str, int]
    """Nodes per compute unit; empty when the engine cannot tell."""
    at: str
    """By the device's clock."""


@dataclass(frozen=True)
class Reported:
    version: int
    """Grows with each change (shadow version)."""
    boot: str
    agent_version: str
    profile: str
    emulated: bool
    """The host's hardware is not the profile's; hardware checks were skipped and said so."""
    architecture: str
    isa: tuple[str, ...]
    engines: dict[str, str]
    """Engine name to installed version."""
    release: str = ""
    bundle_digest: str = ""
    variant: str = ""
    previous_release: str = ""
    counter: int = 0
    endpoint: str = ""
    """Where the data plane listens on the device, for people."""
    certificate: DeviceCertificate | None = None
    """Of the variant that is served; None when the builder measured on the target."""
    notice: str = field(default="", metadata=LATER)
    """Why the device left the release that was assigned to it, for people; empty: it did not."""


@dataclass(frozen=True)
class Telemetry:
    """Metrics of one window. Values are sums and gauges named in METRICS."""

    boot: str
    seq: int
    start: str
    window_s: float
    windows: int
    """How many windows were merged into this one while offline (1: none)."""
    values: dict[str, float] = field(default_factory=dict)
    latency_buckets: tuple[int, ...] = ()
    """Counts per bucket of LATENCY_BOUNDS_MS, the last is everything above."""
    classes: dict[str, int] = field(default_factory=dict)
    """How often each label was the answer."""
    release: str = ""


@dataclass(frozen=True)
class TelemetryAck:
    boot: str
    seq: int


@dataclass(frozen=True)
class EnrollRequest:
    """Body of POST /v1/enroll: the one message that goes before MQTT, over HTTPS."""

    token: str
    """The secret, or the whole "ek1..." text around it."""
    csr_pem: str
    sealing_key_pem: str
    profile: str = ""
    device: str = ""
    """The name it would like; what the token says wins."""


@dataclass(frozen=True)
class EnrollAnswer:
    """Everything a device needs to find the fleet again and to know whom to trust."""

    device: str
    tenant: str
    certificate_pem: str
    ca_pem: str
    broker_host: str
    broker_port: int
    device_url: str
    assignment_key_pem: str
    builder_keys_pem: tuple[str, ...]
