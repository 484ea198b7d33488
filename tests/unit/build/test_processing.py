"""`--pipeline FILE.toml`: read, refused with one line, checked against a model, tried once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.build import processing
from edgekit.bundle.model import Affine, Image, Preprocessing, TensorSpec, VariantConfig
from edgekit.bundle.steps import Length, Mfcc, Peak, Pipeline, Resample, TopK, Wav, WordPiece
from edgekit.errors import ConfigError
from tests.support.bundles import make_config
from tests.unit.runtimes.test_wordpiece import SMALL

EXAMPLE = Path(__file__).parents[3] / "examples" / "kws" / "pipeline.toml"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def load(folder: Path, text: str) -> processing.Processing:
    path = folder / "pipeline.toml"
    path.write_text(text)
    return processing.load(path)


def spotter(**changes: Any) -> VariantConfig:
    inputs, outputs = (TensorSpec("x", "FP32", (-1, 49, 10, 1)),), (TensorSpec("y", "FP32", (-1, 12)),)
    plain = make_config(inputs=inputs, outputs=outputs, labels=(), preprocessing=Preprocessing())
    return dataclasses.replace(plain, **changes)


def rehearsed(config: VariantConfig, found: processing.Processing) -> dict[str, Any]:
    return processing.rehearse(processing.attach(config, found), found)


def test_the_example_fits_its_model() -> None:
    found = processing.load(EXAMPLE)
    assert found.pipeline == Pipeline(
        before=(Wav(), Resample(rate=16000), Peak(), Length(samples=16000), Mfcc()), after=(TopK(),)
    )
    assert rehearsed(spotter(labels=("a", "b")), found) == {"label": "a", "index": 0, "score": 0.0}


def test_whole_numbers_may_stand_for_others(tmp_path: Path) -> None:
    found = load(tmp_path, '[[before]]\nkind = "wav"\nmax_seconds = 5\n')
    assert found.pipeline.before == (Wav(max_seconds=5.0),)
    assert repr(found.pipeline.before[0]).count("5.0") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[before]", "not valid TOML"),
        ("before = 3", "should be tables"),
        ('[[before]]\nkind = "mp3"', r"\[\[before\]\]: no step is called 'mp3'"),
        ("[[before]]\nrate = 1", "no step is called None"),
        ('[[after]]\nkind = "wav"', r"\[\[after\]\]: no step is called 'wav'"),
        ('[[before]]\nkind = "wav"\nseconds = 3', "'wav'.*seconds"),
        ('[[before]]\nkind = "resample"', "'resample'.*rate"),
        ('[[before]]\nkind = "resample"\nrate = "fast"', "rate should be int"),
        ('[[after]]\nkind = "boxes"\nformat = "ssd"', "format"),
        ('name = "x"\n[[before]]\nkind = "wav"', "name"),
        ('[[before]]\nkind = "wordpiece"\nvocabulary = "absent.txt"\nids = "a"', "cannot read .*absent.txt"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        load(tmp_path, text)
    assert "\n" not in refused.value.message
    assert "pipeline.toml" in refused.value.message or "absent" in words
    with pytest.raises(ConfigError, match="cannot read"):
        processing.load(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[before]]\nkind = "picture"', "how pictures become input 'x' is not described"),
        ('[[before]]\nkind = "wav"', r"values of shape \[16000\], input 'x' wants \[49, 10, 1\]"),
        (
            '[[before]]\nkind = "wav"\n[[before]]\nkind = "mfcc"\nstep = 160',
            "gives 98 frames, the model reads 49",
        ),
        (
            '[[before]]\nkind = "wav"\n[[before]]\nkind = "mfcc"\nrate = 8000\nhigh_hz = 4000',
            "24 frames|wants",
        ),
        ('[[before]]\nkind = "wav"\n[[before]]\nkind = "mfcc"\nmel_bins = 0', "mel_bins"),
        ('[[before]]\nkind = "wav"\n[[before]]\nkind = "mfcc"\n[[after]]\nkind = "mean-pool"', "mean-pool"),
    ],
)
def test_what_does_not_fit_the_model_is_said_before_anything_is_built(
    tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        rehearsed(spotter(), load(tmp_path, text))


def test_a_picture_is_tried(tmp_path: Path) -> None:
    found = load(tmp_path, '[[before]]\nkind = "picture"\n[[after]]\nkind = "boxes"\nformat = "yolov8"\n')
    config = make_config(
        inputs=(TensorSpec("x", "FP32", (1, 32, 32, 1)),),
        outputs=(TensorSpec("y", "FP32", (1, 6, 100)),),
        preprocessing=Preprocessing(
            (Affine("x", "UINT8", 1.0, 0.0),), (Image("x", "NHWC", "L", "letterbox"),)
        ),
    )
    assert rehearsed(config, found) == {"boxes": [], "width": 64, "height": 48}
    with pytest.raises(ConfigError, match=r"\[6\] is not of the format 'yolov8'"):
        rehearsed(dataclasses.replace(config, outputs=(TensorSpec("y", "FP32", (1, 6)),)), found)


WORDS = '[[before]]\nkind = "wordpiece"\nvocabulary = "{}"\nids = "ids"\nmask = "mask"\n'


def test_a_vocabulary_travels_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(SMALL)
    found = load(tmp_path, WORDS.format("vocab.txt"))
    assert found.files == {"pipeline/vocab.txt": SMALL}
    assert found.pipeline.before == (WordPiece(vocabulary="pipeline/vocab.txt", ids="ids", mask="mask"),)
    config = make_config(
        inputs=tuple(TensorSpec(name, "INT64", (-1, 8)) for name in ("ids", "mask")),
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        preprocessing=Preprocessing(),
    )
    made = processing.attach(config, found)
    assert made.files == ("model.bin", "pipeline/vocab.txt") and made.engine_files == ("model.bin",)
    assert processing.rehearse(made, found) == {"values": [0.0, 0.0], "shape": [2]}
    open_ended = dataclasses.replace(made, outputs=(TensorSpec("y", "FP32", (-1, -1, 2)),))
    assert processing.rehearse(open_ended, found) == {}


def test_a_vocabulary_of_hugging_face_is_taken_out_of_its_json(tmp_path: Path) -> None:
    vocab = {token: number for number, token in enumerate((*SPECIAL, "hello", "##s"))}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "WordPiece", "vocab": vocab}}))
    assert load(tmp_path, WORDS.format("tokenizer.json")).files["pipeline/vocab.txt"] == (
        b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nhello\n##s\n"
    )
    for bad in (
        "nothing", "{}", '{"model": []}', '{"model": {"vocab": 3}}', '{"model": {"vocab": {"a": 1}}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}}}', '{"model": {"vocab": {"a\\nb": 0}}}',
    ):  # fmt: skip
        path.write_text(bad)
        with pytest.raises(ConfigError, match=r"tokenizer.json: no"):
            load(tmp_path, WORDS.format("tokenizer.json"))


def test_a_bad_vocabulary_is_named(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"hello\n")
    found = load(tmp_path, WORDS.format("vocab.txt"))
    config = make_config(
        inputs=tuple(TensorSpec(name, "INT64", (-1, 8)) for name in ("ids", "mask")),
        preprocessing=Preprocessing(),
    )
    with pytest.raises(ConfigError, match=r"vocabulary: it has no '\[UNK\]'"):
        rehearsed(config, found)
