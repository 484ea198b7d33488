"""The model as it comes in: what is accepted, and what anything else gets."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgekit import runtimes
from edgekit.build import sources
from edgekit.build.cache import Cache
from edgekit.build.sources import SourceOptions, _detect, _probe
from edgekit.bundle.model import TensorSpec
from edgekit.errors import ModelError
from tests.unit.build import models
from tests.unit.runtimes import kws


def refused(path: Path, words: str) -> str:
    """The one line that `path` gets."""
    with pytest.raises(ModelError, match=words) as refusal:
        sources.load(path)
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message
    return refusal.value.message


def test_a_sound_model(tmp_path: Path) -> None:
    model = sources.load(models.saved(tmp_path, models.linear()))
    assert model.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert model.outputs == (TensorSpec("y", "FP32", (-1, 2)),)
    x = np.array([[1, 2, 3, 4]], np.float32)
    session = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {})
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ models.WEIGHT)


def test_the_clean_up_keeps_every_answer(tmp_path: Path) -> None:
    (tmp_path / "kws.onnx").write_bytes(kws.model())
    model = sources.load(tmp_path / "kws.onnx")
    inputs = kws.data()[0][:20].astype(np.float32)
    clean = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {"intra_threads": 1})
    raw = kws.session("onnxruntime", intra_threads=1)
    feed = {kws.INPUT: inputs}
    np.testing.assert_allclose(clean.run(feed)[kws.OUTPUT], raw.run(feed)[kws.OUTPUT], atol=1e-5)


def test_equal_files_give_equal_bytes_and_the_cache_gives_them_too(tmp_path: Path) -> None:
    path, cache = models.saved(tmp_path, models.linear()), Cache(tmp_path / "cache")
    first = sources.load(path, cache)
    assert sources.load(path) == first
    (entry,) = (p for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert sources.load(path, cache) == first
    entry.write_bytes(b"damaged")
    assert sources.load(path, cache) == first
    assert entry.read_bytes() != b"damaged"
    assert sources.load(models.saved(tmp_path, models.linear(weight=models.WEIGHT * 2)), cache) != first


def test_weights_beside_the_model_are_read_each_time(tmp_path: Path) -> None:
    """The cache knows a model by its file alone, so one with weights elsewhere is not in it."""
    path, cache = models.with_weights_in(tmp_path, "w.bin"), Cache(tmp_path / "cache")
    refused(path, "no file 'w.bin' beside the model")
    (tmp_path / "w.bin").write_bytes(models.WEIGHT.tobytes())
    first = sources.load(path, cache)
    inside = tmp_path / "inside"
    inside.mkdir()
    assert first.onnx == sources.load(models.saved(inside, models.linear())).onnx
    (tmp_path / "w.bin").write_bytes((models.WEIGHT * 2).tobytes())
    assert sources.load(path, cache).onnx != first.onnx


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


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


PICKLE = pickle.dumps({"weights": [1, 2, 3]})
CODE = "a pickle runs code when it is loaded"
WEIGHTS = "PyTorch weights without a graph"
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has no graph"),
    "random": (np.random.default_rng(1).bytes(5000), "is not ONNX"),
    "text": (b"hello, world\n" * 40, "is not ONNX"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is not ONNX"),
    "pickle": (PICKLE, CODE),
    "joblib zlib": (zlib.compress(PICKLE), CODE),
    "joblib gzip": (gzip.compress(PICKLE), CODE),
    "joblib bz2": (bz2.compress(PICKLE), CODE),
    "joblib xz": (lzma.compress(PICKLE), CODE),
    "torch pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(50), WEIGHTS),
    "state dict": (_zip("archive/data.pkl", "archive/version", "archive/data/0"), WEIGHTS),
    "npz": (_zip("images.npy", "labels.npy"), "NumPy data"),
    "any zip": (_zip("readme.txt"), "a ZIP archive of no known model format"),
    "cut zip": (_zip("archive/data.pkl")[:60], "a truncated or damaged ZIP archive"),
    "gguf": (b"GGUF\x03\0\0\0", "a GGUF language model"),
    "ir": (b'<?xml version="1.0"?><net/>', "OpenVINO IR"),
    "old xgboost": (b"binf" + bytes(80), "an old binary XGBoost model"),
    "truncated": (kws.model()[:50_000], "is not ONNX, or it is truncated"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_no_model_or_one_that_needs_trust(tmp_path: Path, case: str) -> None:
    """Decided by content, in this process, without any tool."""
    content, words = REFUSED[case]
    (tmp_path / "model.onnx").write_bytes(content)
    refused(tmp_path / "model.onnx", words)


RECOGNISED: dict[str, tuple[bytes, str]] = {
    "pt2": (_zip("m/models/model.json", "m/archive_format"), "torch-export"),
    "older pt2": (_zip("serialized_exported_program.json", "version"), "torch-export"),
    "TorchScript": (_zip("m/data.pkl", "m/constants.pkl", "m/code/__torch__.py"), "torchscript"),
    "keras": (_zip("config.json", "metadata.json", "model.weights.h5"), "keras"),
    "h5": (b"\x89HDF\r\n\x1a\n", "keras-h5"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "tflite"),
    "pickle": (PICKLE, "sklearn"),
    "xgboost json": (b'{"learner":{"attributes":{}}', "xgboost"),
    "xgboost ubj": (b"{L\0\0\0\0\0\0\0\x07learner{L", "xgboost"),
    "lightgbm": (b"tree\nversion=v4\nnum_class=1\n", "lightgbm"),
}


@pytest.mark.parametrize("case", RECOGNISED)
def test_formats_are_recognised_by_content(tmp_path: Path, case: str) -> None:
    content, name = RECOGNISED[case]
    (tmp_path / "model.txt").write_bytes(content)
    form = _detect.recognise(_detect.look_at(tmp_path / "model.txt"))
    assert form is not None
    assert form.name == name


def _node(op: str) -> bytes:
    """A NodeDef as it lies in a SavedModel."""
    return b"\x0a\x01n\x12" + bytes([len(op)]) + op.encode()


@pytest.mark.parametrize("op", ["PyFunc", "EagerPyFunc", "ReadFile", "WriteFile"])
def test_a_saved_model_that_reaches_out_needs_trust(tmp_path: Path, op: str) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"..." + _node("MatMul") + _node(op))
    refused(tmp_path, f"the operator {op}")
    (tmp_path / "saved_model.pb").write_bytes(_node("MatMul"))
    (tmp_path / "variables.data").symlink_to("/etc/hostname")
    refused(tmp_path, "a link in it")


def test_a_model_larger_than_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 42)  # sparse: takes no room
    refused(path, "this machine has")


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
    "an operator of nobody": (lambda: _with_node("Attention9", ""), "node 'odd': operator Attention9 is not"),
    "a custom operator": (lambda: _with_node("Blur", "acme"), "node 'odd': operator acme.Blur is not"),
}


def _without(part: str) -> onnx.ModelProto:
    model = models.linear()
    model.graph.ClearField(part)
    return model


def _with_node(op: str, domain: str) -> onnx.ModelProto:
    model = models.linear()
    model.graph.node.append(helper.make_node(op, ["y"], ["z"], name="odd", domain=domain))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


@pytest.mark.parametrize("case", BAD_MODELS)
def test_bad_models(tmp_path: Path, case: str) -> None:
    make, words = BAD_MODELS[case]
    refused(models.saved(tmp_path, make()), words)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.onnx", "No such file")
    refused(tmp_path, "a folder without saved_model.pb")
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
        sources.load(path)
    except ModelError as refusal:
        assert str(path) in refusal.message


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(sorted(RECOGNISED)), st.integers(0, 10**6), st.integers(0, 255))
def test_whatever_a_disk_does_to_a_file_of_another_format(
    tmp_path: Path, case: str, place: int, flip: int
) -> None:
    """What happens in this process, before a converter is asked: a format, a risk, or one line."""
    content = bytearray(RECOGNISED[case][0])
    place %= len(content)
    content[place] ^= flip
    path = tmp_path / "model.bin"
    path.write_bytes(content if flip else content[:place])
    look = _detect.look_at(path)
    try:
        form = _detect.recognise(look)
        if form is not None:
            assert isinstance(form.risk(look), str)
    except ModelError as refusal:
        assert str(path) in refusal.message
        assert "\n" not in refusal.message


def test_open_dimensions_take_a_hint(tmp_path: Path) -> None:
    path = models.saved(tmp_path, models.linear(("batch", "time")))
    with pytest.raises(ModelError) as refusal:
        sources.load(path)
    assert "--shape x=1,N" in refusal.value.hint
    model = sources.load(path, options=SourceOptions({"x": (1, 4)}))
    assert model.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    for shapes, words in (
        ({"z": (1, 4)}, "the model's inputs are x"),
        ({"x": (1, 4, 1)}, "3 dimensions, it has 2"),
        ({"x": (1, 5)}, "cannot load the model"),
    ):
        with pytest.raises(ModelError, match=words):
            sources.load(path, options=SourceOptions(shapes))


@pytest.mark.parametrize("text", ["x", "x=", "=1,2", "x=1,a", "x=2,3", "x=1,0", "x=1,-1"])
def test_a_shape_that_is_none(text: str) -> None:
    with pytest.raises(ModelError, match="--shape"):
        sources.parse_shape(text)
    assert sources.parse_shape("a:0=1,3,8") == ("a:0", (1, 3, 8))


def test_a_mask_of_minus_infinity_is_no_broken_weight(tmp_path: Path) -> None:
    model = models.linear()
    mask = np.array([0, -np.inf], np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    model.graph.node[0].output[0] = "scores"
    model.graph.node.append(helper.make_node("Add", ["scores", "mask"], ["y"]))
    clean = sources.load(models.saved(tmp_path, model))
    x = np.array([[1, 2, 3, 4]], np.float32)
    session = runtimes.get("onnxruntime").load({"model.onnx": clean.onnx}, {})
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ models.WEIGHT + mask)


def test_an_old_opset_is_raised_so_that_it_can_be_quantized_per_channel(tmp_path: Path) -> None:
    old = models.linear()
    old.opset_import[0].version = 9
    model = sources.load(models.saved(tmp_path, old))
    assert onnx.load_from_string(model.onnx).opset_import[0].version == 17
    x = np.array([[1, 2, 3, 4]], np.float32)
    session = runtimes.get("onnxruntime").load({"model.onnx": model.onnx}, {})
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ models.WEIGHT)


@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.INT64])
def test_a_scaler_becomes_arithmetic_that_every_engine_takes(
    tmp_path: Path, per_column: bool, elem_type: int
) -> None:
    offset, scale = ([1.0, 2, 3, 4], [0.5, 1, 2, 3]) if per_column else ([1.5], [0.25])
    model = models.linear(elem_type=elem_type)
    model.graph.node[0].input[0] = "scaled"
    scaler = helper.make_node("Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=offset, scale=scale)
    model.graph.node.insert(0, scaler)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    found = onnx.load_from_string(sources.load(models.saved(tmp_path, model)).onnx)
    assert {node.domain for node in found.graph.node} == {""}
    assert [entry.domain for entry in found.opset_import] == [""]
    x = np.array([[1, 2, 3, 4]], helper.tensor_dtype_to_np_dtype(elem_type))
    session = runtimes.get("onnxruntime").load({"model.onnx": found.SerializeToString()}, {})
    expected = (x.astype(np.float32) - offset) * scale @ models.WEIGHT
    np.testing.assert_allclose(session.run({"x": x})["y"], expected, rtol=1e-5)


def test_a_clean_up_that_changes_answers_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxslim

    wrong = models.linear(weight=models.WEIGHT * np.float32(1.01))
    monkeypatch.setattr(onnxslim, "slim", lambda model: wrong)
    model = sources.load(models.saved(tmp_path, models.linear()))
    (weight,) = onnx.load_from_string(model.onnx).graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weight), models.WEIGHT)


@pytest.mark.parametrize(
    ("mine", "wanted", "slack", "agree"),
    [
        (np.array([1, 2], np.float32), np.array([1, 2.0001], np.float32), 0.0, True),
        (np.array([1, 2], np.float32), np.array([1, 2.001], np.float32), 0.0, False),
        (np.array([1, 2], np.float32), np.array([1, 2.001], np.float32), 0.01, True),
        (np.array([np.nan, 2], np.float32), np.array([1, 2], np.float32), 0.0, False),
        (np.array([np.nan, 2], np.float32), np.array([np.nan, 2], np.float32), 0.0, True),
        (np.array([5], np.int8), np.array([6], np.int8), 0.0, True),
        (np.array([5], np.int8), np.array([7], np.int8), 0.0, False),
        (np.array([5], np.int64), np.array([6], np.int64), 0.0, False),
        (np.array([[1]], np.float32), np.array([1], np.float32), 0.0, False),
    ],
)
def test_the_tolerance(mine: NDArray[Any], wanted: NDArray[Any], slack: float, agree: bool) -> None:
    said = _probe.difference([{"y": mine}], [{"y": wanted}], {"y": slack})
    assert (said == "") is agree
