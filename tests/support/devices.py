"""Devices for tests: real bundles of a tiny real model, and agents as real processes without a fleet.

The model is `y = x @ W`: (batch, 4) FP32 in, (batch, 2) FP32 out, on the reference engine. `weight`
chooses W, so that an answer tells which release gave it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.model import EngineRange, GoldenSpec, Preprocessing, ReleaseInfo, TensorSpec, Variant
from edgekit.runtimes import Array, reference
from tests.support import stranger
from tests.support.bundles import Keys, make_config, make_variant, tiny_bundle

X: Array = np.arange(8, dtype=np.float32).reshape(2, 4)
NAME = "tiny"


def weights(weight: float) -> Array:
    return np.full((4, 2), weight, np.float32) * np.array([1, -1], np.float32)


def answers(weight: float, x: Array = X) -> Array:
    return np.asarray(x @ weights(weight))


def variant(weight: float, *, lie: float = 0.0, profile: str = "generic-cpu", name: str = "") -> Variant:
    """`lie` is added to the certified answers: the golden check then fails."""
    config = make_config(
        variant=name or f"{profile}.reference.fp32",
        profile=profile,
        engine=EngineRange("reference", "1.0", ""),
        options={},
        files=("graph.json", "weights.bin"),
        preprocessing=Preprocessing(()),
    )
    files = reference.pack(
        [reference.Tensor("x", "FP32", (-1, 4))],
        ["y"],
        {"w": weights(weight)},
        [reference.Node("matmul", ("x", "w"), "y")],
    )
    golden = GoldenSpec(
        samples=2,
        inputs=(TensorSpec("x", "FP32", (2, 4)),),
        outputs=(TensorSpec("y", "FP32", (2, 2)),),
        max_abs_difference=0.01,
        min_reference_agreement=0.0,
    )
    outputs = answers(weight) + np.float32(lie)
    samples = {"inputs/x": X.tobytes(), "outputs/y": outputs.astype(np.float32).tobytes()}
    return make_variant(config, files=files, golden=golden, golden_files=samples)


def strange(weight: float, mode: str, *, budget_mib: float = 0.0) -> Variant:
    """Answers like `variant`; its engine (tests/support/stranger.py) misbehaves where x begins with 13."""
    plain = variant(weight)
    config = dataclasses.replace(
        plain.config,
        engine=EngineRange(stranger.NAME),
        options={"mode": mode},
        files=("weights.bin",),
        memory_budget_mib=budget_mib,
    )
    files = {"weights.bin": weights(weight).tobytes()}
    return make_variant(config, files=files, golden=plain.golden, golden_files=dict(plain.golden_files))


def poison(argument: float = 0.0) -> Array:
    """An input that makes `strange` misbehave."""
    x = X.copy()
    x[0, :2] = 13, argument
    return x


def release(folder: Path, version: str, *variants: Variant, keys: Keys, encrypt: bool = True) -> Path:
    """Write NAME:version as `folder`/NAME-version.edgekit."""
    info = dataclasses.replace(ReleaseInfo(NAME, version))
    path, _ = tiny_bundle(
        folder, variants=variants, keys=keys, info=info, encrypt=encrypt, name=f"{NAME}-{version}.edgekit"
    )
    return path


class Client:
    """HTTP to an agent, over TCP or a Unix socket."""

    def __init__(self, *, port: int = 0, unix: Path | None = None) -> None:
        self._port, self._unix = port, unix

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            if self._unix is not None:
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(20)
                connection.sock.connect(str(self._unix))
            connection.request(method, path, json.dumps(body) if body is not None else None)
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text.startswith((b"{", b"[")) else text.decode()
        finally:
            connection.close()

    def infer(self, x: Array = X) -> Array:
        """The served model's answer. Fails the test on any other status than 200."""
        tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        status, answer = self.request("POST", f"/v2/models/{NAME}/infer", {"inputs": [tensor]})
        assert status == 200, answer
        (output,) = answer["outputs"]
        return np.array(output["data"], np.float32).reshape(output["shape"])

    def served_weight(self) -> float:
        """Which release answers: its weight, from the answer itself."""
        got = self.infer()
        weight = float(got[1, 0] / X[1].sum())
        np.testing.assert_allclose(got, answers(weight), rtol=1e-4)
        return round(weight, 3)


def wait_for(what: str, ready: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if ready():
                return
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.02)
