"""The documents inside a bundle. All are frozen dataclasses, stored as canonical JSON.

Tensors are described with Open Inference Protocol data types ("FP32"); a dimension of -1 is the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.bundle.steps import Pipeline
from edgekit.codec import LATER

BUNDLE_VERSION = 1


@dataclass(frozen=True)
class TensorSpec:
    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Affine:
    """real = (stored - offset) * scale, element by element; what the agent applies before the engine.

    A client may send either the engine's own data type (passed through untouched) or `datatype`
    (converted). Source: the affine quantization of Jacob et al. 2018, arXiv:1712.05877, eq. 1.
    """

    input: str
    datatype: str
    scale: float
    offset: float
    axis: int = field(default=0, metadata=LATER)
    """Dimension of the channels that have a scale and an offset each; 0: `scale` and `offset` are all."""
    scales: tuple[float, ...] = field(default=(), metadata=LATER)
    """One per channel; `scale` and `offset` are then those of the first."""
    offsets: tuple[float, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class Image:
    """How the pixels of an input were made from a picture: what a client does before it sends them."""

    input: str
    layout: str
    """"NCHW" or "NHWC"."""
    color: str
    """Order of the channels: "RGB", "BGR" or "L" (grey)."""
    resize: str
    """"stretch", "crop" (the middle) or "letterbox" (whole picture, bars of grey 114)."""
    keep: float = 1.0
    """crop: share of the shorter side that is kept."""


@dataclass(frozen=True)
class Preprocessing:
    affine: tuple[Affine, ...] = ()
    image: tuple[Image, ...] = field(default=(), metadata=LATER)


@dataclass(frozen=True)
class EngineRange:
    """Engine and the versions it may have: `minimum` <= version < `below` (empty: unbounded)."""

    name: str
    minimum: str = ""
    below: str = ""


@dataclass(frozen=True)
class VariantConfig:
    """Config blob of one variant: everything an agent needs to decide and to load. Deterministic."""

    variant: str
    """Unique in its bundle, e.g. "jetson.onnxruntime.int8-s8s8"."""
    profile: str
    engine: EngineRange
    precision: str
    options: dict[str, str | int | float | bool]
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    architecture: str
    isa: tuple[str, ...]
    """CPU features without which this variant must not run."""
    memory_forecast_mib: float
    memory_budget_mib: float = field(default=0.0, metadata=LATER)
    """Most resident memory of a process that serves it, MiB: the profile's budget, which the agent enforces.
    0: not declared."""
    pipeline: Pipeline | None = field(default=None, metadata=LATER)
    """From what a client has (a picture, a recording, a text) to an answer; None: tensors only."""

    @property
    def engine_files(self) -> tuple[str, ...]:
        """`files` without those that only the pipeline reads."""
        return tuple(name for name in self.files if self.pipeline is None or name not in self.pipeline.files)


@dataclass(frozen=True)
class Interval:
    """A metric with its two-sided 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one `Session.run` at batch 1."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True)
class GateResult:
    gate: str
    passed: bool
    reason: str
    """One line with the figures, e.g. "accuracy 0.9137 >= 0.99 x 0.9125"."""


@dataclass(frozen=True)
class ClassScore:
    """Recall of one class: the share of its samples that were given it."""

    index: int
    value: float
    baseline: float
    samples: int


@dataclass(frozen=True)
class Robustness:
    """The metric where evaluation rows are disturbed, beside the same rows undisturbed (`clean`)."""

    disturbance: str
    """"noise", "brightness", "gain" or "shift"."""
    samples: int
    value: float
    baseline: float
    """fp32 on the same engine, disturbed."""
    clean: float
    baseline_clean: float
    p: float
    """One-sided: that the variant loses no more than fp32."""


@dataclass(frozen=True)
class Drift:
    """How far the evaluation rows of an input are from those that ranges were learnt from."""

    input: str
    outside: float
    """Share of the evaluation rows' values beyond the range of the calibration rows."""
    psi: float
    """Population stability index between the two; of the column where it is largest."""
    column: int = -1
    """That column, for an input of columns; -1: the whole input."""


@dataclass(frozen=True)
class Bins:
    """How the values of a tensor are distributed: `shares[i]` of them lie in `edges[i - 1]` <= value <
    `edges[i]`; the first bin has no lower end, the last no upper one."""

    tensor: str
    """Name of an input or output."""
    edges: tuple[float, ...]
    """Ascending and finite; no value of the reference lies near one. None: one bin."""
    shares: tuple[float, ...]
    """One more than edges; their sum is 1."""
    column: int = field(default=-1, metadata=LATER)
    """Of a tensor (rows, columns); -1: all values of the tensor."""


@dataclass(frozen=True)
class Reference:
    """What the evaluation rows look like to the engine, and what the variant answers to them: a device holds
    its requests against it. See runtimes/_drift.py."""

    rows: int
    inputs: tuple[Bins, ...]
    outputs: tuple[Bins, ...]
    """Of their values, where no class is the answer."""
    classes: Bins | None = None
    """Of the numbers of the predicted classes: the largest score of the first output."""


@dataclass(frozen=True)
class Training:
    """How `edgekit compress` made the source model, as that file says of itself."""

    methods: tuple[str, ...]
    """In order, with what is not a default: "prune ratio=0.4 epochs=6"."""
    parent_sha256: str
    """Of the model that was compressed."""
    recipe_sha256: str
    data_sha256: str
    """Of the training rows."""
    seed: int
    epochs: int
    losses: tuple[float, ...]
    """Mean training loss of each epoch."""
    teacher_sha256: str = ""
    tools: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Serving:
    """How the certificate's host serves the variant best, measured there. It holds for machines of the same
    processor, cores and engine version; others measure for themselves."""

    cores: int
    """Logical processors of the host."""
    threads: int
    """Of the engine, in place of the variant's `intra_threads`: 1, or all cores where that was worth it.
    0: as the variant's options say."""
    run_ms: float
    """Median of one sample."""
    batch: int
    """Requests are joined up to so many samples; 1: never."""
    batch_ms: float
    """Of a run with `batch` samples, when that is more than 1."""


@dataclass(frozen=True)
class Certificate:
    """What was measured, on what, and which gates it passed. Not deterministic: it holds timings."""

    variant: str
    metric: str
    samples: int
    dataset_sha256: str
    calibration_sha256: str
    source_sha256: str
    accuracy: Interval
    """Of `metric`, whichever it is."""
    baseline_accuracy: Interval
    """The fp32 model on the same engine and data."""
    mcnemar_p: float
    """Paired test against the baseline: exact McNemar where a sample is right or wrong, bootstrap
    elsewhere; 1.0 when nothing differs."""
    agreement: float
    """Share of samples on which variant and baseline score the same; for classes: give the same class."""
    latency: Latency
    baseline_latency: Latency
    peak_rss_mib: float
    size_bytes: int
    coverage: dict[str, int]
    engine: str
    engine_version: str
    host_cpu: str
    host_architecture: str
    host_isa: tuple[str, ...]
    measured_on_target: bool
    """False when the host's architecture or ISA is not the profile's: then the device proves it."""
    gates: tuple[GateResult, ...]
    gate_skipped: bool = False
    """True when `--no-gate` let a failing variant through."""
    warnings: tuple[str, ...] = ()
    higher_is_better: bool = field(default=True, metadata=LATER)
    cpu_ms: float = field(default=0.0, metadata=LATER)
    """CPU time of one inference over all threads, median; 0: not measured."""
    emulated: str = field(default="", metadata=LATER)
    """CPU model under whose emulation the answers were made; empty: on `host_cpu` itself."""
    emulated_samples: int = field(default=0, metadata=LATER)
    """Rows that the emulated CPU answered; the rest of `samples` are `host_cpu`'s, which agreed on these."""
    stand_in: str = field(default="", metadata=LATER)
    """Engine and version that answered in place of `engine`, which could not run here (then
    `engine_version` and `coverage` are empty); empty: `engine` itself."""
    per_class: tuple[ClassScore, ...] = field(default=(), metadata=LATER)
    robustness: tuple[Robustness, ...] = field(default=(), metadata=LATER)
    drift: tuple[Drift, ...] = field(default=(), metadata=LATER)
    baseline_sha256: str = field(default="", metadata=LATER)
    """Of the model file that accuracy and speed were held against, where it is another than the source."""
    training: Training | None = field(default=None, metadata=LATER)
    serving: Serving | None = field(default=None, metadata=LATER)
    """None: not measured on the engine itself."""
    reference: Reference | None = field(default=None, metadata=LATER)
    """None: too few rows, or nothing with a range."""


@dataclass(frozen=True)
class GoldenSpec:
    """How a device decides that a loaded variant answers as certified.

    The samples travel encrypted as an `.npz`-free container: one raw little-endian file per tensor,
    named `inputs/<name>` , `outputs/<name>` (this variant's certified answers) and `reference` (int64
    class per sample: the source model's own answer), all (samples, ...).
    """

    samples: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_abs_difference: float
    """Largest allowed difference between certified and observed outputs."""
    min_reference_agreement: float
    """Smallest allowed share of samples whose class equals the source model's (0 disables)."""


@dataclass(frozen=True)
class Blob:
    """One encrypted or plain file of a variant, by digest (lower-case hex SHA-256)."""

    name: str
    sha256: str
    size_bytes: int
    plaintext_sha256: str
    plaintext_size_bytes: int


@dataclass(frozen=True)
class Variant:
    """What the builder hands to `bundle.write` for one variant: plaintext files in memory."""

    config: VariantConfig
    certificate: Certificate
    golden: GoldenSpec
    files: dict[str, bytes]
    """Model files, named as in `config.files`."""
    golden_files: dict[str, bytes]
    """Named as `GoldenSpec` says."""
    recipe_options: dict[str, str | int | float | bool] = field(default_factory=dict)
    """What the quantizer was told."""
    tools: dict[str, str] = field(default_factory=dict)
    """Library names and versions that decide the bytes, the import's included."""
    model_sha256: str = ""
    """Of the cleaned ONNX that the backend was given."""


@dataclass(frozen=True)
class ReleaseInfo:
    """Name and version of what a bundle carries; `version` is free text such as "1.0.0"."""

    name: str
    version: str
    created: str = ""
    """RFC 3339, from SOURCE_DATE_EPOCH when set; empty when unknown."""
    annotations: dict[str, str] = field(default_factory=dict)
