"""Training recipes: what is refused before anything is trained, and the record in an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgekit.build import compress, sources
from edgekit.build.compress import recipe
from edgekit.build.sources import record
from edgekit.bundle.model import Training
from edgekit.errors import ConfigError, EdgekitError, ModelError
from tests.unit.build import models

GOOD = """
[model]
file = "model.pt2"
[data]
train = "rows.npz"
[[step]]
method = "prune"
"""
STEP = '\n[[step]]\nmethod = "{}"\n'
TRAINING = Training(("prune",), "a" * 64, "b" * 64, "c" * 64, 1, 2, (1.5, 0.5))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_defaults(tmp_path: Path) -> None:
    plan = recipe.load(written(tmp_path, GOOD))
    assert plan.step[0].ratio == 0.5
    assert plan.train.seed == 1
    assert plan.classifies


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("[data]", "learning_rte = 1\n[data]"), "learning_rte"),
        (GOOD + "ratio = 1.5\n", r"step 1 \(prune\): ratio = 1.5"),
        (GOOD + "ratio = nan\n", "ratio = nan"),
        (GOOD + "epochs = 2.5\n", "epochs"),
        (GOOD + 'method2 = "x"\n', "method2"),
        (GOOD.replace('"prune"', '"shrink"'), "method"),
        (GOOD.replace('"prune"', '"distill"'), r"needs a \[teacher\]"),
        (GOOD + 'loss = "distillation"\n', r"needs a \[teacher\]"),
        (GOOD + STEP.format("train") + "ratio = 0.2\n", "step 2 .train.: ratio belongs to prune"),
        (GOOD + STEP.format("quantize") + STEP.format("train"), "quantize must be the last"),
        (GOOD.replace('"prune"', '"sparsify"') + STEP.format("prune"), "prune must come before sparsify"),
        (GOOD.replace("file", 'code = "m.py:f"\nfile'), "either file or code"),
        (GOOD.replace('file = "model.pt2"', 'code = "m.py:f"'), "needs shape"),
        (GOOD.replace('file = "model.pt2"', 'code = "m.py"'), "is not FILE.py:FUNCTION"),
        (GOOD.replace('train = "rows.npz"', 'train = "rows.npz"\ncrop = -1'), "crop"),
        (GOOD + "[train]\nbatch = 1\n", "batch"),
        (GOOD.replace('train = "rows.npz"', 'train = "rows.npz"\ninput = ["x"]'), "is not INPUT=ARRAY"),
        (GOOD + 'loss = "mse"\n' + STEP.format("train"), "do not mix"),
        ("[model]\n", "data"),
        ("not toml", "not valid TOML"),
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=words) as refusal:
        compress.compress(path)
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message


@pytest.mark.parametrize("broken", [b"", b"\x00" * 64, b"PK\x03\x04 cut"])
def test_what_is_no_trainable_model_never_starts_pytorch(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "model.pt2").write_bytes(broken)
    with pytest.raises(EdgekitError, match=r"model\.pt2"):
        compress.compress(written(tmp_path, GOOD))


def test_onnx_is_refused_with_what_to_do(tmp_path: Path) -> None:
    models.saved(tmp_path, models.linear()).rename(tmp_path / "model.pt2")
    with pytest.raises(ModelError, match="cannot be trained") as refusal:
        compress.compress(written(tmp_path, GOOD))
    assert ".pt2" in refusal.value.hint


def test_code_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text("raise SystemExit('it ran')")
    code = 'code = "m.py:f"\nshape = ["x=1,4"]'
    with pytest.raises(ModelError, match="runs Python code") as refusal:
        compress.compress(written(tmp_path, GOOD.replace('file = "model.pt2"', code)))
    assert "--trust-source" in refusal.value.hint


def test_the_record_stays_with_the_file_and_not_with_the_graph(tmp_path: Path) -> None:
    plain = models.saved(tmp_path, models.linear())
    want = sources.load(plain)
    assert want.training is None
    (tmp_path / "stamped.onnx").write_bytes(record.stamped(plain.read_bytes(), TRAINING))
    have = sources.load(tmp_path / "stamped.onnx")
    assert have.training == TRAINING
    assert have.onnx == want.onnx


def test_a_damaged_record_is_refused(tmp_path: Path) -> None:
    model = onnx.ModelProto.FromString(record.stamped(models.linear().SerializeToString(), TRAINING))
    model.metadata_props[-1].value = '{"seed": "1"}'
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="training record"):
        sources.load(tmp_path / "m.onnx")
