"""The agent's wheel alone: a clean environment without the builder serves a bundle, with right answers."""

from __future__ import annotations

import email
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle.model import EngineRange, GoldenSpec, Preprocessing, ReleaseInfo, TensorSpec
from edgekit.runtimes import Array, onnxruntime
from tests.support.bundles import Keys, make_config, make_variant, tiny_bundle
from tests.support.devices import Client, wait_for
from tests.support.wheels import ROOT, UV, build_wheels, locked

INPUT = "serving_default_input_1:0"
OURS = {"edgekit-toolkit", "edgekit-agent", "edgekit-fleet"}
BUILDER = ("onnx", "nncf", "rich", "openvino", "onnxslim", "starlette", "sqlalchemy")

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("amputation")]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheels(tmp_path_factory.mktemp("wheels"))


def test_wheels_are_reproducible(wheels: Path, tmp_path: Path) -> None:
    again = build_wheels(tmp_path)
    first = {path.name: path.read_bytes() for path in wheels.glob("*.whl")}
    assert len(first) == 3
    assert first == {path.name: path.read_bytes() for path in again.glob("*.whl")}


def requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


def test_requirements_of_our_wheels(wheels: Path) -> None:
    """Ours or locked third parties; never the bare name `edgekit`, which belongs to a stranger."""
    known = OURS | set(locked())
    found = sorted(wheels.glob("*.whl"))
    assert {wheel.name.split("-")[0].replace("_", "-") for wheel in found} == OURS
    for wheel in found:
        names = [re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in requirements(wheel)]
        assert names, wheel
        assert "edgekit" not in names
        strangers = [name for name in names if re.sub(r"[-_.]+", "-", name) not in known]
        assert not strangers, f"{wheel.name}: {strangers}"


@pytest.fixture(scope="module")
def amputated(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the agent and one engine; builder code deleted."""
    folder = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    pins = folder / "pins.txt"
    pins.write_text("".join(f"{name}=={version}\n" for name, version in locked().items()))
    (agent,) = wheels.glob("edgekit_agent-*.whl")
    command = [UV, "pip", "install", "--quiet", "--python", folder / "bin" / "python"]
    command += ["--find-links", wheels, "--constraint", pins, f"{agent}[onnxruntime]"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (package,) = folder.glob("lib/python*/site-packages/edgekit")
    for part in ("backends", "build", "cli"):
        shutil.rmtree(package / part)
    return folder / "bin"


def test_no_builder_is_installed(amputated: Path) -> None:
    script = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if u.find_spec(n)])"
    done = subprocess.run(
        [amputated / "python", "-c", script, *BUILDER], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.fixture
def keyword_spotter(tmp_path: Path) -> tuple[Path, Keys]:
    """A bundle of the real keyword spotter in fp32, certified here."""
    data = np.load(ROOT / "examples" / "kws" / "kws01_eval.npz")
    model = (ROOT / "examples" / "kws" / "kws_fp32.onnx").read_bytes()
    x = samples(data["x"][:4])
    session = onnxruntime.RUNTIME.load({"model.onnx": model}, {})
    (output,) = session.run({INPUT: x}).items()
    session.close()
    name, y = output
    config = make_config(
        variant="generic-cpu.onnxruntime.fp32",
        engine=EngineRange("onnxruntime", "1.20", ""),
        options={},
        files=("model.onnx",),
        inputs=(TensorSpec(INPUT, "FP32", (-1, *x.shape[1:])),),
        outputs=(TensorSpec(name, "FP32", (-1, *y.shape[1:])),),
        labels=tuple(f"word-{n}" for n in range(y.shape[1])),
        preprocessing=Preprocessing(()),
    )
    golden = GoldenSpec(
        4, (TensorSpec(INPUT, "FP32", x.shape),), (TensorSpec(name, "FP32", y.shape),), 1e-3, 0.0
    )
    files = {f"inputs/{INPUT}": x.tobytes(), f"outputs/{name}": y.astype("<f4").tobytes()}
    variant = make_variant(config, files={"model.onnx": model}, golden=golden, golden_files=files)
    return tiny_bundle(tmp_path, variants=[variant], info=ReleaseInfo("kws", "1.0.0"))


def samples(stored: Array) -> Array:
    """The keyword spotter's inputs: (n, 49, 10, 1) float32 from its int8 features."""
    return ((stored.astype(np.float32) - 83) * np.float32(0.5847029089927673)).astype(np.float32)


@pytest.fixture
def serving(amputated: Path, keyword_spotter: tuple[Path, Keys], tmp_path: Path) -> Iterator[Client]:
    bundle, keys = keyword_spotter
    keys.recipient.save(tmp_path / "recipient.pem")
    (tmp_path / "builder.pub").write_bytes(keys.signer.public().to_pem())
    command = [amputated / "edgekit-agent", "serve", bundle, "--key", tmp_path / "recipient.pem"]
    command += ["--trust", tmp_path / "builder.pub", "--port", "0", "--unix", tmp_path / "s"]
    # An empty home and path: nothing of the builder's environment may help.
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    child = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        assert child.stdout is not None
        ready = json.loads(child.stdout.readline())
        assert ready["release"] == "kws:1.0.0"
        yield Client(unix=tmp_path / "s")
    finally:
        child.terminate()
        assert child.wait(30) == 0
        assert child.stdout is not None
        child.stdout.close()


def test_amputated_agent_answers_right(serving: Client) -> None:
    data = np.load(ROOT / "examples" / "kws" / "kws01_eval.npz")
    x, labels = samples(data["x"][200:300]), data["y"][200:300]
    wait_for("readiness", lambda: serving.request("GET", "/v2/health/ready")[0] == 200)
    tensor = {"name": INPUT, "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
    status, answer = serving.request("POST", "/v2/models/kws/infer", {"inputs": [tensor]})
    assert status == 200, answer
    scores = np.array(answer["outputs"][0]["data"]).reshape(len(x), -1)
    assert np.mean(scores.argmax(axis=1) == labels) >= 0.85
