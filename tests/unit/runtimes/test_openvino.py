from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edgekit.errors import EngineError
from edgekit.runtimes.openvino import RUNTIME, OpenVinoSession, _settings, _split
from tests.unit.runtimes import kws
from tests.unit.runtimes.threads import runs_beside_python


def load(**options: str | int | float | bool) -> OpenVinoSession:
    session = kws.session("openvino", **options)
    assert isinstance(session, OpenVinoSession)
    return session


def test_keyword_spotter_accuracy() -> None:
    stored, labels = kws.data()
    scaled = (stored.astype(np.float32) - np.float32(83)) * np.float32(0.5847029089927673)
    scores = load(intra_threads=1).run({kws.INPUT: scaled})[kws.OUTPUT]
    assert np.sum(scores.argmax(axis=1) == labels) == pytest.approx(913, abs=1)


def test_precision_is_pinned() -> None:
    assert set(load().coverage()) == {"CPU/f32"}
    assert compiled_property(load(), "INFERENCE_PRECISION_HINT") == "f32"
    # A CPU without bf16 says f32 unasked, so look at what is asked for, too.
    assert _settings({})["INFERENCE_PRECISION_HINT"] == "f32"
    assert _settings({"INFERENCE_PRECISION_HINT": "bf16"})["INFERENCE_PRECISION_HINT"] == "bf16"


def test_threads_and_streams_reach_the_engine() -> None:
    assert compiled_property(load(intra_threads=1), "INFERENCE_NUM_THREADS") == "1"
    assert compiled_property(load(intra_threads=2, streams=2), "NUM_STREAMS") == "2"
    assert compiled_property(load(PERFORMANCE_HINT="THROUGHPUT"), "PERFORMANCE_HINT") == "THROUGHPUT"


def compiled_property(session: OpenVinoSession, name: str) -> str:
    assert session._compiled is not None
    value = session._compiled.get_property(name)
    return str(value.to_string()) if hasattr(value, "to_string") else str(value)


def test_one_request_for_each_run_at_the_same_time() -> None:
    session = load(intra_threads=1)
    stored, _ = kws.data()
    given = {kws.INPUT: stored[:20].astype(np.float32)}
    for _ in range(5):
        session.run(given)
    assert len(session._idle) == 1
    with ThreadPoolExecutor(3) as pool:
        assert len(list(pool.map(session.run, [given] * 30))) == 30
    assert 1 <= len(session._idle) <= 3


def test_a_failed_run_does_not_hurt_the_next() -> None:
    session = load()
    stored, _ = kws.data()
    given = {kws.INPUT: stored[:1].astype(np.float32)}
    with pytest.raises(EngineError, match="openvino: "):
        session.run({kws.INPUT: given[kws.INPUT][:0]})
    assert session.run(given)[kws.OUTPUT].shape == (1, 12)


def test_the_gil_is_released() -> None:
    stored, _ = kws.data()
    session = load(intra_threads=1)
    assert runs_beside_python(session, {kws.INPUT: np.tile(stored, (4, 1, 1, 1)).astype(np.float32)})


def test_usage_reporting_is_off() -> None:
    program = (
        "import sys; from edgekit import runtimes; runtimes.get('openvino').version();"
        "from openvino.tools.ovc import telemetry_utils as t;"
        "print(t.tm.__name__, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"intra_threads": "many"}, "'intra_threads' cannot be 'many'"),
        ({"streams": -1}, "'streams' cannot be -1"),
        ({"INFERENCE_PRECISION_HINT": "f8"}, "f8"),
        ({"threads": 1}, "unknown option 'threads'"),
    ],
)
def test_bad_options(options: dict[str, str | int | float | bool], words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        RUNTIME.load({"m.onnx": kws.model()}, options)
    assert "Exception from" not in caught.value.message


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda packed: packed, ""),
        (lambda packed: packed[:-9], "cut off"),
        (lambda packed: b"nonsense" + packed, "damaged"),
        (lambda packed: gzip.compress(bytes(2**20)), "more than 1000 bytes"),
    ],
)
def test_a_packed_graph_is_unpacked_within_bounds(
    spoil: Callable[[bytes], bytes], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = b"<net>" * 100
    monkeypatch.setattr("edgekit.runtimes.openvino.MAX_XML_BYTES", 1000)
    files = {"model.xml.gz": spoil(gzip.compress(plain)), "model.bin": b"weights"}
    if words:
        with pytest.raises(EngineError, match=words):
            _split(files)
    else:
        assert _split(files) == (plain, b"weights")
