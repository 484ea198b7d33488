"""The agent on ARM: emulated boards serve the keyword spotter with the certified answers.

The wheels that are shipped, in the systems of `--emulate`: Debian's Python 3.11 and, on 32-bit ARM, its
NumPy; real supervisors, serving processes and sockets. It proves answers, not speed.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc

from edgekit import bundle, profile
from edgekit.build import pipeline
from edgekit.build.cache import Cache
from edgekit.build.data import Naming
from edgekit.build.request import Request
from edgekit.bundle.model import ReleaseInfo, TensorSpec, Variant
from edgekit.profile import Profile
from edgekit.runtimes import Array
from edgekit.wire import JobState
from tests.support import arm, devices
from tests.support.agent_process import device
from tests.support.bundles import Keys
from tests.support.wheels import ROOT, build_wheels

MODEL = ROOT / "examples" / "kws" / "kws_fp32.onnx"
DATA = ROOT.parent / "shared" / "data" / "kws-dscnn" / "kws01_eval.npz"
SCALE, ZERO = 0.5847029089927673, 83
ROWS = 50
"""Answered under emulation for the certificate; over REST all 800 that it counts."""
TARGETS = {"raspberry-pi-3": "litert", "raspberry-pi-5": "onnxruntime"}
FAST = ("uvloop", "httptools", "orjson", "msgspec", "psutil", "zstandard")
LOOK = """
import importlib, importlib.util, json, pkgutil, platform, sys
import edgekit_agent, numpy
modules = [m.name for m in pkgutil.walk_packages(edgekit_agent.__path__, "edgekit_agent.")]
absent = [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]
optional = {"edgekit_agent.top_rich", "edgekit_agent.serve.parser_httptools"}
for name in modules:
    if name not in optional:
        importlib.import_module(name)
print(json.dumps({"machine": platform.machine(), "python": platform.python_version(), "absent": absent,
                  "numpy": numpy.__version__, "modules": len(modules)}))
"""

pytestmark = [
    pytest.mark.arm,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.xdist_group("emulation"),
]


@dataclass(frozen=True)
class Release:
    folder: Path
    path: Path
    keys: Keys
    variants: dict[str, Variant]
    """By profile."""


def chosen(name: str) -> Profile:
    """A shipped profile with one target: its other engines have no wheels there or tests of their own."""
    found = profile.get(name)
    return dataclasses.replace(found, target=tuple(t for t in found.target if t.runtime == TARGETS[name]))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """One signed and encrypted bundle for both boards, certified with answers of their emulated CPUs."""
    folder = tmp_path_factory.mktemp("release")
    request = Request(
        model=MODEL,
        profiles=tuple(map(chosen, TARGETS)),
        calibration=f"{DATA}[0:200]",
        evaluate=f"{DATA}[200:1000]",
        naming=Naming(labels="y"),
        affine=(f"{SCALE},{ZERO}",),
        precisions=("int8",),
        emulate=True,
        emulate_rows=ROWS,
        robustness=False,
    )
    made = pipeline.build(request, Cache(folder / "cache"))
    keys, path = Keys(), folder / "kws.edgekit"
    bundle.write(
        path,
        ReleaseInfo("kws", "1.0.0"),
        made.variants,
        signer=keys.signer,
        recipients=[keys.recipient.public()],
    )
    keys.recipient.save(folder / "recipient.pem")
    (folder / "builder.pub").write_bytes(keys.signer.public().to_pem())
    return Release(folder, path, keys, {one.config.profile: one for one in made.variants})


@pytest.fixture(scope="module")
def boards(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, arm.Board]:
    """By profile."""
    return {name: arm.board(tmp_path_factory.mktemp(name), chosen(name), wheels) for name in TARGETS}


def ask(port: int, body: bytes, header: int | None = None) -> tuple[int, bytes, int]:
    """Status, body, and the length of its JSON part."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        extra = {} if header is None else {"Inference-Header-Content-Length": str(header)}
        connection.request("POST", "/v2/models/kws/infer", body, extra)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, data, int(answer.headers.get("Inference-Header-Content-Length", len(data)))
    finally:
        connection.close()


def as_json(port: int, rows: Array, spec: TensorSpec) -> Array:
    tensor = {"name": spec.name, "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
    status, data, _ = ask(port, json.dumps({"inputs": [tensor]}).encode())
    assert status == 200, data
    (output,) = json.loads(data)["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def as_binary(port: int, rows: Array, spec: TensorSpec, datatype: str = "FP32") -> Array:
    raw = np.ascontiguousarray(rows).tobytes()
    size = {"binary_data_size": len(raw)}
    tensor = {"name": spec.name, "datatype": datatype, "shape": rows.shape, "parameters": size}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    status, data, length = ask(port, head + raw, len(head))
    assert status == 200, data
    (output,) = json.loads(data[:length])["outputs"]
    return np.frombuffer(data[length:], np.float32).reshape(output["shape"])


def over_grpc(port: int, rows: Array, spec: TensorSpec) -> Array:
    tensor = tritonclient.grpc.InferInput(spec.name, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client:
        answer = client.infer("kws", [tensor], client_timeout=120)
        return np.asarray(answer.as_numpy(answer.get_response().outputs[0].name))


def family(supervisor: psutil.Process) -> list[list[str]]:
    return [supervisor.cmdline(), *(child.cmdline() for child in supervisor.children(recursive=True))]


def golden(variant: Variant) -> tuple[Array, Array]:
    (given,), (wanted,) = variant.golden.inputs, variant.golden.outputs
    files: dict[str, Any] = dict(variant.golden_files)
    inputs = np.frombuffer(files[f"inputs/{given.name}"], np.float32).reshape(given.shape)
    return inputs, np.frombuffer(files[f"outputs/{wanted.name}"], np.float32).reshape(wanted.shape)


@pytest.mark.parametrize("name", TARGETS)
def test_an_arm_board_serves_the_certified_answers(
    name: str, release: Release, boards: dict[str, arm.Board]
) -> None:
    board = boards[name]
    found = board.run("-c", LOOK, *FAST)
    assert found["machine"] == profile.get(name).hardware.architecture
    assert found["python"].startswith("3.11.")
    assert found["absent"] == list(FAST)  # everything below is done without them
    assert found["numpy"].startswith("1.24." if board.architecture == "armv7l" else "2.")
    assert found["modules"] > 90

    variant = release.variants[name]
    certificate, (spec,) = variant.certificate, variant.config.inputs
    assert certificate.emulated_samples == ROWS
    words: list[Path | str] = [
        release.path,
        "--key",
        release.folder / "recipient.pem",
        "--trust",
        release.folder / "builder.pub",
    ]
    with board.serving(*words, "--port", "0") as (ready, supervisor):
        assert ready["release"] == "kws:1.0.0"
        assert ready["variant"] == variant.config.variant  # --profile auto: the board knows what it is
        processes = family(supervisor)
        assert all("qemu-" in words[0] for words in processes), processes
        assert any("edgekit_agent.worker" in words for words in processes), processes
        port = int(ready["endpoint"].rpartition(":")[2])

        inputs, wanted = golden(variant)
        for way in (as_json, as_binary):
            got = np.concatenate([way(port, inputs[i : i + 1], spec) for i in range(len(inputs))])
            assert np.abs(got - wanted).max() <= variant.golden.max_abs_difference

        with np.load(DATA) as file:
            stored, labels = file["x"][200:], file["y"][200:]
        real = (stored.astype(np.float32) - np.float32(ZERO)) * np.float32(SCALE)
        scores = np.concatenate([as_binary(port, part, spec) for part in np.split(real, 8)])
        accuracy, certified = float(np.mean(scores.argmax(1) == labels)), certificate.accuracy
        assert len(labels) == certificate.samples
        assert certified.low <= accuracy <= certified.high, (accuracy, certified)
        for way in (as_json, over_grpc):
            assert np.abs(way(port, real[:10], spec) - scores[:10]).max() < 1e-5


def test_a_32_bit_device_of_a_fleet_activates_what_is_assigned(
    boards: dict[str, arm.Board], tmp_path: Path
) -> None:
    """Journal, mutual TLS, the sealed key, signatures, probe, swap and watch with what Debian has there."""
    with device(tmp_path) as made:
        made.program = boards["raspberry-pi-3"].agent
        path = devices.release(tmp_path, "1.0.0", devices.variant(3.0), keys=made.place.keys)
        job = made.assign(path).job
        made.start()
        assert made.end_of(job, arm.START_S) is JobState.SUCCEEDED, made.log()
        assert made.client.served_weight() == 3.0
        assert made.workers()
