"""The fp32 model that accuracy and speed are held against, where that is not the source model itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgekit.backends import SourceModel
from edgekit.build import sources
from edgekit.build.cache import Cache
from edgekit.build.progress import Progress
from edgekit.build.sources import SourceOptions
from edgekit.bundle.model import TensorSpec
from edgekit.errors import ModelError


def load(
    path: Path, model: SourceModel, cache: Cache, options: SourceOptions, progress: Progress | None
) -> SourceModel:
    """The model at `path` with `model`'s names of inputs and outputs, matched by position.

    Raises ModelError when data types or shapes differ: the two could not answer the same rows.
    """
    # Shapes that the user gave name the inputs of the source model, which may be called otherwise here.
    shapes = {n: s for n, s in options.shapes.items() if n in {spec.name for spec in model.inputs}}
    found = sources.load(path, cache, SourceOptions(shapes, options.trust), progress)
    for what, have, want in (
        ("inputs", found.inputs, model.inputs),
        ("outputs", found.outputs, model.outputs),
    ):
        if [_kind(spec) for spec in have] != [_kind(spec) for spec in want]:
            raise ModelError(
                f"{path}: its {what} are {_words(have)}, the model's are {_words(want)}",
                "a baseline takes the same rows and gives the same outputs",
            )
    names = [spec.name for spec in (*model.inputs, *model.outputs)]
    if names == [spec.name for spec in (*found.inputs, *found.outputs)]:
        return found
    renamed = sources.renamed(found.onnx, names)
    return dataclasses.replace(found, onnx=renamed, inputs=model.inputs, outputs=model.outputs)


def _kind(spec: TensorSpec) -> tuple[str, tuple[int, ...]]:
    return spec.datatype, spec.shape


def _words(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{spec.datatype}{list(spec.shape)}" for spec in specs)
