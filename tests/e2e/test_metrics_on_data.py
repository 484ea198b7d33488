"""Every metric on real models and real data, through a whole build; checked against figures computed here or
kept with the data. (`accuracy` and `agreement` are in test_build.py and test_search.py.)"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import edgekit
from benchmarks.zoo import fastestdet
from edgekit import profile, runtimes
from edgekit.build import data, stats
from edgekit.build.data import Wanted, images
from edgekit.bundle.model import Certificate, TensorSpec

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
KWS = ROOT / "examples" / "kws"
WORDS = ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("data"),
    pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository"),
]


def certified(model: Path, cache: Path, **how: Any) -> Certificate:
    quick = {
        "engines": ["onnxruntime"],
        "effort": "quick",
        "gate": False,
        "robustness": False,
        "cache": cache,
    }
    (variant,) = edgekit.build(model, "generic-cpu", **{"precisions": ["fp32"], **quick, **how}).variants
    return variant.certificate


def answers(model: Path, rows: dict[str, NDArray[Any]]) -> NDArray[Any]:
    (target,) = (one for one in profile.get("generic-cpu").target if one.runtime == "onnxruntime")
    session = runtimes.get("onnxruntime").load({"model.onnx": model.read_bytes()}, target.options)
    count = len(next(iter(rows.values())))
    said = [session.run({name: array[i : i + 1] for name, array in rows.items()}) for i in range(count)]
    return np.concatenate([next(iter(one.values())) for one in said])


def test_top5_on_pictures(tmp_path: Path) -> None:
    tar = SHARED / "cifar10-jpeg" / "test_2000.tar"
    model = SHARED / "cifar10-resnet20" / "resnet20.onnx"
    rows = {"calibration": f"{tar}[300:340]", "evaluate": f"{tar}[0:300]"}
    found = certified(model, tmp_path, image="imagenet", metric="top5", **rows)
    spec = TensorSpec("input", "FP32", (-1, 3, 32, 32))
    wanted = Wanted((spec,), truth="class", image=images.parse("imagenet"))
    stored = data.read(f"{tar}[0:300]", wanted)
    steps = data.preprocessing([], wanted, stored, stored, image_given=True)
    fitted = data.fit(stored, (spec,), steps)
    said = answers(model, fitted.inputs)
    assert fitted.truth is not None
    five = np.argsort(-said, axis=1)[:, :5]
    assert found.accuracy.value == np.mean(
        [label in row for label, row in zip(fitted.truth, five, strict=True)]
    )
    assert found.accuracy.value > 0.97


def test_f1_agreement_on_photographs(tmp_path: Path) -> None:
    """A folder of photographs without classes; fp32 boxes are those kept beside them."""
    folder, model = SHARED / "fastestdet", SHARED / "fastestdet" / "FastestDet.onnx"
    found = certified(
        model,
        tmp_path,
        precisions=["int8"],
        image="bgr",
        calibration=folder,
        evaluate=folder,
        metric="f1-agreement",
        decode=f"{fastestdet.__file__}:boxes",
    )
    assert found.baseline_accuracy.value == 1.0
    assert 0.5 < found.accuracy.value <= 1.0
    assert any("5 of 5 evaluation rows" in line for line in found.warnings)
    spec = TensorSpec("input.1", "FP32", (-1, 3, 352, 352))
    wanted = Wanted((spec,), image=images.parse("bgr"))
    stored = data.read(str(folder), wanted)
    fitted = data.fit(stored, (spec,), data.preprocessing([], wanted, stored, stored, image_given=True))
    known = json.loads((folder / "fp32_detections_thr065.json").read_text())
    labels = (folder / "coco.names").read_text().split("\n")
    boxes = fastestdet.boxes({"758": answers(model, fitted.inputs)})["boxes"]
    matched = total = 0
    for i, mine in enumerate(boxes):
        theirs = known[f"{i}.jpg"]
        total += len(theirs)
        for one in theirs:
            near = np.abs(mine[:, :4] - one["box"]).max(axis=1) < 0.03
            matched += any(near & [labels[int(c)] == one["label"] for c in mine[:, 5]] & (mine[:, 4] > 0))
    assert total > 10
    assert matched >= 0.9 * total  # theirs were resized by another library


def tokens(text: str, vocabulary: dict[str, int], length: int) -> NDArray[np.int64]:
    """BERT's WordPiece (Devlin et al. 2018): lower case, without accents, longest piece first."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    found = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", plain):
        start, pieces = 0, []
        while start < len(word):
            ends = range(len(word), start, -1)
            names = (("##" if start else "") + word[start:end] for end in ends)
            name = next((name for name in names if name in vocabulary), "")
            if not name:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[name])
            start += len(name.removeprefix("##"))
        found += pieces
    ids = np.zeros(length, np.int64)
    ids[: min(len(found), length - 1) + 1] = [*found[: length - 1], vocabulary["[SEP]"]]
    return ids


def test_spearman_on_pairs_of_sentences(tmp_path: Path) -> None:
    """Token rows from Python, two for each score."""
    model = SHARED / "minilm-int8" / "minilm_int8.onnx"
    vocabulary = json.loads((model.parent / "tokenizer.json").read_text())["model"]["vocab"]
    with (SHARED / "stsb" / "stsb-en-test.csv").open(newline="") as file:
        pairs = list(csv.reader(file))[::14]
    ids = np.stack([tokens(text, vocabulary, 48) for left, right, _ in pairs for text in (left, right)])
    scores = np.array([float(score) for _, _, score in pairs for _ in range(2)])
    rows = [{"input_ids": one, "attention_mask": (one > 0).astype(np.int64)} for one in ids]
    found = certified(
        model,
        tmp_path,
        calibration=rows[:2],
        evaluate=zip(rows, scores, strict=True),
        metric="spearman",
        shapes={"input_ids": (1, 48), "attention_mask": (1, 48)},
    )
    vectors = answers(model, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
    cosine = np.sum(vectors[::2] * vectors[1::2], axis=1)  # of length 1 already
    ours, theirs = (stats.ranks(values.astype(np.float64)) for values in (cosine, scores[::2]))
    known = float(np.mean((ours - ours.mean()) * (theirs - theirs.mean())) / (ours.std() * theirs.std()))
    assert found.accuracy.value == pytest.approx(known, abs=0.005)
    assert 0.75 < found.accuracy.value < 0.9  # 0.8172 on all pairs


def test_character_errors_on_words(tmp_path: Path) -> None:
    """The keyword spotter's classes decoded to words, and words as truth."""
    decoder = tmp_path / "decode.py"
    decoder.write_text(
        "import numpy as np\n"
        f"WORDS = np.array({WORDS!r})\n"
        "def words(outputs):\n"
        "    return {'words': WORDS[next(iter(outputs.values())).argmax(axis=1)]}\n"
    )
    with np.load(KWS / "kws01_eval.npz") as file:
        rows, labels = file["x"][:300], file["y"][:300]
    np.savez(tmp_path / "words.npz", x=rows, labels=np.array(WORDS)[labels])
    found = certified(
        KWS / "kws_fp32.onnx",
        tmp_path,
        calibration=f"{tmp_path / 'words.npz'}[0:40]",
        evaluate=tmp_path / "words.npz",
        affine=["0.5847029089927673,83"],
        metric="cer",
        decode=f"{decoder}:words",
    )
    real = (rows.astype(np.float32) - np.float32(83)) * np.float32(0.5847029089927673)
    said = answers(KWS / "kws_fp32.onnx", {"serving_default_input_1:0": real}).argmax(axis=1)
    edits = sum(stats.edit_distance(WORDS[a], WORDS[b]) for a, b in zip(said, labels, strict=True))
    assert found.accuracy.value == pytest.approx(edits / sum(len(WORDS[label]) for label in labels))
    assert not found.higher_is_better
    assert 0.02 < found.accuracy.value < 0.2
