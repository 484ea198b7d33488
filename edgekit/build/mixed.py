"""Mixed precision: layers given back to floating point until the accuracy gates pass.

The order weighs what a layer spoils against what it costs in floating point:

    score = error / (macs + 1 / n)

error: noise power over signal power at the model's outputs when this layer alone is quantized
(`sensitivity`); macs: its share of the model's multiply-accumulates; n: number of layers. The 1 / n stands
for what every layer in floating point costs, however small: the way there from int8, and back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgekit import backends, codec
from edgekit.backends import Recipe
from edgekit.build import worker
from edgekit.build.cache import key_of
from edgekit.build.forecast import macs_of
from edgekit.build.plan import Candidate
from edgekit.build.sensitivity import ROWS, LayerError, Ranking
from edgekit.build.workshop import Made, Workshop
from edgekit.errors import EngineError

FIRST_SHARE = 1 / 16
"""The first attempt gives back this share of the layers; each further one twice as many, at most half."""

PROXY = Recipe(
    "onnxruntime",
    "int8",
    {"reduce_range": False, "activation": "u8", "method": "average"},
    needs_calibration=True,
)
"""Whose ranges stand for those of engines that do not write QDQ files. nncf averages ranges, too."""


@dataclass(frozen=True)
class Mixing:
    """A recipe that lost too much accuracy, and its layers in the order in which they are given back."""

    recipe: Recipe
    order: tuple[str, ...]

    def counts(self) -> Iterator[int]:
        """Numbers of layers to try, each twice the one before."""
        count = max(1, round(len(self.order) * FIRST_SHARE))
        while count <= len(self.order) / 2 or count == 1 == len(self.order):
            yield count
            count *= 2

    def keeping(self, count: int) -> Recipe:
        """The recipe with the first `count` layers in floating point."""
        options = {**self.recipe.options, "keep": "\n".join(self.order[:count])}
        return dataclasses.replace(self.recipe, options=options)

    def left(self, count: int, layers: Sequence[LayerError]) -> tuple[LayerError, ...]:
        """Of `layers`, those that stay quantized then."""
        kept = set(self.order[:count])
        return tuple(layer for layer in layers if layer.name not in kept)


def prepare(workshop: Workshop, candidate: Candidate, made: Made) -> tuple[Mixing, tuple[LayerError, ...]]:
    """What can be tried, and each layer's error. Raises EngineError when the engine knows no such thing."""
    recipe = candidate.recipe
    if recipe.precision != "int8" or not isinstance(backends.get(recipe.engine), backends.Layered):
        raise EngineError(f"{recipe.engine} cannot leave layers of {recipe.precision} in floating point")
    found = ranked(workshop, recipe, made)
    if not found:
        raise EngineError("no layer of it could be ranked")
    return Mixing(recipe, order(found, macs_of(workshop.context.model))), found


def order(found: Sequence[LayerError], macs: Mapping[str, int]) -> tuple[str, ...]:
    """Names by falling score."""
    total = sum(macs.values()) or 1

    def score(layer: LayerError) -> float:
        return layer.error / (macs.get(layer.name, 0) / total + 1 / len(found))

    return tuple(layer.name for layer in sorted(found, key=score, reverse=True))


def ranked(workshop: Workshop, recipe: Recipe, made: Made) -> tuple[LayerError, ...]:
    """Every quantized layer's error, the most sensitive first. From the cache, or by a worker process.

    An onnxruntime candidate's own file tells its ranges. For other engines those of PROXY do, on the same
    model and rows, without the layers that `recipe` keeps. Raises EngineError.
    """
    kept = set(str(recipe.options.get("keep", "")).split("\n"))
    source = made if recipe.engine == PROXY.engine and "model.onnx" in made.files else workshop.make(PROXY)
    if source.error:
        raise source.error
    key = key_of("rank", {"quantized": source.key, "rows": ROWS})
    files = workshop.cache.get(key)
    if files is None:
        inputs = workshop.calibration.inputs
        step = max(1, len(next(iter(inputs.values()))) // ROWS)
        rows = {name: array[::step][:ROWS] for name, array in inputs.items()}
        quantized = {"quantized.onnx": source.files["model.onnx"]}
        job = worker.Job("rank", recipe, model=workshop.context.model, files=quantized, arrays=rows)
        with workshop.progress.step(f"rank the layers of {recipe.name}"):
            result, _ = worker.run(job)
        files = {"ranking.json": codec.to_json(result)}
        workshop.cache.put(key, files)
    found = codec.from_json(Ranking, files["ranking.json"], what="ranking")
    return tuple(layer for layer in found.layers if layer.name not in kept)
