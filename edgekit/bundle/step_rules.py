"""Which pipelines are allowed: order, figures, and how they fit the model. Pure; part of reading a bundle.

Every figure that decides how much is allocated or computed on a device has a limit here.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.bundle import names
from edgekit.bundle.model import TensorSpec, VariantConfig
from edgekit.bundle.steps import (
    FOLDER,
    PIPELINE_VERSION,
    After,
    Before,
    Boxes,
    L2Normalise,
    Length,
    MeanPool,
    Mfcc,
    Nms,
    Peak,
    Picture,
    Pipeline,
    Resample,
    Softmax,
    TopK,
    Wav,
    WordPiece,
)
from edgekit.errors import FormatError

MAX_STEPS = 16
MAX_PIXELS = 100_000_000
MAX_SECONDS = 600.0
RATES = range(1000, 192_001)
"""Samples per second."""
MAX_TOKENS = 8192
MAX_TOKEN = 100
"""Characters of one token."""
MAX_ANSWERS = 1000


def check(config: VariantConfig) -> None:
    """Raises FormatError naming the step."""
    pipeline = config.pipeline
    if pipeline is None:
        return
    if pipeline.version != PIPELINE_VERSION or isinstance(pipeline.version, bool):
        raise FormatError(f"pipeline: unknown version {pipeline.version!r}", "update edgekit")
    for side, steps in (("before", pipeline.before), ("after", pipeline.after)):
        if len(steps) > MAX_STEPS:
            raise FormatError(f"pipeline: {len(steps)} steps {side} the engine, {MAX_STEPS} are allowed")
        for step in steps:
            if problem := _figures(step):
                raise FormatError(f"pipeline: step {step.kind!r}: {problem}")
    problem = _order_before(pipeline.before) or _order_after(pipeline.after) or _ports(config, pipeline)
    if problem:
        raise FormatError(f"pipeline: {problem}")


def input_of(config: VariantConfig, pipeline: Pipeline) -> TensorSpec:
    """What a picture or a recording becomes. Raises FormatError."""
    name = pipeline.input or (config.inputs[0].name if len(config.inputs) == 1 else "")
    for spec in config.inputs:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in config.inputs)
    raise FormatError(f"pipeline: no input is called {name!r}", f"say which with input = ..., of {known}")


def output_of(config: VariantConfig, pipeline: Pipeline) -> TensorSpec:
    """What `after` reads. Raises FormatError."""
    for spec in config.outputs:
        if spec.name == (pipeline.output or config.outputs[0].name):
            return spec
    known = ", ".join(spec.name for spec in config.outputs)
    raise FormatError(f"pipeline: no output is called {pipeline.output!r}", f"the model has {known}")


def _figures(step: Before | After) -> str:
    """What is wrong with a step's own figures; empty when nothing is."""
    # `not a <= x <= b` also refuses NaN.
    match step:
        case Picture() if not 1 <= step.max_pixels <= MAX_PIXELS:
            return f"max_pixels must be 1 to {MAX_PIXELS}"
        case Wav() if not 0 < step.max_seconds <= MAX_SECONDS:
            return f"max_seconds must be above 0, at most {MAX_SECONDS:g}"
        case Resample() if step.rate not in RATES:
            return f"rate must be {RATES[0]} to {RATES[-1]} samples per second"
        case Length() if not 1 <= step.samples <= MAX_SECONDS * RATES[-1]:
            return "samples is out of range"
        case Mfcc():
            return _mfcc(step)
        case WordPiece():
            return _wordpiece(step)
        case TopK() if not 1 <= step.k <= MAX_ANSWERS:
            return f"k must be 1 to {MAX_ANSWERS}"
        case Boxes() if not 0 <= step.min_score <= 1:
            return "min_score must be 0 to 1"
        case Nms() if not (0 < step.iou <= 1 and 1 <= step.most <= MAX_ANSWERS):
            return f"iou must be above 0 and at most 1, most 1 to {MAX_ANSWERS}"
    return ""


def _mfcc(step: Mfcc) -> str:
    if step.rate not in RATES:
        return f"rate must be {RATES[0]} to {RATES[-1]} samples per second"
    if not 2 <= step.window <= step.fft <= 16384 or step.fft & (step.fft - 1):
        return "window must be 2 to fft samples, fft a power of two up to 16384"
    if not 1 <= step.step <= 16384:
        return "step must be 1 to 16384 samples"
    if not 1 <= step.coefficients <= step.mel_bins <= 512:
        return "mel_bins must be 1 to 512, coefficients 1 to mel_bins"
    if not 0 <= step.low_hz < step.high_hz <= step.rate / 2:
        return "low_hz must be below high_hz, which is at most half the rate"
    return "" if 0 < step.floor <= 1 else "floor must be above 0 and at most 1"


def _wordpiece(step: WordPiece) -> str:
    if not 3 <= step.length <= MAX_TOKENS:
        return f"length must be 3 to {MAX_TOKENS} tokens"
    if not all(0 < len(t) <= MAX_TOKEN for t in (step.unknown, step.first, step.last, step.padding)):
        return f"unknown, first, last and padding must be tokens of 1 to {MAX_TOKEN} characters"
    fed = [name for name in (step.ids, step.mask, step.types) if name]
    if not step.ids or len(set(fed)) != len(fed):
        return "ids, mask and types must name different inputs"
    if not step.vocabulary.startswith(FOLDER) or len(step.vocabulary) > names.MAX_NAME:
        return f"its vocabulary must be a file in {FOLDER}"
    return ""


def _order_before(steps: Sequence[Before]) -> str:
    """A picture; or a recording, what is done to it, at most one `mfcc` at its end; or a text."""
    if not steps or not isinstance(steps[0], Picture | Wav | WordPiece):
        return "the first step must be picture, wav or wordpiece"
    first, *rest = steps
    if not isinstance(first, Wav):
        return f"nothing may follow {first.kind!r} before the engine" if rest else ""
    rate = 0
    for number, step in enumerate(rest):
        if isinstance(step, Resample):
            rate = step.rate
        elif isinstance(step, Mfcc):
            if number != len(rest) - 1:
                return "'mfcc' must be the last step before the engine"
            if rate not in (0, step.rate):
                return f"'mfcc' wants {step.rate} samples per second, 'resample' gives {rate}"
        elif not isinstance(step, Peak | Length):
            return f"{step.kind!r} cannot follow 'wav'"
    return ""


def _order_after(steps: Sequence[After]) -> str:
    """Tensors; then perhaps `top-k`, or `boxes` and perhaps `nms`."""
    for number, step in enumerate(steps):
        last, begin = number == len(steps) - 1, steps[number - 1] if number else None
        if isinstance(step, TopK) and not last:
            return "'top-k' must be the last step"
        if isinstance(step, Boxes) and (begin or not (last or isinstance(steps[number + 1], Nms))):
            return "'boxes' must be the first step after the engine, and only 'nms' may follow"
        if isinstance(step, Nms) and not (last and isinstance(begin, Boxes)):
            return "'nms' must be the last step and follow 'boxes'"
        if isinstance(step, MeanPool | L2Normalise | Softmax) and isinstance(begin, Boxes | Nms):
            return f"{step.kind!r} cannot follow {begin.kind!r}"
    return ""


def _ports(config: VariantConfig, pipeline: Pipeline) -> str:
    """Whether every input is fed with what it takes, and what is read is there."""
    first = pipeline.before[0]
    types = {spec.name: spec.datatype for spec in config.inputs}
    wanted: tuple[str, ...]
    if isinstance(first, WordPiece):
        fed, wanted = [name for name in (first.ids, first.mask, first.types) if name], ("INT32", "INT64")
        if pipeline.input:
            return "'wordpiece' names its inputs itself; leave input out"
        if first.vocabulary not in config.files:
            return f"the variant has no file {first.vocabulary!r}"
    else:
        fed, wanted = [input_of(config, pipeline).name], ("FP16", "FP32", "FP64")
    if sorted(fed) != sorted(types):
        return f"it feeds {', '.join(fed)}, the model reads {', '.join(types)}"
    for step in pipeline.after:
        if isinstance(step, MeanPool) and step.mask not in ("", *types):
            return f"'mean-pool' reads {step.mask!r}, which is no input of the model"
        if isinstance(step, Boxes) and not isinstance(first, Picture):
            return "'boxes' needs a picture before the engine"
    output_of(config, pipeline)
    if isinstance(first, Picture):
        return _picture(config, pipeline)
    return next((f"input {n!r} is {t}, not {wanted[-1]}" for n, t in types.items() if t not in wanted), "")


def _picture(config: VariantConfig, pipeline: Pipeline) -> str:
    spec = input_of(config, pipeline)
    described = [image for image in config.preprocessing.image if image.input == spec.name]
    if len(described) != 1:
        return f"how pictures become input {spec.name!r} is not described"
    layout, color = described[0].layout, described[0].color
    if layout not in ("NCHW", "NHWC") or color not in ("RGB", "BGR", "L") or len(spec.shape) != 4:
        return f"pictures do not fit input {spec.name!r} of shape {list(spec.shape)}"
    height, width, channels = (spec.shape[i] for i in ((2, 3, 1) if layout == "NCHW" else (1, 2, 3)))
    if min(height, width) < 1 or height * width > MAX_PIXELS or channels != (1 if color == "L" else 3):
        return f"pictures do not fit input {spec.name!r} of shape {list(spec.shape)}"
    if described[0].resize not in ("stretch", "crop", "letterbox") or not 0 < described[0].keep <= 1:
        return f"how pictures are resized for input {spec.name!r} is not known"
    stored = [step.datatype for step in config.preprocessing.affine if step.input == spec.name]
    return "" if (stored or [spec.datatype]) == ["UINT8"] else f"input {spec.name!r} takes no UINT8 pixels"
