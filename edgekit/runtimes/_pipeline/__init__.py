"""A variant's pipeline at work: from the bytes of a picture, a recording or a text to the engine's inputs,
and from its outputs to an answer.

NumPy only, and Pillow for pictures. The builder runs the same code. Whatever a client sends is bounded
before anything of its size is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.bundle import steps
from edgekit.bundle.model import TensorSpec, VariantConfig
from edgekit.bundle.step_rules import input_of, output_of
from edgekit.errors import FormatError, InputError
from edgekit.runtimes import _pictures
from edgekit.runtimes._base import DTYPES, Array, Files
from edgekit.runtimes._pipeline import boxes, scores, sound, wordpiece
from edgekit.runtimes._preprocess import to_engine

Answer = dict[str, Any]
"""JSON object: "label" and "score", "boxes", or "values"."""


@dataclass(frozen=True, slots=True)
class Noted:
    """What `after` must know of the request: where the picture's pixels went, which tokens are text."""

    inputs: Mapping[str, Array]
    placement: _pictures.Placement | None = None


class Processor:
    """Thread-safe: it holds tables only."""

    def __init__(self, config: VariantConfig, pipeline: steps.Pipeline, files: Files) -> None:
        """`config` has passed `step_rules.check`.

        Raises EngineMissing where a picture needs Pillow and there is none, FormatError for a bad vocabulary.
        """
        self.content_types = pipeline.content_types
        self._config = config
        self._pipeline = pipeline
        self._output = output_of(config, pipeline).name
        self._read = self._reader(files)

    def before(self, body: bytes) -> tuple[dict[str, Array], Noted]:
        """Engine inputs of one sample, and what `after` wants. Raises InputError."""
        arrays, placement = self._read(body)
        inputs = to_engine(arrays, self._config.inputs, self._config.preprocessing)
        return inputs, Noted(inputs, placement)

    def after(self, outputs: Mapping[str, Array], noted: Noted) -> Answer:
        """The answer to one sample. Raises EngineError for an output that the steps cannot read."""
        value = outputs[self._output]
        if value.ndim and value.shape[0] == 1:
            value = value[0]
        found, place = None, noted.placement
        for step in self._pipeline.after:
            match step:
                case steps.MeanPool():
                    value = scores.mean_pool(value, noted.inputs[step.mask][0] if step.mask else None)
                case steps.L2Normalise():
                    value = scores.l2_normalise(value)
                case steps.Softmax():
                    value = scores.softmax(value)
                case steps.TopK():
                    return scores.top(value, step.k, self._config.labels)
                case steps.Boxes() if place is not None:
                    size = place.frame_height, place.frame_width
                    found = boxes.decode(value, step.format, step.min_score, size)
                case steps.Nms() if found is not None:
                    found = boxes.suppress(found, step.iou, step.most)
        if found is not None and place is not None:
            return boxes.answer(found, place, self._config.labels)
        return scores.values(value)

    def _reader(self, files: Files) -> Callable[[bytes], tuple[dict[str, Array], _pictures.Placement | None]]:
        """The steps before the engine as one function."""
        first, *rest = self._pipeline.before
        if isinstance(first, steps.WordPiece):
            return _text(first, self._config, files)
        spec = input_of(self._config, self._pipeline)
        if isinstance(first, steps.Picture):
            return self._picture(first, spec)
        if not isinstance(first, steps.Wav):
            raise FormatError(f"pipeline: step {first.kind!r} cannot be the first")
        chain = sound.Chain(first, tuple(rest), wanted=tuple(spec.shape[1:]))
        dtype = DTYPES[spec.datatype]

        def recording(body: bytes) -> tuple[dict[str, Array], None]:
            return {spec.name: fitted(chain(body).astype(dtype), spec)}, None

        return recording

    def _picture(
        self, step: steps.Picture, spec: TensorSpec
    ) -> Callable[[bytes], tuple[dict[str, Array], _pictures.Placement]]:
        _pictures.library()  # now rather than at the first request
        (image,) = (one for one in self._config.preprocessing.image if one.input == spec.name)
        frame = _pictures.frame_of(image, spec.shape)

        def picture(body: bytes) -> tuple[dict[str, Array], _pictures.Placement]:
            pixels, placement = _pictures.decode(body, frame, step.max_pixels, _pictures.SENT)
            if frame.layout == "NCHW":
                pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
            return {spec.name: pixels[None]}, placement

        return picture


def _text(
    step: steps.WordPiece, config: VariantConfig, files: Files
) -> Callable[[bytes], tuple[dict[str, Array], None]]:
    tokenizer = wordpiece.Tokenizer(step, wordpiece.parse(bytes(files[step.vocabulary])))
    specs = {spec.name: spec for spec in config.inputs}
    fixed = specs[step.ids].shape[-1] if specs[step.ids].shape else -1

    def text(body: bytes) -> tuple[dict[str, Array], None]:
        ids = tokenizer.ids(body, min(step.length, fixed) if fixed > 0 else step.length)
        width = fixed if fixed > 0 else len(ids)
        rows = {step.ids: ids + [tokenizer.padding] * (width - len(ids))}
        if step.mask:
            rows[step.mask] = [1] * len(ids) + [0] * (width - len(ids))
        if step.types:
            rows[step.types] = [0] * width
        return {name: np.array([row], DTYPES[specs[name].datatype]) for name, row in rows.items()}, None

    return text


def fitted(value: Array, spec: TensorSpec) -> Array:
    """One sample as a batch of 1; dimensions of size 1 are added or dropped. Raises InputError."""
    wanted = spec.shape[1:]
    have = tuple(size for size in value.shape if size != 1)
    want = tuple(size for size in wanted if size != 1)
    if len(have) != len(want) or any(w not in (-1, h) for w, h in zip(want, have, strict=True)):
        raise InputError(
            f"this gives values of shape {list(value.shape)}, input {spec.name!r} wants {list(wanted)}",
            "send a recording of the length that the model was made for",
        )
    sizes = iter(have)
    return value.reshape(1, *(1 if size == 1 else next(sizes) for size in wanted))
