"""Files of hostile clients against a real serving process: 4xx in one line, bounded memory, and no harm."""

from __future__ import annotations

import http.client
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper
from PIL import Image as Pillow

from edgekit.bundle.model import Affine, Image, Preprocessing, TensorSpec
from edgekit.bundle.steps import Length, Mfcc, Peak, Picture, Pipeline, Resample, TopK, Wav
from edgekit_agent.serve.limits import Limits
from tests.support.devices import wait_for
from tests.support.serving import LABELS, Candidate, Stand, candidate, config, stand
from tests.unit.runtimes import kws
from tests.unit.runtimes.test_pipeline import flat, png
from tests.unit.runtimes.test_sound import tone, wav

SHAPE = (-1, 32, 32, 3)


def averager() -> Candidate:
    """Mean of each colour of a 32 x 32 picture; takes pictures of up to 16 million pixels."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *SHAPE[1:]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    node = helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0)
    graph = helper.make_graph([node], "mean", [x], [y], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    scale, how = Affine("x", "UINT8", 1 / 255, 0.0), Image("x", "NHWC", "RGB", "crop")
    made = config(
        "onnxruntime", (TensorSpec("x", "FP32", SHAPE),), (TensorSpec("y", "FP32", (-1, 3)),),
        ("model.onnx",), labels=("red", "green", "blue"), preprocessing=Preprocessing((scale,), (how,)),
        pipeline=Pipeline(before=(Picture(),), after=(TopK(k=3),)),
    )  # fmt: skip
    return candidate(
        made, {"model.onnx": model.SerializeToString()}, {"x": np.ones((4, 32, 32, 3), np.float32)}
    )


def spotter() -> Candidate:
    steps = (Wav(max_seconds=10.0), Resample(rate=16000), Peak(), Length(samples=16000), Mfcc())
    made = config(
        "onnxruntime", (kws.SPEC,), (TensorSpec(kws.OUTPUT, "FP32", (-1, 12)),), ("model.onnx",),
        labels=LABELS, preprocessing=kws.SCALE, pipeline=Pipeline(before=steps, after=(TopK(),)),
    )  # fmt: skip
    rows = {kws.INPUT: np.zeros((4, 49, 10, 1), np.float32)}
    return candidate(made, {"model.onnx": kws.model()}, rows)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Stand]:
    with stand(tmp_path, Limits()) as made:
        yield made


def post(place: Stand, body: bytes, kind: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
    connection.request("POST", "/v2/models/kws/infer", body, {"Content-Type": kind})
    answer = connection.getresponse()
    found: dict[str, Any] = json.loads(answer.read())
    connection.close()
    return answer.status, found


def mutants(seeds: list[bytes], count: int) -> Iterator[bytes]:
    """Seeds with bytes changed (near the beginning above all), cut, or with their parts repeated."""
    rng = random.Random(7)
    for _ in range(count):
        body = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 9)):
            reach = len(body) if rng.random() < 0.3 else min(len(body), 64)
            body[rng.randrange(reach)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        if rng.random() < 0.3:
            del body[rng.randrange(1, len(body)) :]
        elif rng.random() < 0.2:
            body[8:8] = body[8 : rng.randrange(8, len(body))]
        yield bytes(body)


def noisy(kind: str) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    Pillow.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_mutated_pictures(place: Stand) -> None:
    assert averager().into(place.serving).ok
    red = flat(64, 48)
    assert post(place, red, "image/png")[1]["score"] == 0.0
    seeds = [noisy("PNG"), noisy("JPEG"), red, flat(64, 48, "JPEG")]
    before = psutil.Process(place.serving.process.pid).memory_info().rss
    seen = set()
    for body in mutants(seeds, 600):
        status, found = post(place, body, "image/png")
        seen.add(status)
        assert status in (200, 400), found
        if status == 400:
            assert "\n" not in found["error"] and len(found["error"]) < 300
    assert seen == {200, 400}
    process = psutil.Process(place.serving.process.pid)
    wait_for("memory that comes back", lambda: process.memory_info().rss - before < 48 << 20, 20)
    assert post(place, noisy("JPEG"), "image/jpeg")[0] == 200


def test_mutated_recordings(place: Stand) -> None:
    assert spotter().into(place.serving).ok
    seeds = [wav(tone(440.0, 0.05), width=width, channels=1) for width in (1, 2, 3, 4)]
    seeds += [wav(tone(440.0, 0.05, 44100), 44100, channels=2), (kws._FOLDER / "stop.wav").read_bytes()]
    before = psutil.Process(place.serving.process.pid).memory_info().rss
    seen = set()
    for body in mutants(seeds, 600):
        status, found = post(place, body, "audio/wav")
        seen.add(status)
        assert status in (200, 400), found
    assert seen == {200, 400}
    process = psutil.Process(place.serving.process.pid)
    wait_for("memory that comes back", lambda: process.memory_info().rss - before < 48 << 20, 20)


def peak_mib(pid: int) -> float:
    """Most memory that the process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def encoded(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    """16 million pixels, the most that are taken."""
    file = io.BytesIO()
    Pillow.new(mode, (4096, 4096)).save(file, kind, **how)
    return file.getvalue()


def test_bombs_cost_bounded_memory_and_it_comes_back(place: Stand) -> None:
    """What is too large is refused by its header; of what is taken the worst is 4096 x 4096 pixels."""
    assert averager().into(place.serving).ok
    process = psutil.Process(place.serving.process.pid)
    assert post(place, flat(64, 64), "image/png")[0] == 200
    idle = process.memory_info().rss / 2**20
    for body in (png(4097, 4096), png(50_000, 50_000), png(2**31 - 1, 2**31 - 1), flat(1, 4096 * 4096)):
        status, found = post(place, body, "image/png")
        assert status == 400, found
    assert peak_mib(process.pid) - idle < 16
    palette = encoded("PNG", "P", transparency=0)
    progressive = encoded("JPEG", progressive=True, subsampling=0)
    for body in (encoded("PNG"), palette, progressive):
        assert len(body) < 1 << 20
        assert post(place, body, "image/png")[0] == 200
    assert peak_mib(process.pid) - idle < 220
    # The answer is on its way a moment before the picture is let go.
    wait_for("memory that comes back", lambda: process.memory_info().rss / 2**20 - idle < 24, 5)


def test_long_recordings_cost_bounded_memory(place: Stand) -> None:
    assert spotter().into(place.serving).ok
    process = psutil.Process(place.serving.process.pid)
    assert post(place, wav(tone(440.0, 0.5)), "audio/wav")[0] == 200
    idle = process.memory_info().rss / 2**20
    # A rate that shares nothing with 16000, and as many samples as there come.
    plain, endless = wav(np.zeros(1), 44101), b"\xff\xff\xff\xff"
    header = plain[:4] + endless + plain[8:-6] + endless
    status, found = post(place, header + bytes(15 << 20), "audio/wav")
    assert status == 400 and "longer than the 10 s" in found["error"]
    assert post(place, header + bytes(2 * 441_010), "audio/wav")[0] == 200
    assert peak_mib(process.pid) - idle < 64
