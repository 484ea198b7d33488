"""Compression with training: prune, 2:4 sparsity, distillation, quantization-aware fine-tuning.

A recipe (`recipe.py`) says what to do; PyTorch does it in its own tool environment. What comes out is ONNX
for `edgekit build`, with a record of its making inside (`edgekit.build.sources.record`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import codec, toolenv
from edgekit.build import data, sources
from edgekit.build.cache import Cache
from edgekit.build.compress import recipe as recipes
from edgekit.build.compress.recipe import ModelSource, Step, TrainingRecipe
from edgekit.build.data import images
from edgekit.build.progress import Progress
from edgekit.build.sources import SourceOptions, record
from edgekit.bundle.model import TensorSpec, Training
from edgekit.errors import ConfigError, EngineError, EngineMissing, ModelError

ENV, SCRIPT = "torch", "compress"
_GRACE_S = 300.0
"""Beyond the recipe's time limit, which the training itself keeps: loading, pruning and export."""


@dataclass(frozen=True)
class Compressed:
    """What a recipe made."""

    onnx: bytes
    original: bytes
    """The model before the first step as ONNX; empty unless it was asked for."""
    training: Training
    log: Mapping[str, Any]
    """"before" and "after" (parameters, macs, validation accuracy), "steps" and "epochs"."""


@dataclass(frozen=True)
class _Ports:
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]


def compress(
    path: Path,
    *,
    trust: bool = False,
    original: bool = False,
    cache: Cache = Cache(None),  # noqa: B008 - frozen
    progress: Progress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Compressed:
    """Run the recipe at `path`. `on_line` gets a line per epoch.

    Raises ConfigError for a bad recipe, ModelError for what cannot be trained, DataError, EngineMissing.
    """
    plan = recipes.load(path)
    folder = path.parent
    files: dict[str, bytes | Path] = {}
    model, model_sha256 = _source("model", plan.model, folder, files, trust=trust)
    teacher, teacher_sha256 = None, ""
    if plan.teacher:
        teacher, teacher_sha256 = _source("teacher", plan.teacher, folder, files, trust=trust)
    ports = _ports(plan.model, folder, cache, progress, trust=trust)
    rows, digest = _rows(plan, folder, ports.inputs, progress)
    job = {
        "model": model,
        "teacher": teacher,
        "trust": trust,
        "inputs": [spec.name for spec in ports.inputs],
        "outputs": list(ports.outputs),
        "shapes": [list(spec.shape[1:]) for spec in ports.inputs],
        "original": original,
        "steps": [_plain(step) for step in plan.step],
        "options": {
            **{name: getattr(plan.train, name) for name in ("seed", "batch", "threads", "time_limit_s")},
            "augment": {"flip": plan.data.flip, "crop": plan.data.crop},
        },
    }
    try:
        toolenv.ensure(ENV, progress)
        with progress.step("train") if progress else nullcontext():
            result, out = toolenv.run(
                ENV,
                SCRIPT,
                job,
                {**files, "rows.npz": rows},
                memory_mib=plan.train.memory_mib,
                timeout_s=plan.train.time_limit_s + _GRACE_S,
                on_line=on_line,
            )
    except EngineMissing:
        raise
    except EngineError as exc:
        raise ModelError(f"{path}: {exc.message}", exc.hint) from None
    training = Training(
        methods=tuple(_described(step) for step in plan.step),
        parent_sha256=model_sha256,
        teacher_sha256=teacher_sha256,
        recipe_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        data_sha256=digest,
        seed=plan.train.seed,
        epochs=len(result["epochs"]),
        losses=tuple(float(one["loss"]) for one in result["epochs"]),
        tools=toolenv.versions(ENV, ("torch", "torch-pruning", "onnxscript")),
    )
    return Compressed(
        record.stamped(out["model.onnx"], training),
        out.get("original.onnx", b""),
        training,
        result,
    )


def _source(
    role: str, source: ModelSource, folder: Path, files: dict[str, bytes | Path], *, trust: bool
) -> tuple[dict[str, str | bool], str]:
    """What the script is told of a model, and its digest; its files join `files`."""
    if source.file:
        path = folder / source.file
        form = sources.recognise(sources.look_at(path))
        if form is None or form.name != "torch-export":
            raise ModelError(
                f"{path}: {form.title if form else 'ONNX, or nothing known'} cannot be trained",
                "give a torch.export file (.pt2), or code and weights",
            )
        content = {f"{role}.pt2": path}
        described: dict[str, str | bool] = {"file": f"{role}.pt2"}
    else:
        if not trust:
            raise ModelError(
                f"[{role}] code = {source.code!r} runs Python code",
                "if you trust it, add --trust-source; it then runs isolated, without network",
            )
        name, _, function = source.code.rpartition(":")
        content = {f"{role}.py": folder / name}
        if source.weights:
            content[f"{role}.pth"] = folder / source.weights
        described = {
            "code": f"{role}.py",
            "function": function,
            "weights": f"{role}.pth" if source.weights else "",
            "partial": source.partial,
        }
    total = hashlib.sha256()
    for path in content.values():
        try:
            read = path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"[{role}] cannot read {path}: {exc.strerror}", "check the path") from None
        total.update(hashlib.sha256(read).digest() if len(content) > 1 else read)
    files.update(content)
    return described, total.hexdigest()


def _ports(
    source: ModelSource, folder: Path, cache: Cache, progress: Progress | None, *, trust: bool
) -> _Ports:
    """Inputs and outputs: of a file as `edgekit build` reads it, of code as the recipe says."""
    shapes = dict(sources.parse_shape(text) for text in source.shape)
    if source.file:
        model = sources.load(folder / source.file, cache, SourceOptions(shapes, trust), progress)
        return _Ports(model.inputs, tuple(spec.name for spec in model.outputs))
    specs = (TensorSpec(name, "FP32", (-1, *shape[1:])) for name, shape in shapes.items())
    return _Ports(tuple(specs), ("output",))


def _rows(
    plan: TrainingRecipe, folder: Path, specs: tuple[TensorSpec, ...], progress: Progress | None
) -> tuple[bytes, str]:
    """Rows and truth for the script, and the digest of what training saw."""
    for spec in specs:
        if spec.datatype != "FP32":
            raise ModelError(f"input {spec.name!r} is {spec.datatype}: only FP32 inputs can be trained on")
    if (plan.data.flip or plan.data.crop) and (len(specs) != 1 or len(specs[0].shape) != 4):
        raise ConfigError("[data] flip and crop are for one input of pictures")
    pairs = (text.rpartition("=") for text in plan.data.input)
    naming = data.Naming({name: array for name, _, array in pairs}, plan.data.labels)
    wanted = data.Wanted(
        specs,
        naming,
        truth="class" if plan.classifies else "value",
        image=images.parse(plan.data.image),
        label_names=plan.data.label_names,
    )
    arrays: dict[str, Any] = {}
    digest = ""
    for prefix, place in (("i", plan.data.train), ("v", plan.data.validate)):
        if not place:
            continue
        stored = data.read(str(folder / place), wanted, progress)
        steps = data.preprocessing(
            plan.data.affine, wanted, stored, stored, image_given=bool(plan.data.image)
        )
        fitted = data.fit(stored, specs, steps)
        digest = digest or fitted.sha256
        arrays |= {f"{prefix}{number}": fitted.inputs[spec.name] for number, spec in enumerate(specs)}
        truth = fitted.truth
        if truth is None:
            raise ConfigError(f"{place}: no labels to train on")
        if not plan.classifies:
            truth = truth.astype(np.float32)
        arrays["truth" if prefix == "i" else "vtruth"] = truth
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)
        return buffer.getvalue(), digest


def _plain(step: Step) -> dict[str, Any]:
    """`distill` is training with the loss of that name."""
    taught = {"loss": "distillation"} if step.method == "distill" else {}
    return {**codec.to_plain(step), **taught}


def _described(step: Step) -> str:
    """The method and every figure that is not a default, e.g. "prune ratio=0.4 epochs=6"."""
    usual = Step(step.method)
    parts = (
        f"{f.name}={getattr(step, f.name)}"
        for f in dataclasses.fields(step)
        if f.name != "method" and getattr(step, f.name) != getattr(usual, f.name)
    )
    return " ".join((step.method, *parts))
