"""Pipelines in a variant's configuration: read as written, and every bad one refused by a bundle's reader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from edgekit import bundle, codec
from edgekit.bundle import step_rules, steps
from edgekit.bundle.model import Affine, Image, Preprocessing, TensorSpec, VariantConfig
from edgekit.bundle.steps import (
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
from tests.support.bundles import Keys, make_config, make_variant, tiny_bundle

VOCABULARY = "pipeline/vocab.txt"
SOUND = Pipeline(before=(Wav(), Resample(rate=16000), Peak(), Length(samples=16000), Mfcc()), after=(TopK(),))
PICTURE = Pipeline(before=(Picture(),), after=(Boxes(format="fastestdet"), Nms()))
TEXT = Pipeline(
    before=(WordPiece(vocabulary=VOCABULARY, ids="ids", mask="mask"),),
    after=(MeanPool(mask="mask"), L2Normalise()),
)


def config(pipeline: Pipeline, **changes: Any) -> VariantConfig:
    """A model that `pipeline` fits."""
    first = pipeline.before[0] if pipeline.before else None
    if isinstance(first, Picture):
        spec = TensorSpec("x", "FP32", (-1, 3, 8, 8))
        steps_ = Preprocessing((Affine("x", "UINT8", 1 / 255, 0.0),), (Image("x", "NCHW", "RGB", "stretch"),))
        made = make_config(inputs=(spec,), preprocessing=steps_, pipeline=pipeline)
    elif isinstance(first, WordPiece):
        inputs = tuple(TensorSpec(name, "INT64", (-1, 16)) for name in ("ids", "mask"))
        files = ("model.bin", VOCABULARY)
        made = make_config(inputs=inputs, preprocessing=Preprocessing(), files=files, pipeline=pipeline)
    else:
        made = make_config(inputs=(TensorSpec("x", "FP32", (-1, 49, 10, 1)),), pipeline=pipeline)
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("pipeline", [SOUND, PICTURE, TEXT], ids=["sound", "picture", "text"])
def test_a_pipeline_travels_in_a_bundle(tmp_path: Path, pipeline: Pipeline) -> None:
    path, keys = tiny_bundle(tmp_path, variants=[make_variant(config(pipeline))])
    (entry,) = bundle.open(path, [keys.signer.public()]).variants
    assert entry.config.pipeline == pipeline
    assert entry.config.engine_files == ("model.bin",)


def test_a_variant_without_one_has_the_bytes_it_always_had() -> None:
    plain = codec.to_plain(make_config())
    assert "pipeline" not in plain
    assert codec.from_canonical_json(VariantConfig, codec.to_json(make_config()), what="it").pipeline is None
    assert make_config().engine_files == make_config().files


def test_content_types_follow_from_the_first_step() -> None:
    assert SOUND.content_types[0] == "audio/wav"
    assert PICTURE.content_types == ("image/jpeg", "image/png")
    assert TEXT.content_types == ("text/plain",)
    assert {cls.kind for cls in (Picture, Wav, WordPiece)} == set(steps.CONTENT_TYPES)


def _before(*before: Any) -> Pipeline:
    return Pipeline(before=before)


def _after(*after: Any, first: Any = None) -> Pipeline:
    return Pipeline(before=(first or Wav(),), after=after)


WRONG: dict[str, tuple[Pipeline, str]] = {
    "version": (dataclasses.replace(SOUND, version=2), "unknown version 2"),
    "version true": (dataclasses.replace(SOUND, version=True), "unknown version"),
    "nothing": (_before(), "first step"),
    "begins in the middle": (_before(Peak()), "first step"),
    "too many": (_before(Wav(), *[Peak()] * 16), "17 steps"),
    "after a picture": (_before(Picture(), Peak()), "nothing may follow 'picture'"),
    "after a text": (Pipeline(before=(*TEXT.before, Peak())), "nothing may follow"),
    "two recordings": (_before(Wav(), Wav()), "'wav' cannot follow"),
    "mfcc in the middle": (_before(Wav(), Mfcc(), Peak()), "must be the last step before"),
    "rates": (_before(Wav(), Resample(rate=8000), Mfcc()), "wants 16000 .* gives 8000"),
    "top-k in the middle": (_after(TopK(), Softmax()), "must be the last"),
    "boxes later": (_after(Softmax(), Boxes(format="yolov5"), first=Picture()), "first step after"),
    "boxes then": (_after(Boxes(format="yolov5"), Softmax(), first=Picture()), "only 'nms'"),
    "nms alone": (_after(Nms(), first=Picture()), "follow 'boxes'"),
    "nms twice": (_after(Boxes(format="yolov5"), Nms(), Nms(), first=Picture()), "'nms' must be the last"),
    "boxes of a sound": (_after(Boxes(format="yolov5")), "needs a picture"),
    "mask": (_after(MeanPool(mask="nobody")), "no input of the model"),
    "input": (dataclasses.replace(SOUND, input="y"), "no input is called 'y'"),
    "output": (dataclasses.replace(SOUND, output="x"), "no output is called 'x'"),
    "input of a text": (dataclasses.replace(TEXT, input="ids"), "leave input out"),
    "unfed": (
        _before(WordPiece(vocabulary=VOCABULARY, ids="ids")),
        "feeds ids, the model reads ids, mask",
    ),
    "absent file": (_before(WordPiece(vocabulary="pipeline/b", ids="ids", mask="mask")), "no file"),
    "foreign file": (_before(WordPiece(vocabulary="model.bin", ids="ids", mask="mask")), "must be a file in"),
    "same input": (_before(WordPiece(vocabulary=VOCABULARY, ids="ids", mask="ids")), "different inputs"),
    "no token": (_before(WordPiece(vocabulary=VOCABULARY, ids="ids", mask="mask", last="")), "1 to 100"),
    "pixels": (_before(Picture(max_pixels=10**9)), "max_pixels"),
    "seconds": (_before(Wav(max_seconds=1e9)), "max_seconds"),
    "no seconds": (_before(Wav(max_seconds=0.0)), "max_seconds"),
    "rate": (_before(Wav(), Resample(rate=10**9)), "rate must be"),
    "length": (_before(Wav(), Length(samples=10**12)), "samples"),
    "fft": (_before(Wav(), Mfcc(fft=1 << 20)), "power of two"),
    "no power": (_before(Wav(), Mfcc(fft=500)), "power of two"),
    "window": (_before(Wav(), Mfcc(window=600)), "window"),
    "step": (_before(Wav(), Mfcc(step=0)), "step must be"),
    "bins": (_before(Wav(), Mfcc(mel_bins=5000)), "mel_bins"),
    "coefficients": (_before(Wav(), Mfcc(coefficients=41)), "coefficients"),
    "hertz": (_before(Wav(), Mfcc(high_hz=9000.0)), "low_hz"),
    "floor": (_before(Wav(), Mfcc(floor=0.0)), "floor"),
    "tokens": (_before(WordPiece(vocabulary=VOCABULARY, ids="ids", mask="mask", length=10**6)), "length"),
    "k": (_after(TopK(k=0)), "k must be"),
    "score": (_after(Boxes(format="yolov5", min_score=2.0), first=Picture()), "min_score"),
    "iou": (_after(Boxes(format="yolov5"), Nms(iou=0.0), first=Picture()), "iou"),
    "most": (_after(Boxes(format="yolov5"), Nms(most=10**6), first=Picture()), "most"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_must_not_reach_a_device_is_refused(name: str) -> None:
    pipeline, words = WRONG[name]
    with pytest.raises(FormatError, match=words) as refused:
        step_rules.check(config(pipeline))
    assert "\n" not in refused.value.message


def test_the_writer_and_the_reader_look(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="'mfcc': step must be"):
        tiny_bundle(tmp_path, variants=[make_variant(config(_before(Wav(), Mfcc(step=0))))], keys=Keys())


def test_a_model_must_fit() -> None:
    whole = (TensorSpec("x", "INT8", (-1, 49, 10, 1)),)
    with pytest.raises(FormatError, match="'x' is INT8, not FP64"):
        step_rules.check(config(SOUND, inputs=whole))
    with pytest.raises(FormatError, match="is not described"):
        step_rules.check(config(PICTURE, preprocessing=Preprocessing()))
    with pytest.raises(FormatError, match="no UINT8 pixels"):
        described = Preprocessing((), (Image("x", "NCHW", "RGB", "stretch"),))
        step_rules.check(config(PICTURE, preprocessing=described))
    for image in (
        Image("x", "HWC", "RGB", "stretch"),
        Image("x", "NCHW", "CMYK", "stretch"),
        Image("x", "NCHW", "L", "stretch"),
        Image("x", "NHWC", "RGB", "stretch"),
        Image("x", "NCHW", "RGB", "tile"),
        Image("x", "NCHW", "RGB", "crop", 0.0),
    ):
        with pytest.raises(FormatError, match="pictures"):
            affine = (Affine("x", "UINT8", 1.0, 0.0),)
            step_rules.check(config(PICTURE, preprocessing=Preprocessing(affine, (image,))))


def test_an_unknown_step_is_named() -> None:
    later = codec.to_json(config(SOUND)).replace(b'"peak"', b'"whiten"')
    with pytest.raises(FormatError, match="no 'whiten' with such fields") as refused:
        codec.from_canonical_json(VariantConfig, later, what="it", error=FormatError)
    assert refused.value.hint == "update edgekit"
