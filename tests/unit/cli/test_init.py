"""`edgekit init`: flags, found values, and a person at a real terminal."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgekit import cli
from edgekit.build import settings
from tests.conformance.models import onnx_files
from tests.unit.runtimes import kws


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of two inputs, a and b, with data whose arrays have other names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.onnx").write_bytes(onnx_files(tmp_path)["model.onnx"])
    rows = np.zeros((400, 3), np.float32)
    np.savez(tmp_path / "data.npz", first=rows, second=rows, y=np.zeros(400, np.int64))
    return tmp_path


def test_everything_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--data", "data.npz", "--profile", "jetson", "--yes"]) == 0
    assert settings.load(folder / "edgekit.toml") == {
        "model": "tiny.onnx",
        "profile": ("jetson",),
        "calibration": "data.npz[0:100]",
        "evaluate": "data.npz[100:400]",
        "labels": "y",
        "input": ("a=first", "b=second"),
        "objective": "latency",
        "output": "tiny.edgekit",
    }
    out = capsys.readouterr().out
    assert "edgekit build tiny.onnx --profile jetson" in out


def test_the_file_is_a_build(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "init",
        "tiny.onnx",
        "--data",
        "data.npz",
        "--profile",
        "jetson",
        "--objective",
        "size",
        "--json",
    ]
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["flags"]["objective"] == "size"
    assert cli.main(["build", "--settings", told["settings"], "--dry-run"]) == 0
    assert "jetson.onnxruntime.int8" in capsys.readouterr().out


def test_class_folders_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that reads pictures: the folder is split, and how pixels are made is written down."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kws.onnx").write_bytes(kws.model())
    for i in range(8):
        (tmp_path / "words" / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "words" / f"class{i % 2}" / f"{i}.png").write_bytes(b"not looked into")
    words = ["init", "--data", "words", "--profile", "jetson", "--yes"]
    assert cli.main(words) == 0
    found = settings.load(tmp_path / "edgekit.toml")
    assert (found["calibration"], found["evaluate"]) == ("words[0:2]", "words[2:8]")
    assert found["image"] == "gray stretch"
    assert "labels" not in found
    assert cli.main([*words, "--force", "--image", "bgr"]) == 2  # the model has one channel


def test_an_existing_file_stays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "edgekit.toml").write_text("mine")
    assert cli.main(["init", "--data", "data.npz"]) == 2
    assert "exists" in capsys.readouterr().err
    assert (folder / "edgekit.toml").read_text() == "mine"
    assert cli.main(["init", "--data", "data.npz", "--force", "--yes"]) == 0
    assert cli.main(["init", "--data", "data.npz", "--settings", "b.toml", "--yes"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--yes"], "--data"),
        (["absent.onnx", "--data", "data.npz"], "absent.onnx"),
        (["data.npz", "--data", "data.npz"], "not a model"),
        (["--data", "absent.npz"], "absent.npz"),
        (["--data", "data.npz", "--profile", "jetsn"], "jetson"),
        (["--data", "ints.npz"], "--affine"),
    ],
)
def test_what_is_missing_or_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    rows = np.zeros((40, 3), np.int8)
    np.savez(folder / "ints.npz", a=rows, b=rows, labels=np.zeros(40, np.int64))
    assert cli.main(["init", *words, "--yes"]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (folder / "edgekit.toml").exists()


def test_a_person_is_asked_again_after_a_wrong_answer(folder: Path) -> None:
    master, slave = pty.openpty()
    answers = ["", "jetsn", "jetson, generic-cpu", "nothing.npz", "data.npz", "", "", "", "speed", "size", ""]
    os.write(master, "".join(f"{answer}\n" for answer in answers).encode())
    command = [sys.executable, "-m", "edgekit.cli", "init"]
    done = subprocess.run(command, stdin=slave, capture_output=True, text=True, timeout=120, check=False)
    os.close(slave)
    os.close(master)
    assert done.returncode == 0, done.stderr
    for words in (
        "Trained model [tiny.onnx]",
        "unknown profile 'jetsn'",
        "No such file",
        "is none of latency",
    ):
        assert words in done.stderr
    flags = settings.load(folder / "edgekit.toml")
    assert flags["profile"] == ("jetson", "generic-cpu")
    assert flags["objective"] == "size"
