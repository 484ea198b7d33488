"""Words spoken by espeak-ng (apt-get install espeak-ng), through pipeline.toml, to the fp32 keyword spotter.

    python examples/kws/speak.py

No recording of a person is at hand: this shows that the way from a wav file to a word works, not how well.
"""

from __future__ import annotations

import io
import itertools
import subprocess
import wave
from collections import Counter
from pathlib import Path

import numpy as np

from edgekit import runtimes
from edgekit.build import processing
from edgekit.bundle.model import EngineRange, Preprocessing, TensorSpec, VariantConfig
from edgekit.runtimes._pipeline import Processor

HERE = Path(__file__).parent
WORDS = ("down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes")
VOICES = ("en-us", "en-gb", "en-us+f2", "en-us+m3", "en-gb+f3", "en-us+m7")
SPEEDS = (110, 140, 175)
"""Words per minute; 175 is espeak-ng's own."""


def spoken(word: str, voice: str, speed: int) -> bytes:
    """A wav file of 16 bits and 22,050 Hz."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", word]
    return subprocess.run(command, check=True, capture_output=True).stdout


def centred(wav: bytes) -> bytes:
    """The word in the middle of a second, with noise 60 dB below full scale, as of a microphone."""
    with wave.open(io.BytesIO(wav)) as file:
        rate = file.getframerate()
        heard = np.frombuffer(file.readframes(10 * rate), "<i2")
    loud = np.flatnonzero(np.abs(heard) > 300)
    word = heard[loud[0] : loud[-1] + 1][:rate]
    second = np.random.default_rng(1).normal(0, 30, rate)
    begin = (rate - len(word)) // 2
    second[begin : begin + len(word)] += word
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(second.astype("<i2").tobytes())
    return made.getvalue()


def main() -> None:
    found = processing.load(HERE / "pipeline.toml")
    name = "serving_default_input_1:0"
    config = processing.attach(
        VariantConfig(
            variant="kws",
            profile="generic-cpu",
            engine=EngineRange("onnxruntime"),
            precision="fp32",
            options={},
            files=(),
            inputs=(TensorSpec(name, "FP32", (-1, 49, 10, 1)),),
            outputs=(TensorSpec("StatefulPartitionedCall:0", "FP32", (-1, 12)),),
            labels=(*WORDS, "silence", "unknown"),
            preprocessing=Preprocessing(),
            architecture="any",
            isa=(),
            memory_forecast_mib=0.0,
        ),
        found,
    )
    processor = Processor(config, found.pipeline, found.files)
    model = {"model.onnx": (HERE / "kws_fp32.onnx").read_bytes()}
    session = runtimes.get("onnxruntime").load(model, {"intra_threads": 1})
    for how in ("as it comes", "centred"):
        right: Counter[str] = Counter()
        for word, voice, speed in itertools.product(WORDS, VOICES, SPEEDS):
            wav = spoken(word, voice, speed)
            inputs, noted = processor.before(wav if how == "as it comes" else centred(wav))
            right[word] += processor.after(session.run(inputs), noted)["label"] == word
        each = len(VOICES) * len(SPEEDS)
        print(f"{how}: {right.total()} of {each * len(WORDS)} right;", end=" ")
        print(", ".join(f"{word} {right[word]}/{each}" for word in WORDS))


if __name__ == "__main__":
    main()
