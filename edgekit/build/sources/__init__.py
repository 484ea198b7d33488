"""The model as it comes in: recognised by content, converted to ONNX, checked, cleaned, compared.

    load(path) -> SourceModel

ONNX is read here; every other format is converted in a tool environment of its own (`edgekit.toolenv`), which
also says what the source framework answers to a few inputs. The cleaned ONNX must answer the same within
`TOLERANCE`. What was accepted once comes from the cache, without any tool.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import codec, toolenv
from edgekit.backends import SourceModel, versions
from edgekit.build.cache import Cache, key_of
from edgekit.build.sources import _check, _clean, _probe, _tool, onnx_file, record
from edgekit.build.sources._base import Format, Look, Probe, SourceOptions
from edgekit.build.sources._detect import FORMATS, look_at, recognise
from edgekit.build.sources._probe import TOLERANCE
from edgekit.build.sources._rename import renamed
from edgekit.bundle.model import TensorSpec, Training
from edgekit.errors import ModelError

__all__ = ["FORMATS", "TOLERANCE", "SourceOptions", "load", "look_at", "parse_shape", "recognise", "renamed"]

ONNX = "onnx"


@dataclass(frozen=True)
class _Known:
    """What the cache keeps beside the graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    training: Training | None = None


def load(
    path: Path,
    cache: Cache = Cache(None),  # noqa: B008 - frozen
    options: SourceOptions = SourceOptions(),  # noqa: B008 - frozen
    progress: toolenv.Steps | None = None,
) -> SourceModel:
    """Read, convert, check and clean a model of any known format.

    Raises ModelError when it is none, damaged, not valid, refers to files elsewhere, leaves a dimension other
    than the batch open, holds NaN, needs `options.trust`, or answers otherwise as ONNX than it did in its own
    framework; the message names the place. Raises EngineMissing when the tool environment cannot be made.
    """
    look = look_at(path)
    form = recognise(look)
    if form and not options.trust and (reason := form.risk(look)):
        raise ModelError(
            f"{path} ({form.title}): {reason}",
            "if you trust where it comes from, add --trust-source; it then runs isolated, without network",
        )
    data = _bytes(look) if form is None else b""
    digest = _digest(look, data)
    key = _key(digest, form, options)
    if known := cache.get(key):
        ports = codec.from_json(_Known, known["ports.json"], what="cached ports")
        return _model(known["model.onnx"], ports, digest, form)
    if form is None:
        model, complete = onnx_file.read(look, data)
        onnx, ports = _accepted(path, model, options, (), batch=True)
    else:
        converted, complete = _tool.convert(look, form, options, progress), True
        model = onnx_file.library().ModelProto.FromString(converted.onnx)
        onnx, ports = _accepted(path, model, options, converted.probes, batch=converted.batch)
        try:
            _probe.check_source(onnx, converted, form.title)
        except ModelError as exc:
            raise ModelError(f"{path}: {exc.message}", exc.hint) from None
    if complete:
        cache.put(key, {"model.onnx": onnx, "ports.json": codec.to_json(ports)})
    return _model(onnx, ports, digest, form)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """The value of `--shape INPUT=1,3,224,224`. Raises ModelError."""
    name, equals, sizes = text.rpartition("=")
    numbers = sizes.split(",")
    if not equals or not name or not all(number.strip().isdecimal() for number in numbers):
        raise ModelError(f"--shape {text!r}: not INPUT=SIZE,SIZE,...", "e.g. --shape x=1,3,224,224")
    shape = tuple(int(number) for number in numbers)
    if shape[0] != 1 or min(shape) < 1:
        raise ModelError(f"--shape {text!r}: sizes are at least 1, and the first one, the batch, is 1")
    return name, shape


def _accepted(
    path: Path, model: Any, options: SourceOptions, probes: tuple[Probe, ...], *, batch: bool
) -> tuple[bytes, _Known]:
    """Checked and cleaned; compared with itself before the clean-up on the probes' inputs."""
    training = record.taken(path, model)
    _check.apply_hints(path, model, options.shapes)
    if not batch:
        _check.close_batch(model)
    inputs, outputs = _check.ports(path, model)
    _check.weights(path, model)
    _check.operators(path, model)
    _check.valid(path, model)
    try:
        questions = [probe.inputs for probe in probes] or _probe.questions(inputs)
    except ModelError as exc:
        raise ModelError(f"{path}: {exc.message}", exc.hint) from None
    return _clean.clean(path, model, questions), _Known(inputs, outputs, training)


def _model(onnx: bytes, ports: _Known, digest: str, form: Format | None) -> SourceModel:
    name = form.name if form else ONNX
    return SourceModel(onnx, ports.inputs, ports.outputs, digest, format=name, training=ports.training)


def _bytes(look: Look) -> bytes:
    if look.size > onnx_file.MAX_BYTES:
        raise ModelError(f"{look.path}: {look.size} bytes, more than one ONNX file can hold (2 GiB)")
    try:
        return look.path.read_bytes()
    except OSError as exc:
        raise ModelError(f"cannot read {look.path}: {exc.strerror}", "check the path") from None


def _digest(look: Look, data: bytes) -> str:
    """Hex SHA-256 of a file; of a folder: over its files' names and digests."""
    if data:
        return hashlib.sha256(data).hexdigest()
    try:
        if not look.path.is_dir():
            with look.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        for path in look.files():
            with path.open("rb") as file:
                line = f"{path.relative_to(look.path)}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n"
            total.update(line.encode())
        return total.hexdigest()
    except OSError as exc:
        raise ModelError(f"cannot read {look.path}: {exc.strerror}", "check the path") from None


def _key(digest: str, form: Format | None, options: SourceOptions) -> str:
    question: dict[str, Any] = {
        "file": digest,
        "tools": versions("models", ("onnx", "onnxslim", "onnxruntime")),
        "shapes": {name: list(shape) for name, shape in sorted(options.shapes.items())},
    }
    if form:
        question |= {"format": form.name, "converter": toolenv.versions(form.env, form.packages)}
    return key_of("source", question)
