"""LiteRT's sessions on files that its own backend makes: axes, types, batches, threads, damage."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import backends, runtimes
from edgekit.backends import SourceModel
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineError, EngineMissing
from edgekit.profile import CalibrationPolicy, Precision, Target
from edgekit.runtimes import Array
from edgekit.runtimes.litert import RUNTIME, LiteSession
from tests.unit.runtimes import kws
from tests.unit.runtimes.threads import runs_beside_python

pytestmark = pytest.mark.xdist_group("litert")

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).with_name("uv")


def build(onnx_bytes: bytes, precision: Precision, *ports: TensorSpec, **rows: Array) -> dict[str, bytes]:
    backend = backends.get("litert")
    recipe = next(iter(backend.recipes(precision, Target("litert", (precision,)), CalibrationPolicy())))
    inputs = tuple(port for port in ports if not port.name.startswith(("out", "Stateful")))
    outputs = tuple(port for port in ports if port not in inputs)
    return backend.build(SourceModel(onnx_bytes, inputs, outputs), recipe, rows)


def scaled() -> Array:
    rows = kws.data()[0].astype(np.float32)
    return (rows - np.float32(83)) * np.float32(0.5847029089927673)


@cache
def spotter(precision: Precision) -> dict[str, bytes]:
    out = TensorSpec(kws.OUTPUT, "FP32", (-1, 12))
    return build(kws.model(), precision, kws.SPEC, out, **{kws.INPUT: scaled()[:100]})


def load(files: dict[str, bytes], **options: str | int | float | bool) -> LiteSession:
    return RUNTIME.load(files, options)  # type: ignore[return-value]


@cache
def images() -> tuple[bytes, dict[str, bytes]]:
    """Two images in, two out, one of each as wide and high as it has channels: the shape does not tell where
    the channels are. And an integer that is only copied."""
    generator = np.random.default_rng(3)

    def value(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["n", *shape])

    weights = {"w3": (8, 3, 3, 3), "w8": (8, 8, 3, 3), "w4": (4, 8, 1, 1)}
    nodes = [
        helper.make_node("Conv", ["x", "w3"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["cube", "w8"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["a", "b"], ["out_cube"]),
        helper.make_node("Conv", ["out_cube", "w4"], ["out_thin"]),
        helper.make_node("Add", ["number", "number"], ["out_number"]),
    ]
    graph = helper.make_graph(
        nodes,
        "images",
        [
            value("cube", TensorProto.FLOAT, 8, 8, 8),
            value("number", TensorProto.INT64, 2),
            value("x", TensorProto.FLOAT, 3, 8, 8),
        ],
        [
            value("out_number", TensorProto.INT64, 2),
            value("out_cube", TensorProto.FLOAT, 8, 8, 8),
            value("out_thin", TensorProto.FLOAT, 4, 8, 8),
        ],
        [numpy_helper.from_array(generator.normal(size=s).astype(np.float32), n) for n, s in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data = model.SerializeToString()
    ports = [
        TensorSpec("cube", "FP32", (-1, 8, 8, 8)),
        TensorSpec("number", "INT64", (-1, 2)),
        TensorSpec("x", "FP32", (-1, 3, 8, 8)),
        TensorSpec("out_number", "INT64", (-1, 2)),
        TensorSpec("out_cube", "FP32", (-1, 8, 8, 8)),
        TensorSpec("out_thin", "FP32", (-1, 4, 8, 8)),
    ]
    return data, build(data, "fp32", *ports)


def test_callers_see_the_sources_names_axes_and_types() -> None:
    data, files = images()
    generator = np.random.default_rng(5)
    feed: dict[str, Array] = {
        "x": generator.normal(size=(3, 3, 8, 8)).astype(np.float32),
        "cube": generator.normal(size=(3, 8, 8, 8)).astype(np.float32),
        "number": generator.integers(-9, 9, (3, 2)),
    }
    reference = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [value.name for value in reference.get_outputs()]
    want = dict(zip(names, reference.run(names, feed), strict=True))
    got = load(files).run(feed)
    assert list(got) == names
    for name in names:
        assert got[name].dtype == want[name].dtype
        assert got[name].flags.c_contiguous
        assert np.allclose(got[name], want[name], atol=1e-4)


def test_int8_answers_in_floating_point_and_as_well_as_fp32() -> None:
    files = spotter("int8")
    session = load(files)
    scores = session.run({kws.INPUT: scaled()})[kws.OUTPUT]
    assert scores.dtype == np.float32
    assert np.sum(scores.argmax(axis=1) == kws.data()[1]) >= 900  # 913 in fp32
    with pytest.raises(EngineError, match="FP32, got INT8"):
        session.run({kws.INPUT: kws.data()[0]})
    assert len(files["model.tflite"]) < 50_000


def test_xnnpack_takes_the_graph_unless_it_is_off() -> None:
    fast, slow = load(spotter("fp32")), load(spotter("fp32"), xnnpack=False)
    assert set(fast.coverage()) == {"xnnpack"}
    assert slow.coverage() == {"builtin": fast.coverage()["xnnpack"]}
    given = {kws.INPUT: scaled()[:9]}
    assert np.allclose(fast.run(given)[kws.OUTPUT], slow.run(given)[kws.OUTPUT], atol=1e-5)
    assert load(spotter("int8")).coverage()["xnnpack"] >= 15


def test_one_interpreter_for_each_run_at_the_same_time() -> None:
    session = load(spotter("int8"), intra_threads=1)
    given = {kws.INPUT: scaled()[:20]}
    want = session.run(given)[kws.OUTPUT]
    for _ in range(5):
        session.run(given)
    assert len(session._idle) == 1
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: session.run(given)[kws.OUTPUT], range(30)))
    assert all(np.array_equal(answer, want) for answer in answers)
    assert 1 <= len(session._idle) <= 3


def test_the_gil_is_released() -> None:
    given = {kws.INPUT: np.tile(scaled(), (4, 1, 1, 1))}
    assert runs_beside_python(load(spotter("fp32")), given)


def test_no_row_at_all() -> None:
    assert load(spotter("fp32")).run({kws.INPUT: scaled()[:0]})[kws.OUTPUT].shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 2}, "version 2"),
        ({"sha256": "0" * 64}, "not the file that io.json describes"),
        ({"implementations": ["tflite-runtime"]}, "ai-edge-litert computes this file wrongly"),
        ({"implementations": []}, "no implementations"),
        ({"surprise": 1}, "surprise"),
        ({"inputs": [{"axes": [0, 0, 1, 2]}]}, "order of axes"),
        ({"inputs": [{"datatype": "FP8"}]}, "unknown data type"),
        ({"inputs": [{"datatype": "INT8"}]}, r"float32 \[1, 10, 1, 49\], which does not fit .* INT8"),
        ({"inputs": [{"axes": [0, 1, 2, 3]}]}, "does not fit"),
        ({"outputs": [{"shape": [-1, 1]}]}, r"float32 \[1, 12\], which does not fit"),
        ({"outputs": [{"shape": [-1, -1]}]}, "negative size"),
        ({"outputs": [{"tensor": "nowhere"}]}, "no tensor 'nowhere'"),
    ],
)
def test_a_description_that_does_not_fit(change: dict[str, Any], words: str) -> None:
    files = spotter("fp32")
    about = json.loads(files["io.json"])
    for key, value in change.items():
        about[key] = [{**about[key][0], **value[0]}] if key in ("inputs", "outputs") else value
    with pytest.raises(EngineError, match=words) as caught:
        load({**files, "io.json": json.dumps(about).encode()})
    assert caught.value.message.startswith("litert: ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"intra_threads": "many"}, "'intra_threads' cannot be 'many'"),
        ({"intra_threads": -1}, "'intra_threads' cannot be -1"),
        ({"xnnpack": 1}, "'xnnpack' cannot be 1"),
        ({"threads": 1}, "unknown option 'threads'"),
    ],
)
def test_bad_options(options: dict[str, str | int | float | bool], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        load(spotter("fp32"), **options)


def test_the_implementation_is_told() -> None:
    assert isinstance(RUNTIME, runtimes.Implemented)
    assert RUNTIME.implementation() == "ai-edge-litert"


def test_tflite_runtime_needs_numpy_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package imports beside NumPy 2 and then dies; here it only looks as if it were installed."""
    package = tmp_path / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '2.14.0'\n")
    (package / "interpreter.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "ai_edge_litert"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with pytest.raises(EngineMissing, match="NumPy 1 only") as caught:
        RUNTIME.version()
    assert "numpy<2" in caught.value.hint
    for name in ("tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.delitem(sys.modules, name, raising=False)


OLD_ENGINE = """
import json, sys
import numpy as np
from pathlib import Path
from edgekit import runtimes
from edgekit.errors import EngineError
engine, folder = runtimes.get("litert"), Path(sys.argv[1])
rows, said = np.load(folder / "rows.npy"), {"engine": [engine.implementation(), engine.version()]}
for place in sorted(p for p in folder.iterdir() if p.is_dir()):
    files = {p.name: p.read_bytes() for p in place.iterdir()}
    try:
        session = engine.load(files, {})
        (scores,) = session.run({sys.argv[2]: rows}).values()
        said[place.name] = scores.argmax(1).tolist()
    except EngineError as exc:
        said[place.name] = exc.message
print(json.dumps(said))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="tflite-runtime has wheels up to Python 3.11")
def test_the_older_engine_of_32_bit_boards(tmp_path: Path) -> None:
    """The real tflite-runtime, without ai-edge-litert and without the builder's libraries."""
    venv = tmp_path / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, venv], check=True)
    packages = ["tflite-runtime==2.14.0", "numpy==1.26.4", "dacite==1.9.2"]
    command = [UV, "pip", "install", "--quiet", "--python", venv / "bin" / "python"]
    subprocess.run([*map(str, command), *packages], check=True)
    precisions: tuple[Precision, ...] = ("fp32", "int8", "int8-weights", "int8-dynamic")
    for precision in precisions:
        (tmp_path / "files" / precision).mkdir(parents=True)
        for name, data in spotter(precision).items():
            (tmp_path / "files" / precision / name).write_bytes(data)
    np.save(tmp_path / "files" / "rows.npy", scaled()[200:400])
    done = subprocess.run(
        [venv / "bin" / "python", "-c", OLD_ENGINE, tmp_path / "files", kws.INPUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["engine"] == ["tflite-runtime", "2.14.0"]
    assert "tflite-runtime computes this file wrongly" in said.pop("int8-dynamic")
    for precision in precisions[:3]:
        scores = load(spotter(precision)).run({kws.INPUT: scaled()[200:400]})[kws.OUTPUT]
        assert np.mean(scores.argmax(1) == said[precision]) >= 0.99, precision
