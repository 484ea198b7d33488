"""From files to answers over HTTP, by the command line as a person would: `edgekit build --pipeline`,
`edgekit-agent serve`, and a real .wav, JPEG or text as the body."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from benchmarks.zoo import fastestdet
from edgekit import bundle, runtimes, toolenv
from edgekit.build import rebuild
from edgekit.build.data import Naming
from edgekit.bundle.steps import Length, Mfcc, Peak, Resample, Wav
from edgekit.crypto.keyring import KeyRing
from edgekit.runtimes._pipeline import Processor
from edgekit.runtimes._pipeline.sound import Cepstrum, Chain, Sound
from tests.support import curl
from tests.unit.runtimes import kws
from tests.unit.runtimes.test_sound import tone, wav

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
KWS = ROOT / "examples" / "kws"
SHARED = ROOT.parent / "shared" / "data"
LABELS = "down,go,left,no,off,on,right,stop,up,yes,silence,unknown"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pipelines")]
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no example data beside the repository")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "EDGEKIT_KEYS": str(folder / "keys"), "EDGEKIT_CACHE": str(folder / "cache")}


def build(folder: Path, name: str, model: Path, *words: str | Path) -> Path:
    made = folder / f"{name}.edgekit"
    command: list[str | Path] = [BIN / "edgekit", "build", model, "-o", made, "--profile", "generic-cpu"]
    command += ["--precision", "fp32", "--engine", "onnxruntime", "--effort", "quick", "--no-gate", "--quiet"]
    command += ["--no-robustness", *words]
    subprocess.run([str(word) for word in command], env=environment(folder), check=True)
    return made


@contextmanager
def served(folder: Path, made: Path) -> Iterator[int]:
    """The port of `edgekit-agent serve`."""
    words = [BIN / "edgekit-agent", "serve", made, "--profile", "generic-cpu", "--emulated", "--port", "0"]
    command = [str(word) for word in words]
    with subprocess.Popen(command, env=environment(folder), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready: dict[str, Any] = json.loads(process.stdout.readline())
            yield int(ready["endpoint"].rpartition(":")[2])
        finally:
            process.terminate()
            assert process.wait(timeout=30) == 0


def ask(
    port: int, name: str, body: bytes, kind: str, *, status: int = 200, path: str = "/v2/models/{}/infer"
) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": kind} if kind else {}
    connection.request("POST", path.format(name), body, headers)
    answer = connection.getresponse()
    found: dict[str, Any] = json.loads(answer.read())
    assert answer.status == status, found
    connection.close()
    return found


def curls(port: int, name: str, folder: Path = ROOT) -> Iterator[dict[str, Any]]:
    """What the documents' curl lines for this model are answered, when they are run in `folder`."""
    chosen = [line for line in curl.lines() if curl.with_a_file(line) and curl.model(line) == name]
    assert chosen
    for line in chosen:
        status, output = curl.run(line, f"127.0.0.1:{port}", folder)
        assert status == 200, output
        yield json.loads(output)


@pytest.fixture(scope="module")
def spotter(folder: Path) -> Path:
    data = KWS / "kws01_eval.npz"
    return build(
        folder, "kws", KWS / "kws_fp32.onnx", "--calibration", f"{data}[0:40]",
        "--evaluate", f"{data}[200:400]", "--labels", "y", "--affine", "0.5847029089927673,83",
        "--label-names", LABELS, "--pipeline", KWS / "pipeline.toml",
    )  # fmt: skip


def test_a_recording_gets_a_word(folder: Path, spotter: Path) -> None:
    """The answer is the engine's to features computed here; the same sound at another rate, width and number
    of channels is the same to the model."""
    body = wav(tone(440.0, 1.0) * 0.5)
    (entry,) = bundle.open(spotter, [KeyRing(folder / "keys").verify_key()]).variants
    assert entry.config.pipeline is not None
    inputs, _ = Processor(entry.config, entry.config.pipeline, {}).before(body)
    (scores,) = kws.session("onnxruntime").run(inputs).values()
    best = int(np.argmax(scores))
    with served(folder, spotter) as port:
        found = ask(port, "kws", body, "audio/wav")
        assert found == {"label": LABELS.split(",")[best], "index": best, "score": found["score"]}
        assert found["score"] == pytest.approx(float(scores.max()), abs=1e-4)
        stereo = wav(np.repeat(tone(440.0, 1.0, 48000) * 0.5, 2), 48000, 3, 2)
        for kind in ("audio/x-wav", "Audio/Wave; codecs=1"):
            again = ask(port, "kws", stereo, kind)
            assert again["label"] == found["label"]
        # Words, though spoken by a program (examples/kws/speak.py).
        for word in ("stop", "yes"):
            assert ask(port, "kws", (KWS / f"{word}.wav").read_bytes(), "audio/wav")["label"] == word
        printed = re.search(r'^\{"label":"stop".*\}$', (ROOT / "README.md").read_text(), re.MULTILINE)
        assert printed
        assert all(one == pytest.approx(json.loads(printed[0]), abs=0.1) for one in curls(port, "kws"))
        # Requests that come together, and may share an engine run, each get their own answer.
        words = ["stop", "yes"] * 20
        with ThreadPoolExecutor(8) as pool:
            files = ((KWS / f"{word}.wav").read_bytes() for word in words)
            answers = list(pool.map(lambda file: ask(port, "kws", file, "audio/wav")["label"], files))
        assert answers == words
        # What curl says by itself; and TorchServe's path, also as its clients upload files.
        for path in ("/v2/models/{}/infer", "/predictions/{}", "/predictions/{}/0.1.0"):
            for kind in ("application/x-www-form-urlencoded", ""):
                assert ask(port, "kws", body, kind, path=path) == found
        form = (
            b'--xx\r\nContent-Disposition: form-data; name="data"; filename="a.wav"\r\n\r\n%b\r\n--xx--\r\n'
        )
        multipart = "multipart/form-data; boundary=xx"
        assert ask(port, "kws", form % body, multipart, path="/predictions/{}") == found
        refused = ask(port, "kws", body[:20], "audio/wav", status=400, path="/predictions/{}")
        assert refused["code"] == 400 and "not a recording" in refused["message"]
        # Tensors are taken as ever, and what is no recording gets one line.
        row = kws.data()[0][:1]
        tensor = {
            "name": kws.INPUT,
            "datatype": "INT8",
            "shape": [1, 49, 10, 1],
            "data": row.ravel().tolist(),
        }
        plain = ask(port, "kws", json.dumps({"inputs": [tensor]}).encode(), "application/json")
        assert plain["outputs"][0]["shape"] == [1, 12]
        assert "not a recording" in ask(port, "kws", b"RIFF", "audio/wav", status=400)["error"]
        assert "takes audio/wav" in ask(port, "kws", b"\xff\xd8", "image/jpeg", status=415)["error"]
        assert "failed to parse" in ask(port, "kws", b"hello", "text/plain", status=400)["error"]
        metadata = json.loads(get(port, "/v2/models/kws"))
        assert metadata["inputs"][0]["parameters"]["content_types"][0] == "audio/wav"
        assert ask(port, "kws", body, "audio/wav") == found


TENSORFLOW = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf
sounds = np.load(sys.argv[1])["sounds"]
spectra = tf.abs(tf.signal.stft(sounds, frame_length=480, frame_step=320, window_fn=tf.signal.hann_window))
mel = tf.signal.linear_to_mel_weight_matrix(40, spectra.shape[-1], 16000, 20.0, 4000.0)
logs = tf.math.log(tf.tensordot(spectra, mel, 1) + 1e-6)
np.savez(sys.argv[2], mfcc=tf.signal.mfccs_from_log_mel_spectrograms(logs)[..., :10].numpy())
"""


def test_coefficients_are_tensorflows(folder: Path) -> None:
    """tf.signal with the parameters that MLPerf Tiny gives it, in edgekit's tool environment."""
    rng = np.random.default_rng(5)
    speech = Chain(Wav(), (Resample(rate=16000), Peak(), Length(samples=16000)), (16000,))
    spoken = [speech((KWS / f"{word}.wav").read_bytes()) for word in ("stop", "yes")]
    noise = [rng.standard_normal(16000) * loudness for loudness in (1.0, 0.1, 0.001)]
    sounds = np.array([*spoken, *noise, np.zeros(16000)], np.float32)
    np.savez(folder / "sounds.npz", sounds=sounds)
    python = toolenv.ensure("tensorflow")
    words = [python, "-c", TENSORFLOW, folder / "sounds.npz", folder / "mfcc.npz"]
    subprocess.run([str(word) for word in words], check=True, capture_output=True)
    with np.load(folder / "mfcc.npz") as file:
        theirs = file["mfcc"]
    ours = np.array([Cepstrum(Mfcc())(Sound(samples, 16000)) for samples in sounds])
    assert theirs.shape == ours.shape == (6, 49, 10)
    # Ends of spoken words are so quiet that TensorFlow's float32 shows.
    np.testing.assert_allclose(ours[:2], theirs[:2], atol=0.05)
    np.testing.assert_allclose(ours[2:], theirs[2:], atol=1e-4)


def get(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200
    return body


def test_it_can_be_rebuilt(folder: Path, spotter: Path) -> None:
    opened = bundle.open(spotter, [KeyRing(folder / "keys").verify_key()])
    naming = Naming(labels="y")
    given = rebuild.Inputs(KWS / "kws_fp32.onnx", f"{KWS / 'kws01_eval.npz'}[0:40]", naming=naming)
    assert all(one.same for one in rebuild.rebuild(opened, given))


@needs_data
def test_jpeg_files_get_their_class(folder: Path) -> None:
    """As often the right one as the certificate says of the same files."""
    tar = SHARED / "cifar10-jpeg" / "test_2000.tar"
    (folder / "classes.toml").write_text(
        '[[before]]\nkind = "picture"\n[[after]]\nkind = "softmax"\n[[after]]\nkind = "top-k"\nk = 2\n'
    )
    with tarfile.open(tar) as archive:
        members = [info for info in archive if info.isreg() and info.name.endswith(".jpg")]
        names = sorted({Path(info.name).parent.name for info in members})
        by_class = {
            name: sorted((i for i in members if Path(i.name).parent.name == name), key=lambda i: i.name)
            for name in names
        }
        chosen = [by_class[name][turn] for turn in range(10) for name in names]
        rows = [(info, archive.extractfile(info).read()) for info in chosen]  # type: ignore[union-attr]
    made = build(
        folder, "resnet20", SHARED / "cifar10-resnet20" / "resnet20.onnx", "--image", "imagenet",
        "--calibration", f"{tar}[0:40]", "--evaluate", f"{tar}[0:100]", "--pipeline", folder / "classes.toml",
    )  # fmt: skip
    (entry,) = bundle.open(made, [KeyRing(folder / "keys").verify_key()]).variants
    with served(folder, made) as port:
        answers = [ask(port, "resnet20", body, "image/jpeg") for _, body in rows]
        right = [
            a["label"] == Path(info.name).parent.name for a, (info, _) in zip(answers, rows, strict=True)
        ]
        assert np.mean(right) == entry.certificate.accuracy.value
        assert all(
            len(answer["top"]) == 2 and answer["score"] >= answer["top"][1]["score"] for answer in answers
        )
        (folder / "cat.jpg").write_bytes(rows[names.index("cat")][1])
        assert list(curls(port, "resnet20", folder)) == [answers[names.index("cat")]]
        # PNG is lossless: the pixels of a JPEG give the same answer.
        file = io.BytesIO()
        Pillow.open(io.BytesIO(rows[0][1])).save(file, "PNG")
        assert ask(port, "resnet20", file.getvalue(), "image/png") == answers[0]
        assert (
            "not a sound picture"
            in ask(port, "resnet20", rows[0][1][:200], "image/jpeg", status=400)["error"]
        )


@needs_data
def test_photos_get_boxes(folder: Path) -> None:
    data = SHARED / "fastestdet"
    (folder / "boxes.toml").write_text(
        '[[before]]\nkind = "picture"\n'
        '[[after]]\nkind = "boxes"\nformat = "fastestdet"\nmin_score = 0.65\n[[after]]\nkind = "nms"\n'
    )
    (folder / "coco.txt").write_text("\n".join((data / "coco.names").read_text().splitlines()[:80]))
    made = build(
        folder, "detector", data / "FastestDet.onnx", "--image", "bgr",
        "--calibration", data, "--evaluate", data, "--metric", "f1-agreement",
        "--decode", f"{fastestdet.__file__}:boxes", "--label-names",
        folder / "coco.txt", "--pipeline", folder / "boxes.toml",
    )  # fmt: skip
    (entry,) = bundle.open(made, [KeyRing(folder / "keys").verify_key()]).variants
    assert entry.config.pipeline is not None
    processor = Processor(entry.config, entry.config.pipeline, {})
    session = runtimes.get("onnxruntime").load({"m.onnx": (data / "FastestDet.onnx").read_bytes()}, {})
    with served(folder, made) as port:
        for number in range(5):
            body = (data / f"{number}.jpg").read_bytes()
            found = ask(port, "detector", body, "image/jpeg")
            inputs, noted = processor.before(body)
            outputs = {entry.config.outputs[0].name: next(iter(session.run(inputs).values()))}
            wanted = processor.after(outputs, noted)
            assert [box["label"] for box in found["boxes"]] == [box["label"] for box in wanted["boxes"]]
            for box, other in zip(found["boxes"], wanted["boxes"], strict=True):
                np.testing.assert_allclose(box["box"], other["box"], atol=0.5)
        assert found["width"] > 352
        (folder / "photo.jpg").write_bytes(body)
        assert list(curls(port, "detector", folder)) == [found]


@needs_data
def test_texts_get_vectors(folder: Path) -> None:
    """The tokenizer travels with the model; engines are not given it."""
    data = SHARED / "minilm-int8"
    (folder / "text.toml").write_text(
        f'[[before]]\nkind = "wordpiece"\nvocabulary = "{data / "tokenizer.json"}"\n'
        'ids = "input_ids"\nmask = "attention_mask"\n[[after]]\nkind = "l2-normalise"\n'
    )
    rng = np.random.default_rng(1)
    ids, mask = rng.integers(1000, 2000, (40, 32)), np.ones((40, 32), np.int64)
    np.savez(folder / "tokens.npz", input_ids=ids, attention_mask=mask)
    made = build(
        folder, "minilm", data / "minilm_int8.onnx",
        "--shape", "input_ids=1,32", "--shape", "attention_mask=1,32",
        "--calibration", f"{folder / 'tokens.npz'}[0:20]", "--evaluate", f"{folder / 'tokens.npz'}[20:40]",
        "--metric", "agreement", "--pipeline", folder / "text.toml",
    )  # fmt: skip
    (entry,) = bundle.open(made, [KeyRing(folder / "keys").verify_key()]).variants
    assert (
        "pipeline/vocab.txt" in entry.config.files and "pipeline/vocab.txt" not in entry.config.engine_files
    )
    texts = ("A plane is taking off.", "An air plane is taking off.", "A man is playing a flute.")
    with served(folder, made) as port:
        answers = [ask(port, "minilm", text.encode(), "text/plain; charset=utf-8") for text in texts]
        assert list(curls(port, "minilm")) == [answers[0]]
        assert "not UTF-8" in ask(port, "minilm", b"\xff", "text/plain", status=400)["error"]
    first, second, third = (np.array(answer["values"]) for answer in answers)
    assert answers[0]["shape"] == [384]
    assert first @ second > 0.9 > 0.5 > first @ third
