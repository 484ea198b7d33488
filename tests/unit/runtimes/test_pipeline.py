"""Whole pipelines on real models: a recording, pictures, boxes, a text; and what a hostile client sends."""

from __future__ import annotations

import io
import json
import struct
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from benchmarks.zoo import fastestdet
from edgekit import runtimes
from edgekit.build import processing
from edgekit.bundle import step_rules
from edgekit.bundle.model import Affine, EngineRange, Image, Preprocessing, TensorSpec, VariantConfig
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
from edgekit.errors import EngineError, EngineMissing, InputError
from edgekit.runtimes import Array, Files
from edgekit.runtimes._base import engine_files
from edgekit.runtimes._pipeline import Processor, scores
from edgekit.runtimes._pipeline.sound import Cepstrum, Sound
from tests.support.serving import LABELS
from tests.unit.runtimes import kws
from tests.unit.runtimes.test_sound import RATE, tone, wav
from tests.unit.runtimes.test_wordpiece import SMALL, VOCABULARY, needs_minilm

SHARED = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository")
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPOTTER = Pipeline(
    before=(Wav(), Resample(rate=RATE), Peak(), Length(samples=RATE), Mfcc()), after=(TopK(k=3),)
)


def config(pipeline: Pipeline, inputs: Any, outputs: Any, **more: Any) -> VariantConfig:
    made = VariantConfig(
        variant="test", profile="generic-cpu", engine=EngineRange("onnxruntime"), precision="fp32",
        options={}, files=("model.onnx", *pipeline.files), inputs=inputs, outputs=outputs,
        labels=more.get("labels", ()),
        preprocessing=more.get("preprocessing", Preprocessing()), architecture="any", isa=(),
        memory_forecast_mib=0.0, pipeline=pipeline,
    )  # fmt: skip
    step_rules.check(made)
    return made


def answer(made: VariantConfig, files: Files, body: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """As an agent does it: the answer, and the engine's outputs."""
    assert made.pipeline is not None
    processor = Processor(made, made.pipeline, files)
    session = runtimes.get("onnxruntime").load(engine_files(made, files), {"intra_threads": 1})
    inputs, noted = processor.before(body)
    outputs = session.run(inputs)
    session.close()
    found = processor.after(outputs, noted)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found, outputs


def spotter() -> VariantConfig:
    outputs = (TensorSpec(kws.OUTPUT, "FP32", (-1, 12)),)
    return config(SPOTTER, (kws.SPEC,), outputs, labels=LABELS, preprocessing=kws.SCALE)


def test_a_recording_becomes_the_features_and_a_word() -> None:
    """A tone shows that the features are the formula's, and the word is what the engine says to them."""
    body = wav(tone(440.0, 1.0) * 0.5)
    made = spotter()
    found, outputs = answer(made, {"model.onnx": kws.model()}, body)
    samples = (np.round(tone(440.0, 1.0) * 0.5 * 32767) / 32768).astype(np.float32)
    features = Cepstrum(Mfcc())(Sound(samples / samples.max(), RATE)).reshape(1, 49, 10, 1)
    wanted = kws.session("onnxruntime", intra_threads=1).run({kws.INPUT: features})[kws.OUTPUT]
    np.testing.assert_allclose(outputs[kws.OUTPUT], wanted, atol=1e-5)
    best = int(np.argmax(wanted))
    assert (found["index"], found["label"]) == (best, LABELS[best])
    assert found["score"] == pytest.approx(float(wanted.max()), abs=1e-5)
    assert [one["index"] for one in found["top"]] == np.argsort(-wanted[0])[:3].tolist()


def test_silence_is_called_silence_at_any_rate() -> None:
    hiss = np.random.default_rng(1).standard_normal(44100) * 0.001
    found, _ = answer(spotter(), {"model.onnx": kws.model()}, wav(hiss, 44100))
    assert found["label"] in ("silence", "unknown")


def resnet() -> VariantConfig:
    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    scales, offsets = tuple(1 / 255 / std for std in stds), tuple(255 * mean for mean in means)
    affine = Affine("input", "UINT8", scales[0], offsets[0], 1, scales, offsets)
    return config(
        Pipeline(before=(Picture(),), after=(Softmax(), TopK())),
        (TensorSpec("input", "FP32", (-1, 3, 32, 32)),),
        (TensorSpec("logits", "FP32", (-1, 10)),),
        labels=CIFAR,
        preprocessing=Preprocessing((affine,), (Image("input", "NCHW", "RGB", "stretch"),)),
    )


@needs_data
def test_jpeg_files_get_their_class() -> None:
    """As often right as the model is on these 200 (0.81 on all 2000)."""
    content = (SHARED / "cifar10-resnet20" / "resnet20.onnx").read_bytes()
    session = runtimes.get("onnxruntime").load({"model.onnx": content}, {})
    made = resnet()
    assert made.pipeline is not None
    processor = Processor(made, made.pipeline, {})
    right = total = 0
    with tarfile.open(SHARED / "cifar10-jpeg" / "test_2000.tar") as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isreg() and info.name.endswith(".jpg") else None
            if file is None or total % 10:
                total += file is not None
                continue
            total += 1
            inputs, noted = processor.before(file.read())
            found = processor.after(session.run(inputs), noted)
            assert set(found) == {"label", "index", "score"} and 0 < found["score"] <= 1
            right += found["label"] in info.name
    assert total == 2000 and right >= 0.75 * 200


@needs_data
def test_a_photo_gets_boxes_in_its_own_pixels() -> None:
    folder = SHARED / "fastestdet"
    names = tuple((folder / "coco.names").read_text().splitlines()[:80])
    made = config(
        Pipeline(before=(Picture(),), after=(Boxes(format="fastestdet", min_score=0.65), Nms())),
        (TensorSpec("input.1", "FP32", (1, 3, 352, 352)),),
        (TensorSpec("758", "FP32", (1, 85, 22, 22)),),
        labels=names,
        preprocessing=Preprocessing(
            (Affine("input.1", "UINT8", 1 / 255, 0.0),), (Image("input.1", "NCHW", "BGR", "stretch"),)
        ),
    )
    files = {"model.onnx": (folder / "FastestDet.onnx").read_bytes()}
    for number in range(5):
        body = (folder / f"{number}.jpg").read_bytes()
        found, outputs = answer(made, files, body)
        with Pillow.open(io.BytesIO(body)) as picture:
            assert (found["width"], found["height"]) == picture.size
        (wanted,) = fastestdet.boxes(outputs)["boxes"]
        wanted = wanted[wanted[:, 4] > 0]
        assert [box["label"] for box in found["boxes"]] == [names[int(row[5])] for row in wanted]
        size = [found["width"], found["height"]] * 2
        for box, row in zip(found["boxes"], wanted, strict=True):
            np.testing.assert_allclose(box["box"], np.clip(row[:4], 0, 1) * size, atol=0.06)
    bus = answer(made, files, (folder / "1.jpg").read_bytes())[0]["boxes"]
    assert [(box["label"], round(box["score"], 2)) for box in bus] == [("bus", 0.96)]


@needs_data
@needs_minilm
def test_texts_become_vectors_and_like_ones_lie_close() -> None:
    names = ("input_ids", "attention_mask")
    made = config(
        Pipeline(
            before=(WordPiece(vocabulary="pipeline/vocab.txt", ids=names[0], mask=names[1]),),
            after=(L2Normalise(),),
        ),
        tuple(TensorSpec(name, "INT64", (-1, -1)) for name in names),
        (TensorSpec("sentence_embedding", "FP32", (-1, 384)),),
    )
    files = {
        "model.onnx": (SHARED / "minilm-int8" / "minilm_int8.onnx").read_bytes(),
        "pipeline/vocab.txt": processing._vocabulary(VOCABULARY),
    }
    texts = ("A plane is taking off.", "An air plane is taking off.", "A man is playing a flute.")
    first, second, third = (np.array(answer(made, files, text.encode())[0]["values"]) for text in texts)
    assert first.shape == (384,) and np.linalg.norm(first) == pytest.approx(1.0, abs=1e-5)
    assert first @ second > 0.9 > 0.5 > first @ third


def test_padding_masks_and_pooling() -> None:
    inputs = tuple(TensorSpec(name, "INT32", (-1, 6)) for name in ("ids", "mask", "types"))
    made = config(
        Pipeline(
            before=(WordPiece(vocabulary="pipeline/vocab.txt", ids="ids", mask="mask", types="types"),),
            after=(MeanPool(mask="mask"),),
        ),
        inputs,
        (TensorSpec("y", "FP32", (-1, 6, 2)),),
    )
    assert made.pipeline is not None
    processor = Processor(made, made.pipeline, {"pipeline/vocab.txt": SMALL})
    fed, noted = processor.before(b"hello world")
    assert {name: row.tolist() for name, row in fed.items()} == {
        "ids": [[2, 4, 5, 3, 0, 0]], "mask": [[1, 1, 1, 1, 0, 0]], "types": [[0] * 6],
    }  # fmt: skip
    assert all(row.dtype == np.int32 for row in fed.values())
    tokens = np.arange(12, dtype=np.float32).reshape(1, 6, 2)
    assert processor.after({"y": tokens}, noted) == {"values": [3.0, 4.0], "shape": [2]}
    with pytest.raises(EngineError, match="mean-pool"):
        processor.after({"y": tokens[:, :4]}, noted)


def test_scores() -> None:
    assert scores.softmax(np.array([1e4, 1e4], np.float32)).tolist() == [0.5, 0.5]
    np.testing.assert_allclose(scores.l2_normalise(np.array([3.0, 4.0])), [0.6, 0.8])
    assert scores.l2_normalise(np.zeros(2)).tolist() == [0.0, 0.0]
    assert scores.top(np.array([1, 3, 2], np.int8), 2, ("a", "b")) == {
        "label": "b", "index": 1, "score": 3.0,
        "top": [{"label": "b", "index": 1, "score": 3.0}, {"index": 2, "score": 2.0}],
    }  # fmt: skip
    for bad in (np.array([np.nan]), np.array([np.inf]), np.array([])):
        with pytest.raises(EngineError, match="NaN or infinity"):
            scores.top(bad, 1, ())
        with pytest.raises(EngineError, match="NaN or infinity"):
            scores.values(bad)


# --- pictures of a hostile client


def png(width: int, height: int) -> bytes:
    """A PNG whose header states a size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def flat(width: int, height: int, kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, (width, height)).save(file, kind)
    return file.getvalue()


def reader(resize: str = "stretch") -> Processor:
    image = Image("input", "NCHW", "RGB", resize)
    made = config(
        Pipeline(before=(Picture(max_pixels=1 << 20),)),
        (TensorSpec("input", "FP32", (-1, 3, 32, 32)),),
        (TensorSpec("logits", "FP32", (-1, 10)),),
        preprocessing=Preprocessing((Affine("input", "UINT8", 1 / 255, 0.0),), (image,)),
    )
    assert made.pipeline is not None
    return Processor(made, made.pipeline, {})


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "of no known format"),
        (b"\xff\xd8\xff\xe0 no picture", "not a sound picture"),
        (flat(64, 64)[:60], "not a sound picture"),
        (flat(64, 64, "JPEG")[:300], "not a sound picture"),
        (flat(64, 64, "GIF"), "of no known format"),
        (flat(64, 64, "TIFF"), "of no known format"),
        (flat(64, 64, "PNG", "I;16"), "8 bits"),
        (png(0, 0), "not a sound picture"),
        (png(1025, 1024), "1025 x 1024 pixels, more than the 1048576 allowed"),
        (png(50_000, 50_000), "not a sound picture|more than"),
        (png(2**31 - 1, 2**31 - 1), "not a sound picture|more than"),
        (flat(1, 1 << 19), "too narrow"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_bad_pictures_are_refused_in_one_line(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        reader().before(body)
    assert "\n" not in refused.value.message


def test_a_narrow_picture_is_not_blown_up_for_a_crop() -> None:
    """Cropping 1 x 300,000 to 32 x 32 would first make 32 x 9,600,000 of it."""
    for size in ((1, 300_000), (300_000, 1)):
        with pytest.raises(InputError, match="too narrow"):
            reader("crop").before(flat(*size))


def test_without_pillow_pictures_are_refused_when_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EngineMissing, match="Pillow") as refused:
        reader()
    assert "python3-pil" in refused.value.hint
    assert spotter().pipeline is not None  # recordings need none
    Processor(spotter(), SPOTTER, {})
