"""What supervisor and serving process say to each other over their socket pair (see ipc.py).

Every question has an `id` of the asker's choice; its answer carries the same. File descriptors travel
beside a message in the order in which the message names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from edgekit.bundle.model import GoldenSpec, Reference, VariantConfig
from edgekit.errors import ConfigError


@dataclass(frozen=True)
class Pacing:
    """What is known of a release's runs on this device; see runtimes/_pace.py."""

    run_ms: float
    batch: int
    batch_ms: float
    settled: bool = True
    """False: joined runs have not been tried yet."""
    engine_version: str = ""
    """That it was measured with; empty: by a serving process, which has no other."""


@dataclass(frozen=True)
class Load:
    """Serve this variant. Carries one sealed memfd per name, `files` first, then `golden_files`."""

    id: int
    name: str
    """The release's name: the model's name for clients."""
    version: str
    config: VariantConfig
    golden: GoldenSpec
    files: tuple[str, ...]
    golden_files: tuple[str, ...]
    replace: bool = False
    """Close the old release before the new one is loaded: for devices whose memory cannot hold both.
    Until it is loaded requests get 503, and after a failure nothing is served."""
    announce_s: float = 0.0
    """With `replace`: readiness is taken back so long before the old release ends."""
    certify: bool = False
    """Measure it as well; only a probe's memory is the variant's alone."""
    proven: Pacing | None = None
    """`Loaded.pacing` of an earlier load of the same sealed memory: one golden sample is then enough, for
    clients wait. None: prove it."""
    advice: Pacing | None = None
    """What the builder measured on a machine of this kind; believed if the golden samples take as long."""
    memory_mib: float = 0.0
    """Most memory that the process may have with it; beyond that, and a quarter more, allocations fail.
    0: no bound."""
    restarts: int = 0
    """Times that serving came back, for edgekit_serving_restarts_total."""
    reference: Reference | None = None
    """What requests are held against; see serve/sketch.py."""
    slot: int = 0
    """0: the device's release. Others stand beside it, each in a slot of its own; they are loaded first."""
    lazy: bool = False
    """Beside the device's release only: load it when the first request comes. It has to be `proven`."""

    @property
    def release(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Measured:
    """Of one golden sample at a time, on this device."""

    engine_version: str
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    runs: int
    peak_rss_mib: float
    coverage: dict[str, int]


@dataclass(frozen=True)
class Loaded:
    """Answer to Load. When not `ok`, what was served before is still served (unless `replace`)."""

    id: int
    ok: bool
    code: str = ""
    """Error class name, e.g. "GoldenError"; empty when ok."""
    message: str = ""
    hint: str = ""
    samples: int = 0
    """Golden samples that were repeated."""
    max_abs_difference: float = 0.0
    """-1: infinite (JSON has no infinity)."""
    reference_agreement: float = 0.0
    run_ms: float = 0.0
    """Median time of one golden sample on this device."""
    pacing: Pacing | None = None
    load_ms: float = 0.0
    """Load, warm-up and golden check together."""
    rss_mib: float = 0.0
    measured: Measured | None = None
    """When it was asked for."""


@dataclass(frozen=True)
class Survey:
    """Say which of these engines work here. Answered with one Found for each, in this order."""

    id: int
    engines: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    id: int
    engine: str
    version: str
    """Empty: it is not installed, or it does not work."""


@dataclass(frozen=True)
class Warm:
    """Import this engine now, so that a later Load finds it there."""

    id: int
    engine: str


@dataclass(frozen=True)
class Warmed:
    id: int
    ok: bool


@dataclass(frozen=True)
class Unload:
    """Serve nothing: requests get 503."""

    id: int


@dataclass(frozen=True)
class Unloaded:
    id: int


@dataclass(frozen=True)
class StatsRequest:
    id: int


@dataclass(frozen=True)
class ReleaseStats:
    """Counters since this serving process started, of one release ("" while nothing was served)."""

    release: str
    requests: int
    """Inference requests answered, with whatever status."""
    errors: int
    """Of those, answered 5xx: engine failures, overload, nothing loaded."""
    rejected: int
    """Of those, answered 4xx: the client's mistake."""
    inferences: int
    """Samples inferred."""
    latency_buckets: tuple[int, ...]
    """Successful requests per bucket of catalogue.LATENCY_BOUNDS_MS; the last is everything above."""
    latency_sum_ms: float
    classes: dict[str, int]
    """How often each label was the answer (argmax of the first output)."""
    sketched: int = 0
    """Samples that were held against the reference; see serve/sketch.py."""
    input_psi: float | None = None
    """How far the worst input is from it now; None: not known."""
    output_psi: float | None = None


@dataclass(frozen=True)
class Stats:
    id: int
    serving: str
    """Release that answers now, "name:version"; empty when none."""
    rss_mib: float
    in_flight: int
    """Inference requests that are queued or running."""
    connections: int
    uptime_s: float
    releases: tuple[ReleaseStats, ...]
    """The current one and a few before it."""


@dataclass(frozen=True)
class Ping:
    id: int


@dataclass(frozen=True)
class Pong:
    """The event loop turns; `oldest_run_s` tells whether the engine does too."""

    id: int
    in_flight: int
    oldest_run_s: float
    """Age of the longest running inference; 0 when none runs."""
    requests: int = 0
    """Inference requests answered since this process started."""


@dataclass(frozen=True)
class Drain:
    """Take no new connection, answer what is begun, then answer with Drained."""

    id: int
    timeout_s: float = 10.0
    grace_s: float = 0.0
    """Kept connections get one more answer, which says that it is the last, for so long; idle ones are
    closed afterwards. Somebody else accepts meanwhile."""
    abandon: bool = False
    """Do not wait for the engine: what is begun is answered with an error."""
    last: bool = False
    """Nobody accepts afterwards: connections that wait to be accepted are served, later ones refused."""


@dataclass(frozen=True)
class Drained:
    id: int
    clean: bool
    """False: some request was still running after `timeout_s`."""


@dataclass(frozen=True)
class Shutdown:
    """Exit with status 0 at once; there is no answer but the closed socket."""

    id: int


Message: TypeAlias = (
    Load
    | Loaded
    | Survey
    | Found
    | Warm
    | Warmed
    | Unload
    | Unloaded
    | StatsRequest
    | Stats
    | Ping
    | Pong
    | Drain
    | Drained
    | Shutdown
)

TYPES: dict[str, type[Message]] = {
    cls.__name__: cls
    for cls in (
        Load,
        Loaded,
        Survey,
        Found,
        Warm,
        Warmed,
        Unload,
        Unloaded,
        StatsRequest,
        Stats,
        Ping,
        Pong,
        Drain,
        Drained,
        Shutdown,
    )
}


def descriptors(message: Message) -> int:
    """How many file descriptors travel with `message`."""
    return len(message.files) + len(message.golden_files) if isinstance(message, Load) else 0


def type_of(name: object) -> type[Message]:
    """The message class called `name`. Raises ConfigError."""
    try:
        return TYPES[str(name)]
    except KeyError:
        raise ConfigError(f"control message: unknown type {name!r}") from None
