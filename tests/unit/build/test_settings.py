"""edgekit.toml and what `edgekit init` proposes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgekit import cli
from edgekit.build import settings, suggest
from edgekit.bundle.model import TensorSpec
from edgekit.cli import _settings
from edgekit.errors import ConfigError, DataError, InputError
from edgekit.runtimes import Array

FLAGS: dict[str, settings.Value] = {
    "model": "kws.onnx",
    "profile": ("jetson", "generic-cpu"),
    "calibration": 'a "b".npz[0:200]',
    "affine": ("-0.5,83",),
    "jobs": 2,
    "accuracy-ratio": 0.98,
    "no-gate": True,
    "emulate": False,
}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.toml"
    path.write_text(settings.text(FLAGS, ["a comment"]))
    assert settings.load(path) == FLAGS


def test_words_of_a_command_line() -> None:
    assert settings.words(FLAGS) == [
        "kws.onnx", "--profile", "jetson", "--profile", "generic-cpu", "--calibration", 'a "b".npz[0:200]',
        "--affine=-0.5,83", "--jobs", "2", "--accuracy-ratio", "0.98", "--no-gate",
    ]  # fmt: skip
    assert settings.words({"model": "-x.onnx"}) == ["./-x.onnx"]


def test_underscores_are_dashes(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[build]\nno_gate = true\n")
    assert settings.load(tmp_path / "a.toml") == {"no-gate": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[build]\nmodel = ", "not valid TOML"),
        ("", "expected the table"),
        ("[build]\n[other]\n", "other"),
        ("[build]\nmodel = [1]\n", "model should be"),
        ("[build]\nmodel = {a = 1}\n", "model should be"),
        ("build = 3\n", "expected the table"),
        ("[build]\nmodel = 1979-05-27\n", "model should be"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "edgekit.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        settings.load(path)
    with pytest.raises(ConfigError, match="cannot read"):
        settings.load(tmp_path / "absent.toml")


def expand(*words: str) -> list[str]:
    return _settings.expand(words, cli.command(cli.parser("build"), "build"))


def test_a_build_without_flags_reads_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expand("build") == ["build"]
    Path("edgekit.toml").write_text('[build]\nmodel = "m.onnx"\n')
    Path("other.toml").write_text('[build]\nmodel = "o.onnx"\nprofile = ["jetson"]\n')
    assert expand("build") == ["build", "m.onnx"]
    assert expand("build", "x.onnx", "--quiet") == ["build", "x.onnx", "--quiet"]
    wanted = ["build", "o.onnx", "--profile", "jetson", "--quiet"]
    assert expand("build", "--settings", "other.toml", "--quiet") == wanted
    assert expand("build", "--quiet", "--settings=other.toml") == wanted
    with pytest.raises(InputError, match="name the file"):
        expand("build", "--settings")
    Path("edgekit.toml").write_text('[build]\nprofil = "m.onnx"\n')
    with pytest.raises(ConfigError, match="build has no 'profil'") as caught:
        expand("build")
    assert "'profile'" in caught.value.hint


SPECS = (TensorSpec("image", "FP32", (-1, 8, 8, 3)), TensorSpec("mask", "FP32", (-1, 8)))


def test_arrays_are_matched_by_name_then_by_shape() -> None:
    arrays: dict[str, Array] = {
        "y": np.zeros(40, np.int64),
        "other": np.zeros((40, 8), np.float32),
        "pixels": np.zeros((40, 8, 8, 3), np.uint8),
        "mean": np.zeros(3),
    }
    found = suggest.guess(arrays, SPECS)
    assert found == suggest.Guess(40, {"image": "pixels", "mask": "other"}, "y", {"image": "UINT8"})
    named = suggest.guess({**arrays, "mask": np.zeros((40, 8), np.float32)}, SPECS)
    assert named.inputs["mask"] == "mask"
    assert suggest.guess({}, SPECS) == suggest.Guess(0)


def test_labels_need_a_usual_name_when_there_are_several() -> None:
    arrays = {"a": np.zeros(9), "b": np.zeros(9, np.int64)}
    assert suggest.guess(arrays, ()).labels == ""
    assert suggest.guess({**arrays, "targets": np.zeros(9)}, ()).labels == "targets"


@pytest.mark.parametrize("rows", [1, 2, 3, 60, 1000])
def test_rows_are_split_apart(rows: int) -> None:
    first, second = suggest.split("d.npz", rows)
    if rows == 1:
        assert (first, second) == ("d.npz", "d.npz")
    else:
        cut = int(first.split(":")[1][:-1])
        assert (first, second) == (f"d.npz[0:{cut}]", f"d.npz[{cut}:{rows}]")
        assert 1 <= cut <= min(200, rows - 1)


def test_what_is_no_data_says_so(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nonsense")
    for name in ("bad.npz", "absent.npz"):
        with pytest.raises(DataError, match=name):
            suggest.look(str(tmp_path / name))


def test_tables_and_pictures_are_looked_at(tmp_path: Path) -> None:
    flat = (TensorSpec("x", "FP32", (-1, 3)),)
    (tmp_path / "a.csv").write_text("p,q,r,kind\n1,2,3,0\n4,5,6,1\n")
    assert suggest.look(str(tmp_path / "a.csv"), flat) == suggest.Guess(2, labels="kind")
    (tmp_path / "b.csv").write_text("Target,q,r,s\n1,2,3,0\n")
    assert suggest.look(str(tmp_path / "b.csv[0:1]"), flat) == suggest.Guess(1, labels="Target")
    (tmp_path / "c.csv").write_text("path,label\na.png,cat\n")
    assert suggest.look(str(tmp_path / "c.csv")) == suggest.Guess(1, labels="label", pictures=True)
    for name in ("cat/1.png", "cat/2.JPG", "dog/1.png", "dog/notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(b"not looked into")
    assert suggest.look(str(tmp_path / "set")) == suggest.Guess(3, pictures=True)
    packed = shutil.make_archive(str(tmp_path / "set"), "gztar", tmp_path / "set")
    assert suggest.look(packed) == suggest.Guess(3, pictures=True)
