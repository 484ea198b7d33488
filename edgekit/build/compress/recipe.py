"""A training recipe: a TOML file that says what is compressed, with which rows, in which steps.

    [model]
    file = "resnet20.pt2"

    [data]
    train = "train.tar"
    image = "rgb imagenet"

    [[step]]
    method = "prune"
    ratio = 0.4
    epochs = 6

Paths are relative to the recipe's own folder, so that a recipe travels with its files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgekit import codec
from edgekit.errors import ConfigError

MAX_EPOCHS = 1000
Method = Literal["train", "prune", "sparsify", "distill", "quantize"]
Loss = Literal["cross-entropy", "mse", "distillation"]


@dataclass(frozen=True)
class ModelSource:
    """A torch.export file, or a function in a Python file that returns the module, with a state dict."""

    file: str = ""
    code: str = ""
    """"FILE.py:FUNCTION"; runs isolated, and only when the source is trusted."""
    weights: str = ""
    """A state dict for `code`, read as tensors only; empty: the module's own initialisation."""
    partial: bool = False
    """`weights` may hold more than the module has: a student that keeps some of its parent's layers."""
    shape: tuple[str, ...] = ()
    """"INPUT=1,3,32,32" of each input, in order, for `code`; of inputs that `file` leaves open."""


@dataclass(frozen=True)
class TrainingData:
    """As docs/data.md describes; the words are those of `edgekit build`."""

    train: str
    validate: str = ""
    labels: str = "labels"
    affine: tuple[str, ...] = ()
    image: str = ""
    label_names: tuple[str, ...] = ()
    input: tuple[str, ...] = ()
    """"INPUT=ARRAY" where names differ."""
    flip: bool = False
    """Mirror half of the pictures left to right."""
    crop: int = 0
    """Shift pictures by up to so many pixels each way."""


@dataclass(frozen=True)
class Options:
    seed: int = 1
    batch: int = 128
    threads: int = 2
    """Fixed, for another number adds in another order and gives other bytes."""
    time_limit_s: float = 3600.0
    memory_mib: int = 8192


@dataclass(frozen=True)
class Step:
    """One method and the training that follows it."""

    method: Method
    epochs: int = 5
    learning_rate: float = 0.02
    weight_decay: float = 5e-4
    loss: Loss = "cross-entropy"
    temperature: float = 4.0
    alpha: float = 0.9
    """Share of the teacher's part in the loss."""
    ratio: float = 0.5
    """prune: share of channels that go."""
    criterion: Literal["magnitude", "taylor"] = "magnitude"
    iterations: int = 1
    """prune: rounds, the epochs shared out among them."""
    round_to: int = 0
    """prune: keep a multiple of so many channels; 0: any number."""


@dataclass(frozen=True)
class TrainingRecipe:
    model: ModelSource
    data: TrainingData
    step: tuple[Step, ...]
    train: Options = field(default_factory=Options)
    teacher: ModelSource | None = None

    @property
    def classifies(self) -> bool:
        return all(one.loss != "mse" for one in self.step)


def load(path: Path) -> TrainingRecipe:
    """Raises ConfigError naming the file and what is wrong with it."""
    recipe = codec.from_toml(TrainingRecipe, path)
    for problem in _problems(recipe):
        raise ConfigError(f"{path}: {problem}", "docs/compression.md lists every key")
    return recipe


def _problems(recipe: TrainingRecipe) -> Iterator[str]:
    for name, source in (("model", recipe.model), ("teacher", recipe.teacher)):
        if source and bool(source.file) == bool(source.code):
            yield f"[{name}] needs either file or code"
        if source and source.code and not source.code.rpartition(":")[2].isidentifier():
            yield f"[{name}] code = {source.code!r} is not FILE.py:FUNCTION"
        if source and source.weights and not source.code:
            yield f"[{name}] weights belong to code; a file holds its own"
    if recipe.model.code and not recipe.model.shape:
        yield '[model] code needs shape = ["INPUT=1,3,32,32"]'
    for pair in recipe.data.input:
        if not all(pair.rpartition("=")):
            yield f"[data] input = {pair!r} is not INPUT=ARRAY"
    yield from _bad_numbers(recipe)
    if not recipe.step:
        yield "no [[step]]"
    for number, step in enumerate(recipe.step, 1):
        where = f"step {number} ({step.method})"
        yield from (f"{where}: {text}" for text in _bad_step(step))
        if _taught(step) and not recipe.teacher:
            yield f"{where}: its loss needs a [teacher]"
    methods = [step.method for step in recipe.step]
    if "quantize" in methods[:-1]:
        yield "quantize must be the last step: what follows would leave the int8 grid"
    if "sparsify" in methods and "prune" in methods[methods.index("sparsify") :]:
        yield "prune must come before sparsify: removing channels breaks the groups of four"
    if len({step.loss == "mse" for step in recipe.step}) > 1:
        yield "mse and class losses do not mix: the labels are either numbers or classes"


def _bad_numbers(recipe: TrainingRecipe) -> Iterator[str]:
    options = recipe.train
    for name, value, low, high in (
        ("[train] seed", options.seed, 0, 2**31 - 1),
        ("[train] batch", options.batch, 2, 65536),
        ("[train] threads", options.threads, 1, 1024),
        ("[train] time_limit_s", options.time_limit_s, 1, 7 * 86400),
        ("[train] memory_mib", options.memory_mib, 512, 1 << 24),
        ("[data] crop", recipe.data.crop, 0, 256),
    ):
        if not low <= value <= high:
            yield f"{name} = {value:g}: from {low} to {high}"


def _bad_step(step: Step) -> Iterator[str]:
    for name, value, low, high in (
        ("epochs", step.epochs, 0 if step.method in ("prune", "sparsify") else 1, MAX_EPOCHS),
        ("learning_rate", step.learning_rate, 1e-9, 1e6),
        ("weight_decay", step.weight_decay, 0, 1),
        ("temperature", step.temperature, 0.1, 100),
        ("alpha", step.alpha, 0, 1),
        ("ratio", step.ratio, 0.01, 0.95),
        ("iterations", step.iterations, 1, 100),
        ("round_to", step.round_to, 0, 1024),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            yield f"{name} = {value:g}: from {low:g} to {high:g}"
    for name in ("ratio", "criterion", "iterations", "round_to"):
        if step.method != "prune" and getattr(step, name) != getattr(Step("prune"), name):
            yield f"{name} belongs to prune"
    if step.method == "distill" and step.loss == "mse":
        yield "distillation is for classes"


def _taught(step: Step) -> bool:
    return step.method == "distill" or step.loss == "distillation"
