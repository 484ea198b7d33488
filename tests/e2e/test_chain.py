"""Build, then serve what was built: the answers over HTTP are the certified ones, for every variant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from edgekit import bundle
from edgekit.bundle import Bundle, VariantEntry
from edgekit.crypto.keyring import KeyRing
from edgekit.runtimes import Array
from edgekit.runtimes._base import DTYPES

BIN = Path(sys.executable).parent
KWS = Path(__file__).parents[2] / "examples" / "kws"
PROFILES = ("jetson", "raspberry-pi-5", "intel-nuc")
ROWS = range(200, 1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key ring and `kws.edgekit`, built by the command line as a person would."""
    made = tmp_path_factory.mktemp("chain")
    data = KWS / "kws01_eval.npz"
    words = [BIN / "edgekit", "build", KWS / "kws_fp32.onnx", "-o", made / "kws.edgekit", "--name", "kws"]
    words += [word for profile in PROFILES for word in ("--profile", profile)]
    words += ["--calibration", f"{data}[0:200]", "--evaluate", f"{data}[200:1000]", "--labels", "y"]
    words += ["--affine", "0.5847029089927673,83", "--precision", "int8", "--objective", "size", "--quiet"]
    subprocess.run([str(word) for word in words], env=environment(made), check=True)
    return made


def environment(made: Path) -> dict[str, str]:
    return {**os.environ, "EDGEKIT_KEYS": str(made / "keys"), "EDGEKIT_CACHE": str(made / "cache")}


@contextmanager
def served(made: Path, profile: str) -> Iterator[triton.InferenceServerClient]:
    """`edgekit-agent serve` on a free port, as that kind of device."""
    words = [BIN / "edgekit-agent", "serve", made / "kws.edgekit", "--profile", profile, "--emulated"]
    command = [*map(str, words), "--port", "0"]
    with subprocess.Popen(command, env=environment(made), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready: dict[str, Any] = json.loads(process.stdout.readline())
            assert ready["variant"].startswith(f"{profile}.")
            client = triton.InferenceServerClient(ready["endpoint"].removeprefix("http://"))
            yield client
            client.close()
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0


def tensor(opened: Bundle, entry: VariantEntry, key: bytes, name: str, shape: tuple[int, ...]) -> Array:
    data = opened.read_golden(entry, key)[name]
    return np.frombuffer(data, DTYPES["FP32"]).reshape(shape)


@pytest.mark.slow
@pytest.mark.xdist_group("build")
@pytest.mark.parametrize("profile", PROFILES)
def test_served_answers_are_the_certified_ones(folder: Path, profile: str) -> None:
    ring = KeyRing(folder / "keys")
    opened = bundle.open(folder / "kws.edgekit", [ring.verify_key()])
    key = opened.content_key(ring.sealing_key())
    fitting = (one for one in opened.variants if one.config.profile == profile)
    (entry,) = (one for one in fitting if not one.certificate.stand_in)  # its engine is not on this machine
    (given,), (answer,) = entry.golden.inputs, entry.golden.outputs
    golden = tensor(opened, entry, key, f"inputs/{given.name}", given.shape)
    certified = tensor(opened, entry, key, f"outputs/{answer.name}", answer.shape)
    with np.load(KWS / "kws01_eval.npz") as file:
        stored, labels = file["x"], file["y"]
    with served(folder, profile) as client:
        assert [model["name"] for model in client.get_model_repository_index()] == ["kws"]
        for sample, expected in zip(golden, certified, strict=True):
            seen = infer(client, given.name, sample[None], answer.name, binary=True)
            np.testing.assert_allclose(seen[0], expected, atol=1e-6)
        for binary in (True, False):
            classes = [
                int(np.argmax(infer(client, given.name, stored[row, None], answer.name, binary=binary)))
                for row in ROWS
            ]
            # Not merely close: the certificate's accuracy, to the last answer.
            assert float(np.mean(np.array(classes) == labels[ROWS])) == entry.certificate.accuracy.value


def infer(
    client: triton.InferenceServerClient, name: str, rows: Array, output: str, *, binary: bool
) -> Array:
    """One request of FP32 (as the engine takes it) or INT8 (as stored; the agent preprocesses)."""
    given = triton.InferInput(name, list(rows.shape), "INT8" if rows.dtype == np.int8 else "FP32")
    given.set_data_from_numpy(rows, binary_data=binary)
    wanted = [triton.InferRequestedOutput(output, binary_data=binary)]
    return np.asarray(client.infer("kws", [given], outputs=wanted).as_numpy(output))
