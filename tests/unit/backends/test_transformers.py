"""Every recipe of ONNX Runtime and OpenVINO on a small transformer: worth it, right, small, equal twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest

from edgekit import backends, runtimes
from edgekit.backends import Recipe
from edgekit.profile import PRECISIONS, CalibrationPolicy, Target
from edgekit.runtimes import Array
from tests.support import transformer
from tests.unit.backends.test_recipes import model as keyword_spotter

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.xdist_group("backends")]


def recipes() -> Iterator[Recipe]:
    for engine in ("onnxruntime", "openvino"):
        for precision in PRECISIONS:
            target = Target(engine, (precision,), activation="u8")
            yield from backends.get(engine).recipes(precision, target, CalibrationPolicy())


def refused(recipe: Recipe) -> str:
    backend = backends.get(recipe.engine)
    assert isinstance(backend, backends.Selective)
    return backend.worth(transformer.model(), recipe)


RECIPES = {recipe.name: recipe for recipe in recipes()}
WORTHY = [name for name, recipe in RECIPES.items() if not refused(recipe)]


@cache
def built(name: str) -> dict[str, bytes]:
    recipe = RECIPES[name]
    rows = transformer.ids(40) if recipe.needs_calibration else {}
    return backends.get(recipe.engine).build(transformer.model(), recipe, rows)


def answers(name: str) -> Array:
    session = runtimes.get(RECIPES[name].engine).load(built(name), RECIPES[name].runtime_options)
    return session.run(transformer.ids(64, seed=2))["sentence"]


def test_what_is_tried_first() -> None:
    first: dict[tuple[str, str], str] = {}
    for name in WORTHY:
        first.setdefault((RECIPES[name].engine, RECIPES[name].precision), name)
    assert first["onnxruntime", "int8"] == "onnxruntime.int8-u8-only.products"
    assert first["onnxruntime", "int8-dynamic"] == "onnxruntime.int8-dynamic"
    assert first["openvino", "int8"] == "openvino.int8-mixed-transformer.smooth"


def test_convolutions_are_not_for_a_transformers_recipes() -> None:
    for name in ("onnxruntime.int8-u8-only.products", "onnxruntime.int8-dynamic"):
        assert "convolutions" in backends.get("onnxruntime").worth(keyword_spotter(), RECIPES[name])  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", WORTHY)
def test_right_and_equal_twice(name: str) -> None:
    got, want = answers(name), answers("onnxruntime.fp32")
    cosine = (got * want).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > (0.97 if "int4" in name else 0.99)
    recipe = RECIPES[name]
    again = backends.get(recipe.engine).build(transformer.model(), recipe, transformer.ids(40))
    assert again == built(name)


def test_tables_shrink_too() -> None:
    size = {name: len(built(name)["model.onnx"]) for name in WORTHY if name.startswith("onnxruntime")}
    for name in size:
        if "int8" in name:
            assert size[name] < size["onnxruntime.fp32"] / 3.5, name
