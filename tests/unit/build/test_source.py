"""The model as it comes in: what is accepted, and what anything else gets."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgekit import runtimes
from edgekit.build import source
from edgekit.build.cache import Cache
from edgekit.bundle.model import TensorSpec
from edgekit.errors import ModelError
from tests.unit.build import models
from tests.unit.runtimes import kws


def refused(path: Path, words: str) -> str:
    """The one line that `path` gets."""
    with pytest.raises(ModelError, match=words) as refusal:
        source.load(path)
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message
    return refusal.value.message


def test_a_sound_model(tmp_path: Path) -> None:
    model = source.load(models.saved(tmp_path, models.linear()))
    assert model.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert model.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    x = np.array([[1, 2, 3, 4]], np.float32)
    session = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {})
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ models.WEIGHT)


def test_the_clean_up_keeps_every_answer(tmp_path: Path) -> None:
    (tmp_path / "kws.onnx").write_bytes(kws.model())
    model = source.load(tmp_path / "kws.onnx")
    inputs = kws.data()[0][:20].astype(np.float32)
    clean = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {"intra_threads": 1})
    raw = kws.session("onnxruntime", intra_threads=1)
    feed = {kws.INPUT: inputs}
    np.testing.assert_allclose(clean.run(feed)[kws.OUTPUT], raw.run(feed)[kws.OUTPUT], atol=1e-5)


def test_equal_files_give_equal_bytes_and_the_cache_gives_them_too(tmp_path: Path) -> None:
    path, cache = models.saved(tmp_path, models.linear()), Cache(tmp_path / "cache")
    first = source.load(path, cache)
    assert source.load(path) == first
    (entry,) = (p for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert source.load(path, cache) == first
    entry.write_bytes(b"damaged")
    assert source.load(path, cache) == first
    assert entry.read_bytes() != b"damaged"
    assert source.load(models.saved(tmp_path, models.linear(weight=models.WEIGHT * 2)), cache) != first


def test_weights_beside_the_model_are_read_each_time(tmp_path: Path) -> None:
    """The cache knows a model by its file alone, so one with weights elsewhere is not in it."""
    path, cache = models.with_weights_in(tmp_path, "w.bin"), Cache(tmp_path / "cache")
    refused(path, "no file 'w.bin' beside the model")
    (tmp_path / "w.bin").write_bytes(models.WEIGHT.tobytes())
    first = source.load(path, cache)
    inside = tmp_path / "inside"
    inside.mkdir()
    assert first.onnx == source.load(models.saved(inside, models.linear())).onnx
    (tmp_path / "w.bin").write_bytes((models.WEIGHT * 2).tobytes())
    assert source.load(path, cache).onnx != first.onnx


@pytest.mark.parametrize("location", ["../w.bin", "/etc/hostname", "a/../../w.bin", ""])
def test_weights_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "models"
    (folder / "a").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(models.WEIGHT.tobytes())
    refused(models.with_weights_in(folder, location), "outside the model's folder|no file|beside")


def test_weights_behind_a_link_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(models.WEIGHT.tobytes())
    (folder / "w.bin").symlink_to(tmp_path / "w.bin")
    refused(models.with_weights_in(folder, "w.bin"), "outside the model's folder")


def test_a_constant_inside_a_node_cannot_reach_outside_either(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "w.bin").write_bytes(models.WEIGHT.tobytes())
    model = models.linear()
    tensor = model.graph.initializer.pop()
    onnx.external_data_helper.set_external_data(tensor, "../w.bin")
    tensor.ClearField("raw_data")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    refused(models.saved(folder, model), "cannot read the weights")


def test_too_few_weights_beside_the_model(tmp_path: Path) -> None:
    path = models.with_weights_in(tmp_path, "w.bin")
    (tmp_path / "w.bin").write_bytes(b"\0" * 7)
    refused(path, "weight 'w' cannot be read|cannot read the weights")


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return buffer.getvalue()


NOT_ONNX: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "it has no graph"),
    "random": (lambda: np.random.default_rng(1).bytes(5000), "is not ONNX"),
    "text": (lambda: b"hello, world\n" * 40, "is not ONNX"),
    "png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100), "is not ONNX"),
    "pickle": (lambda: pickle.dumps({"weights": [1, 2, 3]}), "a Python pickle"),
    "h5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "zip": (_zip, "a ZIP archive"),
    "tflite": (lambda: b"\x1c\0\0\0TFL3" + bytes(100), "TFLite"),
    "gguf": (lambda: b"GGUF\x03\0\0\0", "a GGUF language model"),
    "ir": (lambda: b'<?xml version="1.0"?><net/>', "OpenVINO IR"),
    "truncated": (lambda: kws.model()[:50_000], "is not ONNX, or it is truncated"),
}


@pytest.mark.parametrize("case", NOT_ONNX)
def test_not_onnx(tmp_path: Path, case: str) -> None:
    make, words = NOT_ONNX[case]
    (tmp_path / "model.onnx").write_bytes(make())
    refused(tmp_path / "model.onnx", words)


BAD_MODELS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "an open dimension": (lambda: models.linear(("batch", "time")), r"'x' has no fixed size in dimension 1"),
    "a batch of eight": (lambda: models.linear((8, 4)), "not an open batch or 1"),
    "no batch": (lambda: models.linear(()), "not an open batch or 1"),
    "text input": (lambda: models.linear(elem_type=TensorProto.STRING), "input 'x' is not a numeric tensor"),
    "no input type": (lambda: models.linear(elem_type=0), "input 'x' is not a numeric tensor"),
    "NaN": (lambda: models.linear(weight=models.WEIGHT * np.float32("nan")), "weight 'w' holds 8 values"),
    "infinite": (lambda: models.linear(weight=np.array([[np.inf, -np.inf]] * 4, np.float32)), "holds 8"),
    "no outputs": (lambda: _without("output"), "the graph has no outputs"),
    "no inputs": (lambda: _without("input"), "the graph has no inputs"),
    "no weight": (lambda: _without("initializer"), "not a valid model"),
}


def _without(part: str) -> onnx.ModelProto:
    model = models.linear()
    model.graph.ClearField(part)
    return model


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(tmp_path: Path, case: str) -> None:
    make, words = BAD_MODELS[case]
    refused(models.saved(tmp_path, make()), words)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "No such file")
    refused(tmp_path, "is not a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "is not a file")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.integers(1, 255), st.booleans())
def test_whatever_a_disk_does_to_a_model(tmp_path: Path, place: int, flip: int, cut: bool) -> None:
    """A changed byte or a cut: a model, or one line; never another exception."""
    content = bytearray(models.linear().SerializeToString())
    place %= len(content)
    content[place] ^= flip
    path = tmp_path / "model.onnx"
    path.write_bytes(content[:place] if cut else content)
    try:
        source.load(path)
    except ModelError as refusal:
        assert str(path) in refusal.message
