"""Two builds on two folders give equal digests, and a machine without a network builds every format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import backends, bundle, profile, runtimes, toolenv
from edgekit.build import sources
from edgekit.crypto.keyring import KeyRing
from edgekit.errors import EngineMissing
from edgekit.profile import Precision, Target
from tests.support.namespaces import walled

ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
SHARED = ROOT.parent / "shared" / "data"
EDGEKIT = str(Path(sys.executable).parent / "edgekit")
AFFINE = "0.5847029089927673,83"
FIRST: tuple[Precision, ...] = ("int8", "fp32")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("toolenv")]


def _profile(engine: str) -> str:
    """A generic computer that has this engine alone, at the smallest precision that it makes."""
    backend, base = backends.get(engine), profile.get("generic-cpu")
    for precision in FIRST:
        recipes = backend.recipes(precision, Target(engine, (precision,)), base.calibration)
        if next(iter(recipes), None):
            return (
                f'name = "{engine}"\ndescription = "{engine} alone"\n'
                '[hardware]\narchitecture = "any"\nisa = []\ncores = 2\nram_mib = 8192\nstorage_mib = 8192\n'
                f'[[target]]\nruntime = "{engine}"\nprecisions = ["{precision}"]\n'
            )
    raise AssertionError(f"{engine} makes neither {' nor '.join(FIRST)}")


def _engines() -> list[str]:
    """Those that build and run here."""
    found = []
    for name in backends.names():
        try:
            backends.get(name).tools()
            runtimes.get(getattr(backends.get(name), "stand_in", "") or name).version()
        except EngineMissing:
            continue
        found.append(name)
    return found


def test_two_builds_on_two_folders_give_equal_digests(tmp_path: Path) -> None:
    """Copies of model and data in folders of other names, other homes, empty caches, other hash seeds."""
    engines = _engines()
    assert {"onnxruntime", "openvino"} <= set(engines)
    environments = [toolenv.ensure(name) for name in toolenv.names() if name in engines]
    made = {"EDGEKIT_TOOLENVS": str(environments[0].parents[2])} if environments else {}
    keys = KeyRing(tmp_path / "keys")
    keys.generate()
    running = []
    for number, name in enumerate(("here", "over there")):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(KWS / "kws_fp32.onnx", folder / f"model-{number}.onnx")
        shutil.copy(KWS / "kws01_eval.npz", folder / f"data-{number}.npz")
        words = [EDGEKIT, "build", f"model-{number}.onnx", "-o", "kws.edgekit", "--labels", "y", "--quiet"]
        for engine in engines:
            (folder / f"{engine}.toml").write_text(_profile(engine))
            words += ["--profile", f"./{engine}.toml"]
        words += ["--calibration", f"data-{number}.npz[0:64]", "--evaluate", f"data-{number}.npz[200:260]"]
        words += ["--affine", AFFINE, "--effort", "quick", "--no-gate", "--no-encrypt", "--no-robustness"]
        places = {
            "EDGEKIT_KEYS": str(keys.folder),
            "EDGEKIT_CACHE": str(folder / "cache"),
            "HOME": str(folder),
            "PYTHONHASHSEED": str(number + 1),
            "TMPDIR": str(folder),
        }
        running.append(
            subprocess.Popen(words, cwd=folder, env={**os.environ, **made, **places}, stderr=subprocess.PIPE)
        )
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    first, second = (_digests(tmp_path / name / "kws.edgekit", keys) for name in ("here", "over there"))
    assert first == second
    assert {name.split(".")[1] for name in first} == set(engines)


def _digests(path: Path, keys: KeyRing) -> dict[str, dict[str, str]]:
    opened = bundle.open(path, [keys.verify_key()])
    return {
        entry.config.variant: {blob.name: blob.plaintext_sha256 for blob in entry.blobs}
        for entry in opened.variants
    }


KERAS = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
x = keras.Input((8,))
keras.Model(x, keras.layers.Dense(3, activation="softmax")(x)).save(sys.argv[1])
"""
LIGHTGBM = """
import sys
import lightgbm
from sklearn.datasets import load_wine
x, y = load_wine(return_X_y=True)
data = lightgbm.Dataset(x, y)
how = {"objective": "multiclass", "num_class": 3, "verbose": -1, "num_threads": 1}
lightgbm.train(how, data, 5).save_model(sys.argv[1])
"""


@pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository")
def test_a_machine_without_a_network_builds_every_format(tmp_path: Path) -> None:
    """After `edgekit setup`, from an empty cache of results: conversion, clean-up, build and measurement."""
    asked = tmp_path / "asked"
    wall = walled(asked)
    environments = ("sklearn", "tensorflow", "torch")
    subprocess.run([EDGEKIT, "setup", *environments, "--quiet"], check=True)
    for env, code, name in (("tensorflow", KERAS, "small.keras"), ("sklearn", LIGHTGBM, "wine.txt")):
        command = [str(toolenv.ensure(env)), "-I", "-c", code, str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
    resnet, kws = SHARED / "cifar10-resnet20", SHARED / "kws-dscnn"
    jobs: list[tuple[Path, dict[str, tuple[int, ...]]]] = [
        (resnet / "resnet20.pt2", {}),
        (resnet / "resnet20.ts.pt", {"x": (1, 3, 32, 32)}),
        (kws / "kws_ref_model", {}),
        (tmp_path / "small.keras", {}),
        (SHARED / "ad01-autoencoder" / "ad01.h5", {}),
        (SHARED / "hello-world" / "hello_world_float.tflite", {}),
        (SHARED / "tabular" / "digits_mlp.joblib", {}),
        (SHARED / "tabular" / "cancer_xgb.ubj", {}),
        (tmp_path / "wine.txt", {}),
        (kws / "kws_fp32.onnx", {}),
    ]
    (tmp_path / "jobs.json").write_text(json.dumps([(str(path), shapes) for path, shapes in jobs]))
    script = Path(__file__).with_name("build_offline.py")
    words = [*wall, sys.executable, str(script), str(tmp_path / "cache"), str(tmp_path / "jobs.json")]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    assert asked.read_text() == "", "a library reports to its maker"
    made = {path: form for path, (form, _) in json.loads(done.stdout).items()}
    assert list(made.values()) == [
        "torch-export",
        "torchscript",
        "savedmodel",
        "keras",
        "keras-h5",
        "tflite",
        "sklearn",
        "xgboost",
        "lightgbm",
        "onnx",
    ]
    assert {form.name for form in sources.FORMATS} | {"onnx"} == set(made.values())
