"""Models that fuzzed agents serve, chosen so that every path of the protocols has one that takes it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from PIL import Image as Pillow

from edgekit import runtimes
from edgekit.bundle.model import Affine, Image, Preprocessing, TensorSpec
from edgekit.bundle.steps import Length, Mfcc, Peak, Picture, Pipeline, Resample, TopK, Wav, WordPiece
from edgekit.runtimes import Array
from edgekit.runtimes._base import engine_files
from edgekit.runtimes._preprocess import apply
from tests.fuzz import guards
from tests.support.serving import LABELS, Candidate, candidate, config, linear
from tests.unit.runtimes import kws
from tests.unit.runtimes.test_sound import tone, wav
from tests.unit.runtimes.test_wordpiece import SMALL

NAME, VERSION = "kws", "1.2.3"
"""Of every target, so that a path that is right for one is right for all."""
BESIDE = "beside"
"""Another model that every agent serves, for requests that mean all of them or mix them up."""


@dataclass(frozen=True)
class Target:
    name: str
    model: Candidate
    inputs: Mapping[str, Array]
    """A valid request."""
    stored: Mapping[str, Array]
    """The same in the data types that the variant stores; empty where there are none."""
    bodies: tuple[tuple[bytes, bytes], ...] = ()
    """Content type and bytes of what the pipeline takes."""
    outputs: Mapping[str, Array] | None = None
    """What is to be answered to `inputs`."""
    guard: str = ""
    """What guards the agent's port (guards.py)."""


@cache
def beside() -> Candidate:
    return linear().changed(name=BESIDE)


def _graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "fuzzed", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def _value(name: str, kind: int, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, list(shape))


def _made(name: str, found: Candidate, inputs: Mapping[str, Array], **more: Any) -> Target:
    """With the engine's own answers."""
    variant = found.load.config
    session = runtimes.get(variant.engine.name).load(engine_files(variant, found.files), variant.options)
    outputs = session.run(inputs)
    session.close()
    return Target(name, found, inputs, outputs=outputs, **{"stored": {}, **more})


def tensors() -> Target:
    """Two inputs and two outputs of different types: y = 2 x, z = n + n."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Add", ["n", "n"], ["z"])]
    model = _graph(
        nodes,
        [_value("x", TensorProto.FLOAT, "batch", 4), _value("n", TensorProto.INT64, "batch", 2)],
        [_value("y", TensorProto.FLOAT, "batch", 4), _value("z", TensorProto.INT64, "batch", 2)],
        [],
    )
    made = config(
        "onnxruntime", (TensorSpec("x", "FP32", (-1, 4)), TensorSpec("n", "INT64", (-1, 2))),
        (TensorSpec("y", "FP32", (-1, 4)), TensorSpec("z", "INT64", (-1, 2))), ("model.onnx",),
        labels=("a", "b", "c", "d"), options={"intra_threads": 1},
    )  # fmt: skip
    rows: dict[str, Array] = {
        "x": np.arange(16, dtype=np.float32).reshape(4, 4),
        "n": np.arange(8).reshape(4, 2),
    }
    inputs = {"x": np.array([[1, 2, 3, 4.5]], np.float32), "n": np.array([[7, -8]])}
    return _made("tensors", candidate(made, {"model.onnx": model}, rows, VERSION), inputs)


def sound() -> Target:
    """The keyword spotter with its pipeline for recordings."""
    steps = (Wav(max_seconds=10.0), Resample(rate=16000), Peak(), Length(samples=16000), Mfcc())
    made = config(
        "onnxruntime", (kws.SPEC,), (TensorSpec(kws.OUTPUT, "FP32", (-1, 12)),), ("model.onnx",),
        labels=LABELS, preprocessing=kws.SCALE, options={"intra_threads": 1},
        pipeline=Pipeline(before=steps, after=(TopK(),)),
    )  # fmt: skip
    stored = kws.data()[0][200:201]
    rows = {kws.INPUT: apply(kws.SCALE.affine[0], kws.data()[0][:4])}
    bodies = (
        (b"audio/wav", wav(tone(440.0, 0.05))),
        (b"audio/x-wav", wav(tone(440.0, 0.05, 44100), 44100, 3, 2)),
        (b"", wav(tone(440.0, 0.02), width=1)),
    )
    inputs = {kws.INPUT: apply(kws.SCALE.affine[0], stored)}
    found = candidate(made, {"model.onnx": kws.model()}, rows, VERSION)
    return _made("sound", found, inputs, stored={kws.INPUT: stored}, bodies=bodies)


def picture() -> Target:
    """Mean of each colour of an 8 x 8 picture."""
    shape = (-1, 8, 8, 3)
    model = _graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)],
        [_value("x", TensorProto.FLOAT, "batch", *shape[1:])],
        [_value("y", TensorProto.FLOAT, "batch", 3)],
        [helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])],
    )
    scale, how = Affine("x", "UINT8", 1 / 255, 0.0), Image("x", "NHWC", "RGB", "crop")
    made = config(
        "onnxruntime", (TensorSpec("x", "FP32", shape),), (TensorSpec("y", "FP32", (-1, 3)),),
        ("model.onnx",), labels=("red", "green", "blue"), preprocessing=Preprocessing((scale,), (how,)),
        pipeline=Pipeline(before=(Picture(),), after=(TopK(k=3),)), options={"intra_threads": 1},
    )  # fmt: skip
    stored = np.random.default_rng(3).integers(0, 256, (1, 8, 8, 3), np.uint8)
    found = candidate(made, {"model.onnx": model}, {"x": np.ones((4, 8, 8, 3), np.float32)}, VERSION)
    bodies = tuple((kind, _file(name)) for kind, name in ((b"image/png", "PNG"), (b"image/jpeg", "JPEG")))
    inputs = {"x": apply(scale, stored)}
    return _made("picture", found, inputs, stored={"x": stored}, bodies=(*bodies, (b"", bodies[1][1])))


def words() -> Target:
    """Tokens of a text, twice."""
    model = _graph(
        [helper.make_node("Cast", ["ids"], ["y"], to=TensorProto.FLOAT)],
        [_value("ids", TensorProto.INT64, "batch", 8)],
        [_value("y", TensorProto.FLOAT, "batch", 8)],
        [],
    )
    made = config(
        "onnxruntime", (TensorSpec("ids", "INT64", (-1, 8)),), (TensorSpec("y", "FP32", (-1, 8)),),
        ("model.onnx", "pipeline/vocab.txt"), options={"intra_threads": 1},
        pipeline=Pipeline(before=(WordPiece(vocabulary="pipeline/vocab.txt", ids="ids", length=8),)),
    )  # fmt: skip
    files = {"model.onnx": model, "pipeline/vocab.txt": SMALL}
    rows = {"ids": np.arange(32).reshape(4, 8)}
    bodies = ((b"text/plain", b"Hello worlds!"), (b"text/plain; charset=utf-8", "wörld 你 hello".encode()))
    return _made(
        "words", _with_pipeline(made, files, rows), {"ids": np.arange(8).reshape(1, 8)}, bodies=bodies
    )


def _with_pipeline(made: Any, files: dict[str, bytes], rows: dict[str, Array]) -> Candidate:
    """As `candidate`, for files that are not all the engine's."""
    plain = dataclasses.replace(made, files=("model.onnx",), pipeline=None)
    found = candidate(plain, {"model.onnx": files["model.onnx"]}, rows, VERSION)
    load = dataclasses.replace(found.load, config=made, files=tuple(files))
    return Candidate(load, files, found.golden)


def _file(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(5).integers(0, 256, (12, 16, 3), np.uint8)
    Pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


ALL: dict[str, Callable[[], Target]] = {
    "tensors": cache(tensors), "sound": cache(sound), "picture": cache(picture), "words": cache(words),
    "tls": cache(lambda: dataclasses.replace(ALL["tensors"](), name="tls", guard=guards.TLS)),
    "tokens": cache(lambda: dataclasses.replace(ALL["tensors"](), name="tokens", guard=guards.TOKENS)),
}  # fmt: skip
