"""A supervisor's minimum: real serving processes on real sockets, with a model to load."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.bundle.model import EngineRange, GoldenSpec, Preprocessing, TensorSpec, VariantConfig
from edgekit.bundle.steps import Pipeline
from edgekit.profile import Verify
from edgekit.runtimes import Array, get, reference
from edgekit.runtimes._golden import make
from edgekit.runtimes._preprocess import apply
from edgekit_agent import launch, memfd
from edgekit_agent.messages import Load, Loaded
from edgekit_agent.serve.limits import Limits
from edgekit_agent.serve.protocols import ALL
from edgekit_agent.serve.safety import Safety
from tests.unit.runtimes import kws

LABELS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown")
_IDS = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A Load and the files that go with it."""

    load: Load
    files: Mapping[str, bytes]
    golden: Mapping[str, bytes]

    def changed(self, **fields: object) -> Candidate:
        return dataclasses.replace(self, load=dataclasses.replace(self.load, **fields))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def memory(self) -> Iterator[list[int]]:
        """The sealed memfds, in the order of the Load."""
        fds = [
            *memfd.create_all({name: self.files[name] for name in self.load.files}).values(),
            *memfd.create_all({name: self.golden[name] for name in self.load.golden_files}).values(),
        ]
        try:
            yield fds
        finally:
            memfd.close_all(fds)

    def into(self, serving: launch.Serving) -> Loaded:
        with self.memory() as fds:
            load = dataclasses.replace(self.load, id=serving.client.next_id())
            return serving.load(load, fds, timeout_s=60)

    def probe(self, *, timeout_s: float = 60, memory_mib: int = 0) -> Loaded:
        with self.memory() as fds:
            return launch.probe(self.load, fds, timeout_s=timeout_s, memory_mib=memory_mib)


def candidate(
    config: VariantConfig, files: Mapping[str, bytes], inputs: Mapping[str, Array], version: str = "1"
) -> Candidate:
    """With golden samples made by the engine itself from the engine inputs `inputs`."""
    session = get(config.engine.name).load(files, config.options)
    golden, golden_files = make(session, inputs, None, Verify(golden_samples=4))
    session.close()
    return bare(config, files, golden, golden_files, version)


def bare(
    config: VariantConfig,
    files: Mapping[str, bytes],
    golden: GoldenSpec,
    golden_files: Mapping[str, bytes],
    version: str = "1",
) -> Candidate:
    load = Load(next(_IDS), "kws", version, config, golden, tuple(files), tuple(golden_files))
    return Candidate(load, files, golden_files)


def config(
    engine: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    files: tuple[str, ...],
    *,
    labels: tuple[str, ...] = (),
    preprocessing: Preprocessing | None = None,
    options: Mapping[str, str | int | float | bool] | None = None,
    pipeline: Pipeline | None = None,
) -> VariantConfig:
    return VariantConfig(
        variant=f"test.{engine}.fp32", profile="generic-cpu", engine=EngineRange(engine), precision="fp32",
        options=dict(options or {}), files=files, inputs=inputs, outputs=outputs, labels=labels,
        preprocessing=preprocessing or Preprocessing(), architecture="any", isa=(), memory_forecast_mib=0.0,
        pipeline=pipeline,
    )  # fmt: skip


def keyword_spotter(version: str = "1") -> Candidate:
    """The fp32 model of examples/kws on onnxruntime, one thread."""
    stored, _ = kws.data()
    made = config(
        "onnxruntime", (kws.SPEC,), (TensorSpec(kws.OUTPUT, "FP32", (-1, 12)),), ("model.onnx",),
        labels=LABELS, preprocessing=kws.SCALE, options={"intra_threads": 1},
    )  # fmt: skip
    real = {kws.INPUT: apply(kws.SCALE.affine[0], stored[:8])}
    return candidate(made, {"model.onnx": kws.model()}, real, version)


def linear(
    gain: float = 1.0, version: str = "1", *, width: int = 4, names: tuple[str, str] = ("x", "y")
) -> Candidate:
    """y = gain * x on the reference engine: FP32 (batch, width), labels a, b, c, ...; `names`: of x, y."""
    x, y = names
    weight = np.eye(width, dtype=np.float32) * np.float32(gain)
    files = reference.pack(
        [reference.Tensor(x, "FP32", (-1, width))],
        [y],
        {"w": weight},
        [reference.Node("matmul", (x, "w"), y)],
    )
    labels = tuple("abcdefghijklmnopqrstuvwxyz"[:width])
    specs = (TensorSpec(x, "FP32", (-1, width)),), (TensorSpec(y, "FP32", (-1, width)),)
    made = config("reference", *specs, tuple(files), labels=labels)
    return candidate(made, files, {x: np.eye(width, dtype=np.float32)}, version)


def several(version: str = "1") -> Candidate:
    """sum = a + b and difference = a - b on the reference engine: FP32 (batch, 2) all of them."""
    files = reference.pack(
        [reference.Tensor(name, "FP32", (-1, 2)) for name in ("a", "b")],
        ["sum", "difference"],
        {},
        [reference.Node("add", ("a", "b"), "sum"), reference.Node("sub", ("a", "b"), "difference")],
    )
    inputs = tuple(TensorSpec(name, "FP32", (-1, 2)) for name in ("a", "b"))
    outputs = tuple(TensorSpec(name, "FP32", (-1, 2)) for name in ("sum", "difference"))
    made = config("reference", inputs, outputs, tuple(files))
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    return candidate(made, files, {"a": rows, "b": rows[::-1].copy()}, version)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(str(self.path))


@dataclasses.dataclass
class Stand:
    """What a supervisor holds: the listening sockets, and the serving process of the moment."""

    tcp: socket.socket
    unix: socket.socket
    path: Path
    serving: launch.Serving

    @property
    def port(self) -> int:
        return int(self.tcp.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextlib.contextmanager
def stand(
    folder: Path,
    limits: Limits | None = None,
    *,
    protocols: Sequence[str] = (ALL,),
    wait_for_load: bool = False,
    parser: str = "",
    safety: Safety | None = None,
) -> Iterator[Stand]:
    """A serving process on a free TCP port and a Unix socket in `folder`; killed at the end."""
    path = folder / "serve.sock"
    with socket.create_server(("127.0.0.1", 0), backlog=256) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))
        unix.listen(256)
        serving = launch.start(
            [tcp, unix], limits or Limits(), protocols=protocols, wait_for_load=wait_for_load, parser=parser,
            safety=safety or Safety(),
        )  # fmt: skip
        made = Stand(tcp, unix, path, serving)
        try:
            yield made
        finally:
            made.serving.kill()
