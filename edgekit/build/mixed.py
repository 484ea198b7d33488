"""Mixed precision: layers given back to floating point, the most sensitive first, until the gate passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from edgekit.backends import Recipe
from edgekit.build.sensitivity import LayerError

FIRST_SHARE = 1 / 16
"""The first attempt gives back this share of the layers; each further one twice as many, at most half."""


def keeps(ranking: Sequence[LayerError]) -> Iterator[tuple[str, ...]]:
    """Growing sets of node names to keep in floating point."""
    count = max(1, round(len(ranking) * FIRST_SHARE))
    while count <= len(ranking) / 2 or count == 1 < len(ranking):
        yield tuple(layer.name for layer in ranking[:count])
        count *= 2


def variations(recipe: Recipe, ranking: Sequence[LayerError]) -> Iterator[Recipe]:
    """The recipe with ever more layers in floating point."""
    for names in keeps(ranking):
        yield dataclasses.replace(recipe, options={**recipe.options, "keep": "\n".join(names)})
