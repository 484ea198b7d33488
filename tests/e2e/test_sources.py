"""Real files of every source format: each becomes ONNX that answers as its framework does, or one line."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgekit import runtimes, toolenv
from edgekit.backends import SourceModel
from edgekit.build import sources
from edgekit.build.cache import Cache
from edgekit.build.sources import SourceOptions
from edgekit.errors import ModelError

DATA = Path(__file__).parents[3] / "shared" / "data"
MAKER = Path(__file__).parent / "make_sources.py"
TRUST = SourceOptions(trust=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("toolenv"),
    pytest.mark.skipif(not DATA.is_dir(), reason="no example data beside the repository"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


def made(env: str, folder: Path) -> Path:
    """The models of make_sources.py, made by the frameworks themselves."""
    command = [str(toolenv.ensure(env)), "-I", str(MAKER), env, str(folder), str(DATA)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("tensorflow", tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("sklearn", tmp_path_factory.mktemp("tables"))


@pytest.fixture(scope="module")
def torch_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made("torch", tmp_path_factory.mktemp("torch"))


def answer(onnx: bytes, *inputs: NDArray[Any]) -> NDArray[Any]:
    """The first output."""
    session = runtimes.get("onnxruntime").load({"model.onnx": onnx}, {})
    names = [value.name for value in _graph(onnx).input]
    return next(iter(session.run(dict(zip(names, inputs, strict=True))).values()))


def _graph(onnx: bytes) -> Any:
    import onnx as library

    return library.load_from_string(onnx).graph


def close(have: NDArray[Any], want: NDArray[Any]) -> None:
    """Within the tolerance that docs/sources.md states."""
    assert have.shape == want.shape
    assert np.abs(have - want).max() <= sources.TOLERANCE * np.abs(want).max() + 1e-6


def one_line(path: Path, options: SourceOptions = SourceOptions()) -> tuple[str, str]:  # noqa: B008
    with pytest.raises(ModelError) as refusal:
        sources.load(path, options=options)
    assert str(path) in refusal.value.message
    assert "Traceback" not in refusal.value.message
    assert len(refusal.value.message) < 700
    return refusal.value.message, refusal.value.hint


def ports(model: SourceModel) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(port.name, port.datatype, port.shape) for port in (*model.inputs, *model.outputs)]


class TestPyTorch:
    FOLDER = DATA / "cifar10-resnet20"

    def images(self) -> NDArray[Any]:
        return np.random.default_rng(7).standard_normal((5, 3, 32, 32)).astype(np.float32)

    def test_both_files_answer_as_the_onnx_that_torch_itself_wrote(self, cache: Cache) -> None:
        want = answer((self.FOLDER / "resnet20.onnx").read_bytes(), self.images())
        exported = sources.load(self.FOLDER / "resnet20.pt2", cache)
        assert exported.format == "torch-export"
        assert ports(exported)[0] == ("x", "FP32", (-1, 3, 32, 32))
        close(answer(exported.onnx, self.images()), want)
        scripted = sources.load(
            self.FOLDER / "resnet20.ts.pt", cache, SourceOptions(shapes={"x": (1, 3, 32, 32)})
        )
        assert scripted.format == "torchscript"
        close(answer(scripted.onnx, self.images()), want)

    def test_torchscript_asks_for_the_shape_that_it_does_not_hold(self) -> None:
        said, hint = one_line(self.FOLDER / "resnet20.ts.pt")
        assert "shape of input 'x'" in said
        assert "--shape x=" in hint

    def test_whole_numbers_and_an_open_length(self, torch_models: Path) -> None:
        said, hint = one_line(torch_models / "text.pt2")
        assert "input 'ids' has no fixed size in dimension 1" in said
        assert "--shape ids=1,N" in hint
        shapes = {"ids": (1, 16), "mask": (1, 16)}
        model = sources.load(torch_models / "text.pt2", options=SourceOptions(shapes=shapes))
        assert ports(model)[:2] == [("ids", "INT64", (-1, 16)), ("mask", "FP32", (-1, 16))]
        with np.load(torch_models / "text.npz") as known:
            close(answer(model.onnx, known["ids"], known["mask"]), known["answer"])

    def test_refusals(self, torch_models: Path, tmp_path: Path) -> None:
        assert "linalg_eig" in one_line(torch_models / "eigenvalues.pt2")[0]
        assert "holds 1 values that are NaN" in one_line(torch_models / "nan.pt2")[0]
        assert "[8, 4]: its first dimension" in one_line(torch_models / "batch_of_eight.pt2")[0]
        said, hint = one_line(torch_models / "reader.pt", SourceOptions(shapes={"x": (1, 1)}))
        assert "it reaches files" in said
        assert "--trust-source" in hint
        cut = tmp_path / "cut.pt2"
        cut.write_bytes((self.FOLDER / "resnet20.pt2").read_bytes()[:500_000])
        assert "truncated" in one_line(cut)[0]
        empty = io.BytesIO()
        with zipfile.ZipFile(empty, "w") as archive:
            archive.writestr("m/models/model.json", "{}")
            archive.writestr("m/archive_format", "pt2")
        cut.write_bytes(empty.getvalue())
        one_line(cut)


class TestTensorFlow:
    KWS = DATA / "kws-dscnn"

    def accuracy(self, onnx: bytes, *, integers: bool) -> float:
        with np.load(self.KWS / "kws01_eval.npz") as file:
            x, y = file["x"], file["y"]
        if not integers:
            x = ((x.astype(np.float32) - 83) * 0.5847029089927673).astype(np.float32)
        return float((answer(onnx, x).argmax(1) == y).mean())

    def test_a_saved_model_with_optimizer_slots(self, cache: Cache) -> None:
        model = sources.load(self.KWS / "kws_ref_model", cache)
        assert model.format == "savedmodel"
        assert ports(model) == [("input_1", "FP32", (-1, 49, 10, 1)), ("dense", "FP32", (-1, 12))]
        assert self.accuracy(model.onnx, integers=False) == 0.913  # as TensorFlow has it: data's README

    def test_tflite_float_and_int8(self, cache: Cache) -> None:
        int8 = sources.load(self.KWS / "kws_ref_model.tflite", cache)
        assert ports(int8)[0] == ("input_1", "INT8", (-1, 49, 10, 1))
        assert self.accuracy(int8.onnx, integers=True) == pytest.approx(0.902, abs=0.003)
        weights = sources.load(self.KWS / "kws_ref_model_float32.tflite", cache)
        assert self.accuracy(weights.onnx, integers=False) == pytest.approx(0.900, abs=0.003)
        sine = sources.load(DATA / "hello-world" / "hello_world_float.tflite", cache)
        x = np.linspace(0.1, 6, 40, dtype=np.float32)[:, None]
        assert np.abs(answer(sine.onnx, x) - np.sin(x)).max() < 0.2

    def test_keras_h5(self, keras_models: Path) -> None:
        model = sources.load(DATA / "ad01-autoencoder" / "ad01.h5")
        assert model.format == "keras-h5"
        with np.load(keras_models / "ad01.npz") as known:
            close(answer(model.onnx, known["x"]), known["answer"])

    def test_keras_with_two_inputs(self, keras_models: Path) -> None:
        model = sources.load(keras_models / "two_inputs.keras")
        assert model.format == "keras"
        assert [port[0] for port in ports(model)] == ["image", "extra", "scores"]
        with np.load(keras_models / "two_inputs.npz") as known:
            close(answer(model.onnx, known["image"], known["extra"]), known["scores"])

    def test_keras_with_open_sizes(self, keras_models: Path) -> None:
        said, hint = one_line(keras_models / "open.keras")
        assert "input 'photo' has no fixed size in dimension 1" in said
        assert "--shape photo=1,N,N,3" in hint
        model = sources.load(
            keras_models / "open.keras", options=SourceOptions(shapes={"photo": (1, 16, 20, 3)})
        )
        assert ports(model)[0] == ("photo", "FP32", (-1, 16, 20, 3))

    def test_code_in_a_layer_needs_trust(self, keras_models: Path) -> None:
        for name in ("lambda.keras", "lambda.h5"):
            said, hint = one_line(keras_models / name)
            assert "Lambda layer, which runs code" in said
            assert "--trust-source" in hint
        model = sources.load(keras_models / "lambda.keras", options=TRUST)
        x = np.array([[1, 2, 3, 4]], np.float32)
        close(answer(model.onnx, x), x * 2 + 1)

    def test_python_in_a_saved_model_needs_trust_and_has_no_onnx(self, keras_models: Path) -> None:
        path = keras_models / "python_saved_model"
        assert "EagerPyFunc, which runs Python" in one_line(path)[0]
        one_line(path, TRUST)

    def test_damaged_files(self, tmp_path: Path) -> None:
        for source in (DATA / "ad01-autoencoder" / "ad01.h5", self.KWS / "kws_ref_model.tflite"):
            cut = tmp_path / source.name
            cut.write_bytes(source.read_bytes()[:20_000])
            one_line(cut)
        folder = tmp_path / "saved"
        shutil.copytree(self.KWS / "kws_ref_model", folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        (folder / "saved_model.pb").write_bytes((folder / "saved_model.pb").read_bytes()[:9000])
        one_line(folder)


class TestTables:
    FOLDER = DATA / "tabular"

    def test_scikit_learn_needs_trust_and_gives_probabilities(self, cache: Cache) -> None:
        path = self.FOLDER / "digits_mlp.joblib"
        said, hint = one_line(path)
        assert "a pickle runs code" in said
        assert "--trust-source" in hint
        model = sources.load(path, cache, TRUST)
        assert ports(model) == [("input", "FP32", (-1, 64)), ("probabilities", "FP32", (-1, 10))]
        x = np.random.default_rng(1).integers(0, 17, (50, 64)).astype(np.float32)
        close(answer(model.onnx, x), _probabilities(self.FOLDER / "digits_mlp.onnx", x))

    @pytest.mark.parametrize("name", ["cancer_xgb.json", "cancer_xgb.ubj"])
    def test_xgboost(self, cache: Cache, name: str) -> None:
        model = sources.load(self.FOLDER / name, cache)
        assert ports(model) == [("input", "FP32", (-1, 30)), ("probabilities", "FP32", (-1, 2))]
        x = np.random.default_rng(1).standard_normal((50, 30)).astype(np.float32) * 20
        close(answer(model.onnx, x), _probabilities(self.FOLDER / "cancer_xgb.onnx", x))

    @pytest.mark.parametrize("kind", ["binary", "classes", "regression"])
    def test_lightgbm(self, tables: Path, kind: str) -> None:
        model = sources.load(tables / f"lightgbm_{kind}.txt")
        assert model.format == "lightgbm"
        with np.load(tables / f"lightgbm_{kind}.npz") as known:
            want = known["answer"].astype(np.float32)
            have = answer(model.onnx, known["input"])
        close(have[:, 1] if kind == "binary" else have[:, 0] if kind == "regression" else have, want)

    def test_a_compressed_pipeline_and_a_forest(self, tables: Path) -> None:
        for name, column in (("ridge.joblib.gz", True), ("forest.joblib", False)):
            model = sources.load(tables / name, options=TRUST)
            with np.load(tables / f"{name.split('.')[0]}.npz") as known:
                have, want = answer(model.onnx, known["input"]), known["answer"].astype(np.float32)
            close(have[:, 0] if column else have, want)

    def test_damaged_files(self, tables: Path, tmp_path: Path) -> None:
        for source in (
            self.FOLDER / "digits_mlp.joblib",
            self.FOLDER / "cancer_xgb.ubj",
            self.FOLDER / "cancer_xgb.json",
            tables / "lightgbm_binary.txt",
        ):
            cut = tmp_path / source.name
            cut.write_bytes(source.read_bytes()[:3000])
            one_line(cut, TRUST)


def _probabilities(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    """By the ONNX file that the frameworks' own converters wrote."""
    session = runtimes.get("onnxruntime").load({"model.onnx": path.read_bytes()}, {})
    (name,) = (value.name for value in _graph(path.read_bytes()).input)
    return next(value for value in session.run({name: x}).values() if value.ndim == 2)


class Spy:
    """A pickle that says where it ran."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, (self.code,)


def test_a_pickle_that_runs_code(tmp_path: Path) -> None:
    """Not at all without trust; with it, in a process without this one's home and secrets."""
    note, path = tmp_path / "note.txt", tmp_path / "model.joblib"
    spy = f"import os; open({str(note)!r}, 'w').write(os.environ['HOME'] + ' ' + ' '.join(os.environ))"
    path.write_bytes(pickle.dumps(Spy(spy)))
    assert "a pickle runs code" in one_line(path)[0]
    assert not note.exists()
    os.environ["EDGEKIT_TEST_SECRET"] = "x"
    try:
        assert "not a scikit-learn model" in one_line(path, TRUST)[0]
    finally:
        del os.environ["EDGEKIT_TEST_SECRET"]
    home, *names = note.read_text().split()
    assert home != os.environ.get("HOME")
    assert "EDGEKIT_TEST_SECRET" not in names
    path.write_bytes(pickle.dumps(Spy("import os; os.kill(os.getpid(), 9)")))
    assert "was ended by signal 9" in one_line(path, TRUST)[0]


def test_a_second_build_needs_no_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = DATA / "tabular" / "cancer_xgb.ubj", Cache(tmp_path)
    first = sources.load(path, cache)
    monkeypatch.setenv("EDGEKIT_TOOLENVS", str(tmp_path / "nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    assert sources.load(path, cache) == first
