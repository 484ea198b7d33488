"""A pipeline: what the agent does before and after the engine, so that a client sends a picture, a recording
or a text. Data only: every step is one of a closed set, computed by `edgekit.runtimes._pipeline`.

`step_rules.check` says which order and which figures are allowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

PIPELINE_VERSION = 1
FOLDER = "pipeline/"
"""Where the files of a pipeline lie among a variant's."""


# --- before the engine


@dataclass(frozen=True, kw_only=True)
class Picture:
    """JPEG or PNG to pixels, as `Preprocessing.image` describes them: size, resizing, colours, layout."""

    kind: Literal["picture"] = "picture"
    max_pixels: int = 4096 * 4096
    """Of the picture that is sent; a larger one is refused before it is decoded."""


@dataclass(frozen=True, kw_only=True)
class Wav:
    """A RIFF file of PCM samples to one channel (the mean of all) from -1 to 1."""

    kind: Literal["wav"] = "wav"
    max_seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Resample:
    """To `rate` samples per second, band-limited."""

    kind: Literal["resample"] = "resample"
    rate: int


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Divided by the largest sample, where that is above 0."""

    kind: Literal["peak"] = "peak"


@dataclass(frozen=True, kw_only=True)
class Length:
    """Exactly `samples` samples: cut at the end, or zeros added there."""

    kind: Literal["length"] = "length"
    samples: int


@dataclass(frozen=True, kw_only=True)
class Mfcc:
    """Mel-frequency cepstral coefficients, (frames, coefficients): `runtimes._pipeline.sound`.

    Defaults are those of MLPerf Tiny's keyword spotter: 30 ms every 20 ms.
    """

    kind: Literal["mfcc"] = "mfcc"
    rate: int = 16000
    """Samples per second that the recording must have here."""
    window: int = 480
    """Samples of a frame."""
    step: int = 320
    """Samples from one frame to the next."""
    fft: int = 512
    mel_bins: int = 40
    low_hz: float = 20.0
    high_hz: float = 4000.0
    floor: float = 1e-6
    """Added before the logarithm."""
    coefficients: int = 10


@dataclass(frozen=True, kw_only=True)
class WordPiece:
    """Text to tokens of BERT's kind, one row; each field names the model's input that gets it."""

    kind: Literal["wordpiece"] = "wordpiece"
    vocabulary: str
    """A file of the variant: one token per line, its number is the line's."""
    ids: str
    mask: str = ""
    """Input that is 1 for tokens and 0 for padding; empty: the model has none."""
    types: str = ""
    """Input of segment numbers, all 0; empty: the model has none."""
    length: int = 128
    """Most tokens, first and last included; what is longer is cut. A model of fixed length gets padding."""
    lowercase: bool = True
    """Also drops accents."""
    unknown: str = "[UNK]"
    first: str = "[CLS]"
    last: str = "[SEP]"
    padding: str = "[PAD]"


# --- after the engine


@dataclass(frozen=True, kw_only=True)
class MeanPool:
    """(tokens, width) to (width): the mean over the tokens that input `mask` marks; empty: over all."""

    kind: Literal["mean-pool"] = "mean-pool"
    mask: str = ""


@dataclass(frozen=True, kw_only=True)
class L2Normalise:
    """Divided by its Euclidean length, along the last dimension."""

    kind: Literal["l2-normalise"] = "l2-normalise"


@dataclass(frozen=True, kw_only=True)
class Softmax:
    """Along the last dimension."""

    kind: Literal["softmax"] = "softmax"


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The `k` largest scores, with the variant's labels."""

    kind: Literal["top-k"] = "top-k"
    k: int = 1


@dataclass(frozen=True, kw_only=True)
class Boxes:
    """A detector's output to boxes. `runtimes._pipeline.boxes` tells the formats."""

    kind: Literal["boxes"] = "boxes"
    format: Literal["fastestdet", "yolov5", "yolov8"]
    min_score: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Nms:
    """Of boxes of one class that overlap by `iou` or more, the best; `most` boxes in all."""

    kind: Literal["nms"] = "nms"
    iou: float = 0.45
    most: int = 100


Before: TypeAlias = Picture | Wav | Resample | Peak | Length | Mfcc | WordPiece
After: TypeAlias = MeanPool | L2Normalise | Softmax | TopK | Boxes | Nms

BEFORE: dict[str, type[Before]] = {cls.kind: cls for cls in get_args(Before)}
AFTER: dict[str, type[After]] = {cls.kind: cls for cls in get_args(After)}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    before: tuple[Before, ...]
    after: tuple[After, ...] = ()
    input: str = ""
    """The model's input that a picture or a recording becomes; empty: its only one."""
    output: str = ""
    """The model's output that `after` reads; empty: the first."""
    version: int = PIPELINE_VERSION
    """Of what the steps mean."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files of the variant that steps read, and no engine does."""
        return tuple(step.vocabulary for step in self.before if isinstance(step, WordPiece))

    @property
    def content_types(self) -> tuple[str, ...]:
        """Media types that a client may send."""
        return CONTENT_TYPES.get(self.before[0].kind, ()) if self.before else ()


CONTENT_TYPES: dict[str, tuple[str, ...]] = {
    "picture": ("image/jpeg", "image/png"),
    "wav": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "wordpiece": ("text/plain",),
}
"""By the kind of the first step."""
