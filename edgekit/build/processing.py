"""`--pipeline FILE.toml`: steps before and after the engine, read, checked against the model, and tried once.

    [[before]]
    kind = "picture"

    [[after]]
    kind = "softmax"

    [[after]]
    kind = "top-k"
    k = 3

Every step and its figures: docs/pipelines.md. `input`, `output` and `version` may stand above the steps.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tomllib
import wave
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgekit import codec
from edgekit.bundle import step_rules, steps
from edgekit.bundle.model import VariantConfig
from edgekit.bundle.steps import Pipeline, WordPiece
from edgekit.errors import ConfigError, EdgekitError
from edgekit.runtimes._base import DTYPES
from edgekit.runtimes._pipeline import Answer, Processor
from edgekit.runtimes._pipeline.wordpiece import MAX_VOCABULARY_BYTES

MAX_BYTES = 1 << 16
S = TypeVar("S")


@dataclass(frozen=True)
class Processing:
    """A pipeline and the files that it reads, as they travel in a variant."""

    pipeline: Pipeline
    files: Mapping[str, bytes]


def load(path: Path) -> Processing:
    """Raises ConfigError naming the file and the step. A vocabulary's path is relative to the file."""
    plain = _toml(path)
    files: dict[str, bytes] = {}
    before = tuple(_step(path, steps.BEFORE, "before", item) for item in _tables(path, plain, "before"))
    after = tuple(_step(path, steps.AFTER, "after", item) for item in _tables(path, plain, "after"))
    packed = []
    for step in before:
        if isinstance(step, WordPiece):
            name = f"{steps.FOLDER}vocab.txt"
            files[name] = _vocabulary(path.parent / step.vocabulary)
            step = dataclasses.replace(step, vocabulary=name)
        packed.append(step)
    rest = {key: value for key, value in plain.items() if key not in ("before", "after")}
    shell = codec.from_plain(Pipeline, {"before": (), **rest}, what=str(path))
    return Processing(dataclasses.replace(shell, before=tuple(packed), after=after), files)


def attach(config: VariantConfig, processing: Processing) -> VariantConfig:
    """`config` with the pipeline and its files. Raises ConfigError when they do not fit the model."""
    names = tuple(sorted({*config.files, *processing.files}))
    made = dataclasses.replace(config, pipeline=processing.pipeline, files=names)
    try:
        step_rules.check(made)
    except EdgekitError as exc:
        raise ConfigError(f"--pipeline: {exc.message.removeprefix('pipeline: ')}", exc.hint) from None
    return made


def rehearse(config: VariantConfig, processing: Processing) -> Answer:
    """The answer to a made-up request, with zeros for what the engine says: that shapes and files fit.

    Raises ConfigError. Outputs whose shape the model leaves open are not tried; the answer is then empty.
    """
    try:
        processor = Processor(config, processing.pipeline, processing.files)
        _, noted = processor.before(_example(processing.pipeline))
        shapes = {spec.name: (1, *spec.shape[1:]) for spec in config.outputs}
        if any(size < 1 for shape in shapes.values() for size in shape):
            return {}
        zeros = {spec.name: np.zeros(shapes[spec.name], DTYPES[spec.datatype]) for spec in config.outputs}
        return processor.after(zeros, noted)
    except EdgekitError as exc:
        raise ConfigError(f"--pipeline: {exc.message}", exc.hint or "see docs/pipelines.md") from None


def _example(pipeline: Pipeline) -> bytes:
    """A grey picture, a second of silence at the rate that is wanted, or two words."""
    if "text/plain" in pipeline.content_types:
        return b"hello world"
    file = io.BytesIO()
    if "image/png" in pipeline.content_types:
        from PIL import Image

        Image.new("RGB", (64, 48), (128, 128, 128)).save(file, "PNG")
        return file.getvalue()
    rates = [step.rate for step in pipeline.before if isinstance(step, steps.Resample | steps.Mfcc)]
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(rates[0] if rates else 16000)
        recording.writeframes(bytes(2 * (rates[0] if rates else 16000)))
    return file.getvalue()


def _toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than any pipeline")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror or exc}", "check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from None


def _tables(path: Path, plain: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    found = plain.get(side, [])
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ConfigError(f"{path}: {side} should be tables [[{side}]]")
    return found


def _step(path: Path, kinds: Mapping[str, type[S]], side: str, item: Mapping[str, Any]) -> S:
    kind = item.get("kind")
    cls = kinds.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise ConfigError(f"{path}: [[{side}]]: no step is called {kind!r}", f"one of {', '.join(kinds)}")
    reals = {field.name for field in dataclasses.fields(cls) if field.type == "float"}  # type: ignore[arg-type]
    exact = {k: float(v) if k in reals and type(v) is int else v for k, v in item.items()}
    return codec.from_plain(cls, exact, what=f"{path}: step {kind!r}")


def _vocabulary(path: Path) -> bytes:
    """One token per line, also from a `tokenizer.json` of Hugging Face with a WordPiece model."""
    try:
        if path.stat().st_size > MAX_VOCABULARY_BYTES:
            raise ConfigError(f"{path}: larger than any vocabulary")
        content = path.read_bytes()
    except OSError as exc:
        raise ConfigError(
            f"cannot read {path}: {exc.strerror or exc}", "check the vocabulary's path"
        ) from None
    return _of_json(path, content) if path.suffix == ".json" else content


def _of_json(path: Path, content: bytes) -> bytes:
    try:
        model = json.loads(content)["model"]
        numbers, kind = dict(model["vocab"]), model.get("type", "WordPiece")
        tokens = sorted(numbers, key=lambda token: int(numbers[token]))
        whole = [int(numbers[token]) for token in tokens] == list(range(len(tokens)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(f"{path}: no tokenizer.json with a vocabulary", "give a vocab.txt") from None
    if kind != "WordPiece" or not whole or any("\n" in token for token in tokens):
        raise ConfigError(f"{path}: not a WordPiece vocabulary numbered from 0", "give a vocab.txt")
    return "".join(f"{token}\n" for token in tokens).encode()
