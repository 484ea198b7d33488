"""`edgekit compress` with the real PyTorch: what goes is gone, and the build judges it by the original."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import edgekit
from edgekit import cli, toolenv
from edgekit.build import sources
from edgekit.errors import ModelError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("toolenv")]

CODE = '''
import torch
from torch import nn
from torch.nn import functional


class Net(nn.Module):
    """Two stages; the shortcut between them fills new channels with zeros, so the first stage is rigid."""

    def __init__(self, inner):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, inner, 3, 1, 1, bias=False)
        self.inner_norm = nn.BatchNorm2d(inner)
        self.outer = nn.Conv2d(inner, 16, 3, 1, 1, bias=False)
        self.outer_norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = functional.relu(self.norm(self.stem(x)))
        y = self.outer_norm(self.outer(functional.relu(self.inner_norm(self.inner(x)))))
        x = functional.relu(y + functional.pad(x, (0, 0, 0, 0, 4, 4)))
        return functional.softmax(self.head(self.drop(x.mean((2, 3)))), 1)


def small():
    return Net(16)


def large():
    return Net(32)


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1))


def steep():
    layer = nn.Linear(192, 4)
    nn.init.uniform_(layer.weight, -10.0, 10.0)
    return nn.Sequential(nn.Flatten(), layer)
'''
MODEL = """
[model]
code = "net.py:small"
shape = ["picture=1,3,8,8"]
{weights}
[data]
train = "rows.npz[0:192]"
validate = "rows.npz[192:256]"
flip = true
crop = 1
[train]
batch = 32
time_limit_s = {limit}
"""
CHAIN = (
    MODEL.format(weights="", limit=300)
    + """
[teacher]
code = "net.py:large"
[[step]]
method = "train"
epochs = 6
learning_rate = 0.1
[[step]]
method = "prune"
ratio = 0.5
criterion = "taylor"
iterations = 2
epochs = 2
loss = "distillation"
temperature = 2.0
alpha = 0.1
[[step]]
method = "sparsify"
epochs = 1
[[step]]
method = "quantize"
epochs = 1
learning_rate = 0.002
"""
)
TRAIN = '\n[[step]]\nmethod = "train"\nepochs = {epochs}\nlearning_rate = {rate}\n'

SPARSE = '\n[[step]]\nmethod = "sparsify"\nepochs = 0\n'


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Pictures whose class is the colour and half that is bright, and the code of the models."""
    folder = tmp_path_factory.mktemp("compress")
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 4, 256)
    pictures = generator.normal(0, 0.7, (256, 3, 8, 8)).astype(np.float32)
    for row, label in enumerate(labels):
        pictures[row, label // 2, (label % 2) * 4 :][:4] += 1.0
    np.savez(folder / "rows.npz", picture=pictures, labels=labels)
    (folder / "net.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKIT_KEYS", str(folder / "keys"))
        patch.setenv("EDGEKIT_CACHE", str(folder / "cache"))
        yield folder


def recipe(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture(scope="module")
def made(place: Path) -> Any:
    """The chain once through the command line; its JSON."""
    words = ["compress", recipe(place, CHAIN), "-o", place / "small.onnx", "--original", place / "whole.onnx"]
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("sys.stdout.write", said.append)
        assert cli.main([*map(str, words), "--trust-source", "--json"]) == 0
    return json.loads("".join(said))


def weights(path: Path) -> dict[tuple[int, ...], NDArray[Any]]:
    """Weights of convolutions and of the head, by shape."""
    found = (numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    return {array.shape: array for array in found if array.ndim in (2, 4) and array.dtype == np.float32}


FORMULAS = """
import sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[1])
import _torch_lowbit, _torch_train
with np.load("formulas.npz") as file:
    scores, taught, labels, weight = (torch.from_numpy(file[n]) for n in ("s", "t", "y", "w"))
hard = torch.nn.functional.cross_entropy(scores, labels)
np.savez(
    "answers.npz",
    loss=_torch_train.distillation(scores, taught, hard, 3.0, 0.7),
    logits=_torch_train.logits(torch.softmax(taught, 1)),
    mask=_torch_lowbit.two_of_four(weight),
)
"""


def test_the_formulas_are_those_of_the_papers(tmp_path: Path) -> None:
    generator = np.random.default_rng(5)
    s, t = generator.normal(0, 2, (2, 6, 4))
    y, w = generator.integers(0, 4, 6), generator.normal(0, 1, (3, 8, 2, 2))
    np.savez(tmp_path / "formulas.npz", s=s, t=t, y=y, w=w)
    scripts = str(Path(toolenv.__file__).parent / "scripts")
    python = str(toolenv.ensure("torch"))
    subprocess.run([python, "-c", FORMULAS, scripts], cwd=tmp_path, check=True, capture_output=True)

    def softmax(z: NDArray[Any]) -> NDArray[Any]:
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True))

    with np.load(tmp_path / "answers.npz") as found:
        teacher, student = softmax(t / 3), softmax(s / 3)
        divergence = (teacher * np.log(teacher / student)).sum(1).mean()
        hard = -np.log(softmax(s)[np.arange(6), y]).mean()
        np.testing.assert_allclose(found["loss"], 0.7 * 9 * divergence + 0.3 * hard, rtol=1e-9)
        np.testing.assert_allclose(softmax(found["logits"]), softmax(t), rtol=1e-9)
        # Of each four neighbours along the input channels the two largest stay.
        fours = np.abs(np.moveaxis(w, 1, -1).reshape(-1, 4))
        kept = np.moveaxis(found["mask"], 1, -1).reshape(-1, 4) == 1
        assert (kept.sum(1) == 2).all()
        assert (np.where(kept, fours, np.inf).min(1) >= np.where(kept, 0, fours).max(1)).all()


def test_channels_are_gone_only_where_they_may_go(place: Path, made: dict[str, Any]) -> None:
    pruned = made["steps"][1]
    assert pruned["channels"] == {"inner": [16, 8]}
    assert pruned["rigid"] == ["head", "outer", "stem"]
    assert set(weights(place / "small.onnx")) == {(8, 3, 3, 3), (8, 8, 3, 3), (16, 8, 3, 3), (4, 16)}
    assert set(weights(place / "whole.onnx")) == {(8, 3, 3, 3), (16, 8, 3, 3), (16, 16, 3, 3), (4, 16)}
    assert made["after"]["macs"] < 0.6 * made["before"]["macs"]


def test_two_of_four_weights_are_zero_in_the_exported_file(place: Path, made: dict[str, Any]) -> None:
    assert made["steps"][2]["layers"] == ["inner", "outer", "head"]
    for shape, weight in weights(place / "small.onnx").items():
        if shape[1] % 4:
            assert np.count_nonzero(weight) > 0.9 * weight.size
            continue
        fours = np.moveaxis(weight, 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(fours, axis=1) <= 2).all()
        assert np.count_nonzero(weight) > 0.4 * weight.size


def test_weights_lie_on_the_int8_grid(place: Path, made: dict[str, Any]) -> None:
    for weight in weights(place / "small.onnx").values():
        rows = weight.reshape(len(weight), -1)
        steps = rows / (np.abs(rows).max(axis=1, keepdims=True) / 127)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_it_learns(made: dict[str, Any]) -> None:
    losses = [one["loss"] for one in made["epochs"] if one["step"] == "step 1 (train)"]
    assert losses[-1] < 0.7 * losses[0]
    assert made["after"]["accuracy"] > 0.7
    assert [one["method"] for one in made["steps"]] == ["train", "prune", "sparsify", "quantize"]
    assert len(made["epochs"]) == 10


def test_the_same_seed_gives_the_same_bytes(place: Path, made: dict[str, Any]) -> None:
    lines: list[str] = []
    again = edgekit.compress(
        place / "recipe.toml",
        place / "again.onnx",
        trust_source=True,
        on_line=lines.append,
    )
    assert (place / "again.onnx").read_bytes() == (place / "small.onnx").read_bytes()
    assert sum("epoch" in line for line in lines) == again.training.epochs == 10


def test_the_build_judges_it_by_the_original(
    place: Path, made: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    words: dict[str, Any] = {
        "calibration": f"{place / 'rows.npz'}[0:64]",
        "evaluate": f"{place / 'rows.npz'}[64:256]",
        "engines": ["onnxruntime"],
        "precisions": ["fp32"],
        "gate": False,
    }
    alone: Any = edgekit.build(place / "small.onnx", "generic-cpu", **words)
    words |= {"baseline": place / "whole.onnx", "output": place / "small.edgekit"}
    beside: Any = edgekit.build(place / "small.onnx", "generic-cpu", **words)
    del words["baseline"], words["output"]
    original: Any = edgekit.build(place / "whole.onnx", "generic-cpu", **words)
    certificate = beside.variants[0].certificate
    assert certificate.baseline_accuracy == original.variants[0].certificate.accuracy
    assert certificate.accuracy == alone.variants[0].certificate.accuracy
    assert certificate.accuracy.value > certificate.baseline_accuracy.value + 0.3  # the original is untrained
    assert certificate.baseline_sha256 == original.variants[0].certificate.source_sha256
    assert alone.variants[0].certificate.baseline_sha256 == ""
    # Golden samples ask whether a device computes this variant, so their classes are its own.
    assert beside.variants[0].golden_files["reference"] == alone.variants[0].golden_files["reference"]
    record = beside.report["provenance"]["training"]
    assert certificate.training is not None
    assert certificate.training.seed == record["seed"] == 1
    assert record["losses"] == [one["loss"] for one in made["epochs"]]
    assert record["methods"][0] == "train epochs=6 learning_rate=0.1"
    assert cli.main(["inspect", str(place / "small.edgekit"), "--certificate", "all"]) == 0
    said = capsys.readouterr().out
    assert "train epochs=6 learning_rate=0.1; prune" in said
    assert certificate.baseline_sha256[:16] in said
    assert "prune" in beside.html()


def test_an_exported_file_needs_no_trust_and_keeps_its_names(place: Path) -> None:
    export = (
        "import sys, torch; sys.path.insert(0, '.'); import net\n"
        "program = torch.export.export(net.small().eval(), (torch.zeros(2, 3, 8, 8),),\n"
        "    dynamic_shapes={'x': {0: torch.export.Dim.DYNAMIC}})\n"
        "torch.export.save(program, 'net.pt2')\n"
    )
    python = str(toolenv.ensure("torch"))
    subprocess.run([python, "-c", export], cwd=place, check=True, capture_output=True)
    text = f'[model]\nfile = "net.pt2"\n[data]\ntrain = "rows.npz[0:64]"\n{SPARSE}'
    edgekit.compress(recipe(place, text, "file.toml"), place / "sparse.onnx")
    want, have = sources.load(place / "net.pt2"), sources.load(place / "sparse.onnx")
    assert (have.inputs, have.outputs) == (want.inputs, want.outputs)
    assert have.training is not None
    assert have.training.parent_sha256 == want.file_sha256
    (place / "clean.onnx").write_bytes(have.onnx)  # BatchNorm is folded there: the zeros stay
    sparse = {shape: array for shape, array in weights(place / "clean.onnx").items() if shape[1] % 4 == 0}
    assert len(sparse) == 3
    for weight in sparse.values():
        fours = np.moveaxis(weight, 1, -1).reshape(-1, 4)
        assert (np.count_nonzero(fours, axis=1) == 2).all()


def test_numbers_are_learnt_too(place: Path) -> None:
    with np.load(place / "rows.npz") as rows:
        brightness = rows["picture"].mean((1, 2, 3))[:, None]
        np.savez(place / "numbers.npz", picture=rows["picture"], labels=brightness.astype(np.float32))
    text = MODEL.format(weights="", limit=300).replace("rows.npz", "numbers.npz").replace(":small", ":flat")
    text += TRAIN.format(epochs=4, rate=0.01) + 'loss = "mse"\n'
    made = edgekit.compress(recipe(place, text, "mse.toml"), place / "mse.onnx", trust_source=True)
    errors = [one["error"] for one in made.log["epochs"]]
    assert errors[-1] < 0.5 * made.log["before"]["error"]


def test_a_loss_that_is_no_number_is_one_line(place: Path) -> None:
    with np.load(place / "rows.npz") as rows:
        np.savez(place / "huge.npz", picture=rows["picture"] * np.float32(5e37), labels=rows["labels"])
    text = MODEL.format(weights="", limit=300).replace("rows.npz", "huge.npz").replace(":small", ":steep")
    text += TRAIN.format(epochs=1, rate=0.1)
    with pytest.raises(ModelError, match=r"step 1 \(train\), epoch \d: the loss is (nan|inf)") as refusal:
        edgekit.compress(recipe(place, text, "nan.toml"), place / "none.onnx", trust_source=True)
    assert "learning_rate" in refusal.value.hint
    assert not (place / "none.onnx").exists()


def test_weights_that_are_a_pickled_object_are_never_loaded(place: Path) -> None:
    (place / "evil.pth").write_bytes(b"\x80\x02cos\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.")
    text = MODEL.format(weights='weights = "evil.pth"', limit=300) + TRAIN.format(epochs=1, rate=0.1)
    with pytest.raises(ModelError, match="weights: ") as refusal:
        edgekit.compress(recipe(place, text, "evil.toml"), place / "none.onnx", trust_source=True)
    assert "\n" not in refusal.value.message
    assert not list(place.rglob("owned"))


def test_the_time_limit_ends_it(place: Path) -> None:
    text = MODEL.format(weights="", limit=1) + TRAIN.format(epochs=1000, rate=0.1)
    with pytest.raises(ModelError, match="time limit of 1 s is spent"):
        edgekit.compress(recipe(place, text, "slow.toml"), place / "none.onnx", trust_source=True)
