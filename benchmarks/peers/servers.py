"""How each server is installed, configured and started: one network, one engine thread, loopback only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import nets
from benchmarks.nets import Net
from benchmarks.peers import asks
from benchmarks.peers.asks import Ask, Way
from benchmarks.peers.tree import SERVER_CORE
from benchmarks.zoo import environment
from tests.support.started import AGENT

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "peers"
SCRIPTS = Path(__file__).resolve().parent / "scripts"
JOINED = 32
"""Largest dynamic batch of a server that can join requests; the agent finds its own."""


@dataclass(frozen=True)
class Ports:
    http: int
    grpc: int
    other: int


def free_ports() -> Ports:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    found = [int(sock.getsockname()[1]) for sock in socks]
    for sock in socks:
        sock.close()
    return Ports(*found)


@dataclass(frozen=True)
class Setup:
    """What starts it."""

    words: list[str]
    environment: Mapping[str, str]
    ports: Ports


@dataclass(frozen=True)
class Server:
    name: str
    version: str
    packages: tuple[str, ...]
    """Installed with the same onnxruntime into an environment of its own; none: this one."""
    ways: tuple[Way, ...]
    """In which it is asked, the fastest first."""
    ask: Callable[[Net, Way], Ask]
    setup: Callable[[Path, Net, Path], Setup]
    """With the folder to write to and the interpreter."""
    needs: tuple[str, ...] = ()
    """Programs that the machine must have."""

    def python(self) -> Path:
        if not self.packages:
            return Path(sys.executable)
        same = f"onnxruntime=={metadata.version('onnxruntime')}"
        return environment(CACHE / self.name.partition(",")[0].lower(), [*self.packages, same])


@cache
def _bundle(net: Net) -> Path:
    """What `edgekit build` makes of the network on the servers' core; the keys lie beside it."""
    folder = CACHE / "bundles" / net.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / f"{net.name}.onnx").write_bytes(net.model)
    save: Any = np.savez
    save(folder / "rows.npz", **{nets.INPUT: net.samples(16)})
    words = ["taskset", "-c", str(SERVER_CORE), str(Path(AGENT).with_name("edgekit")), "build"]
    words += [
        f"{net.name}.onnx",
        "-o",
        f"{net.name}.edgekit",
        "--profile",
        "generic-cpu",
        "--precision",
        "fp32",
    ]
    words += ["--engine", "onnxruntime", "--calibration", "rows.npz[0:8]", "--evaluate", "rows.npz[8:16]"]
    words += ["--metric", "agreement", "--effort", "quick", "--no-gate", "--no-robustness", "--quiet"]
    own = {"EDGEKIT_KEYS": str(folder), "EDGEKIT_CACHE": str(folder / "cache")}
    subprocess.run(words, cwd=folder, env={**os.environ, **own}, check=True)
    return folder / f"{net.name}.edgekit"


def _agent(_: Path, net: Net, __: Path) -> Setup:
    """The default configuration."""
    path, ports = _bundle(net), free_ports()
    words = [AGENT, "serve", str(path), "--profile", "generic-cpu", "--port", str(ports.http)]
    words += ["--key", str(path.with_name("recipient.pem")), "--trust", str(path.with_name("builder.pub"))]
    return Setup(words, {}, Ports(ports.http, ports.http, ports.other))


def _agent_ask(net: Net, way: Way) -> Ask:
    return asks.torchserve(net) if way == "raw" else asks.inference_protocol(net, way)


AGENT_SERVER = Server(
    "edgekit", metadata.version("edgekit-agent"), (), ("binary", "gRPC", "JSON", "raw"), _agent_ask, _agent
)


def _triton_python(folder: Path, net: Net, python: Path) -> Setup:
    """The bare tritonserver of PyTriton's wheel, with its Python backend around onnxruntime."""
    packages, home = _triton_home(python)
    backend = folder / "backends" / "python"
    backend.mkdir(parents=True)
    for one in (home / "backends" / "python").iterdir():
        (backend / one.name).symlink_to(one)
    stub = backend / "triton_python_backend_stub"
    stub.unlink(missing_ok=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub.write_bytes((home / "python_backend_stubs" / version / stub.name).read_bytes())
    stub.chmod(0o755)
    _triton_model(folder, net, "python")
    (folder / "models" / net.name / "1" / "model.py").write_bytes((SCRIPTS / "triton_model.py").read_bytes())
    ports = free_ports()
    return Setup(_triton_words(home, ports), _triton_environment(packages, python), ports)


def _triton(folder: Path, net: Net, python: Path) -> Setup:
    """The same with a backend in C, as Triton's own is that comes in container images only."""
    packages, home = _triton_home(python)
    source = SCRIPTS / "triton_onnx.c"
    made = python.parents[1] / f"triton_onnx-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not made.exists():
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(source), "-o", str(made), "-ldl"], check=True)
    backend = folder / "backends" / "onnx"
    backend.mkdir(parents=True)
    (backend / "libtriton_onnx.so").symlink_to(made)
    _triton_model(folder, net, "onnx")
    ports = free_ports()
    engine = next((packages / "onnxruntime" / "capi").glob("libonnxruntime.so.*"))
    own = {**_triton_environment(packages, python), "EDGEKIT_ONNXRUNTIME": str(engine)}
    return Setup(_triton_words(home, ports), own, ports)


def _triton_home(python: Path) -> tuple[Path, Path]:
    """site-packages, and the server's folder in it."""
    packages = next(python.parents[1].glob("lib/python3*/site-packages"))
    return packages, packages / "pytriton" / "tritonserver"


def _triton_model(folder: Path, net: Net, backend: str) -> None:
    model = folder / "models" / net.name
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.onnx").write_bytes(net.model)
    (model / "config.pbtxt").write_text(_triton_config(net, backend))


def _triton_config(net: Net, backend: str) -> str:
    """Joining is on for the small network; the large one is no faster for it, and takes more memory."""
    shape = ", ".join(map(str, net.shape))
    joined = "dynamic_batching {}" if net.name == "mlp" else ""
    return f"""
name: "{net.name}"
backend: "{backend}"
max_batch_size: {JOINED}
input [{{name: "{nets.INPUT}", data_type: TYPE_FP32, dims: [{shape}]}}]
output [{{name: "{nets.OUTPUT}", data_type: TYPE_FP32, dims: [{net.classes}]}}]
instance_group [{{kind: KIND_CPU, count: 1}}]
{joined}
"""


def _triton_words(home: Path, ports: Ports) -> list[str]:
    program = home / "bin" / "tritonserver"
    program.chmod(0o755)
    words = [str(program), "--model-repository=models", "--backend-directory=backends"]
    words += ["--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=5"]
    for kind, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.other)):
        words += [f"--{kind}-address", "127.0.0.1", f"--{kind}-port", str(port)]
    return words


def _triton_environment(packages: Path, python: Path) -> dict[str, str]:
    libraries = [packages / "nvidia_pytriton.libs", Path(sysconfig.get_config_var("LIBDIR"))]
    return {
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(packages),
    }


def _rows(net: Net, _: Way) -> Ask:
    return asks.rows(net, "/predict")


def _raw(net: Net, _: Way) -> Ask:
    return asks.torchserve(net)


def _mlserver(folder: Path, net: Net, python: Path) -> Setup:
    """Without workers, which cost it more than they gain on one core."""
    ports, model = free_ports(), folder / net.name
    model.mkdir()
    settings = {
        "host": "127.0.0.1", "http_port": ports.http, "grpc_port": ports.grpc, "metrics_port": ports.other,
        "parallel_workers": 0, "debug": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    implementation = {"name": net.name, "implementation": "mlserver_runtime.Onnx"}
    uri = {"parameters": {"uri": "./model.onnx"}}
    (model / "model-settings.json").write_text(json.dumps(implementation | uri))
    (model / "model.onnx").write_bytes(net.model)
    return Setup([str(python.with_name("mlserver")), "start", "."], {"PYTHONPATH": str(SCRIPTS)}, ports)


def _script(name: str) -> Callable[[Path, Net, Path], Setup]:
    def setup(folder: Path, net: Net, python: Path) -> Setup:
        ports = free_ports()
        (folder / "model.onnx").write_bytes(net.model)
        words = [str(python), str(SCRIPTS / name), "model.onnx", str(ports.http)]
        return Setup(words, {"PATH": f"{python.parent}:{os.environ['PATH']}"}, ports)

    return setup


def _bentoml(folder: Path, net: Net, python: Path) -> Setup:
    ports = free_ports()
    (folder / "model.onnx").write_bytes(net.model)
    (folder / "bentoml_service.py").write_bytes((SCRIPTS / "bentoml_service.py").read_bytes())
    words = [str(python.with_name("bentoml")), "serve", "bentoml_service:Model"]
    words += ["--host", "127.0.0.1", "--port", str(ports.http)]
    home = {"BENTOML_HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    return Setup(words, {**home, "PATH": f"{python.parent}:{os.environ['PATH']}"}, ports)


def _torchserve(folder: Path, net: Net, python: Path) -> Setup:
    """A handler that takes the bytes of a tensor; its archive is a zip file with a manifest."""
    ports, others = free_ports(), free_ports()
    model = {
        "modelName": net.name, "modelVersion": "1.0", "serializedFile": "model.onnx",
        "handler": "torchserve_handler.py", "configFile": "model-config.yaml",
    }  # fmt: skip
    manifest = {"runtime": "python", "archiverVersion": "0.12.0", "model": model}
    with zipfile.ZipFile(folder / f"{net.name}.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("model.onnx", net.model)
        archive.write(SCRIPTS / "torchserve_handler.py", "torchserve_handler.py")
        archive.writestr("model-config.yaml", "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n")
    settings = {
        "inference_address": f"http://127.0.0.1:{ports.http}",
        "management_address": f"http://127.0.0.1:{ports.other}",
        "metrics_address": f"http://127.0.0.1:{others.http}",
        "grpc_inference_address": "127.0.0.1", "grpc_inference_port": ports.grpc,
        "grpc_management_address": "127.0.0.1", "grpc_management_port": others.grpc,
    }  # fmt: skip
    (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    words = [str(python.with_name("torchserve")), "--start", "--foreground", "--ncs", "--disable-token-auth"]
    words += [
        "--ts-config",
        "config.properties",
        "--model-store",
        ".",
        "--models",
        f"{net.name}={net.name}.mar",
    ]
    own = {
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "LOG_LOCATION": str(folder),
        "TMPDIR": str(folder),
    }
    return Setup(words, {**own, "TEMP": str(folder)}, ports)


PEERS = {
    "triton": Server(
        "Triton", "2.51.0", ("nvidia-pytriton==0.7.0",), ("binary", "gRPC", "JSON"),
        asks.inference_protocol, _triton, ("cc",),
    ),
    "triton-python": Server(
        "Triton, Python", "2.51.0", ("nvidia-pytriton==0.7.0",), ("binary", "gRPC", "JSON"),
        asks.inference_protocol, _triton_python,
    ),
    "mlserver": Server(
        "MLServer", "1.7.1", ("mlserver==1.7.1", "uvloop<0.22"), ("gRPC", "JSON"),
        asks.inference_protocol, _mlserver,
    ),
    "litserve": Server(
        "LitServe", "0.2.19", ("litserve==0.2.19",), ("JSON",), _rows, _script("litserve_server.py")
    ),
    "bentoml": Server("BentoML", "1.4.39", ("bentoml==1.4.39",), ("JSON",), _rows, _bentoml),
    "torchserve": Server(
        "TorchServe", "0.12.0", ("torch==2.13.0", "torchserve==0.12.0", "pyyaml"), ("raw",),
        _raw, _torchserve, ("java",),
    ),
}  # fmt: skip
