"""The host side of an engine: the whole contract.

A file `edgekit/backends/<name>.py` that ends with `BACKEND: Backend = Engine()` builds for the
engine of that name. The heavy library is imported inside methods only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgekit.bundle.model import TensorSpec, Training
from edgekit.errors import EngineMissing
from edgekit.profile import CalibrationPolicy, Target

Calibration = Mapping[str, NDArray[Any]]
"""Engine inputs by name, (rows, ...), already preprocessed."""

Value = str | int | float | bool


@dataclass(frozen=True)
class SourceModel:
    """The model as it comes in: cleaned ONNX, weights inside."""

    onnx: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file_sha256: str = ""
    """Of the file (or folder) that was read, before conversion and clean-up."""
    format: str = "onnx"
    """What the file was: a name of `edgekit.build.sources.FORMATS`, or "onnx"."""
    training: Training | None = None
    """What the file says of its own making."""

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.onnx).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """How to make one candidate. Equal recipes on equal inputs give equal bytes."""

    engine: str
    precision: str
    options: dict[str, Value] = field(default_factory=dict)
    """For the quantizer: activation, reduce_range, method ..."""
    runtime_options: dict[str, Value] = field(default_factory=dict)
    """For the engine on the device."""
    needs_calibration: bool = False

    @property
    def name(self) -> str:
        """Short and readable, e.g. "onnxruntime.int8-s8"."""
        detail = [str(self.options[key]) for key in ("activation", "preset") if key in self.options]
        detail += ["7bit"] if self.options.get("reduce_range") else []
        detail += [str(self.options["method"])] if self.options.get("method", "minmax") != "minmax" else []
        for key, value in sorted(self.options.items()):
            if key not in _NAMED and value not in ("", False, 0):
                detail.append(f"{key}.{value}" if value is not True else key)
        if keep := self.options.get("keep"):
            detail.append(f"keep{hashlib.sha256(str(keep).encode()).hexdigest()[:6]}")
        return "-".join([f"{self.engine}.{self.precision}", *detail])


_NAMED = ("activation", "preset", "reduce_range", "method", "keep")
"""Options that `Recipe.name` spells in a way of its own."""


def versions(engine: str, packages: Iterable[str]) -> dict[str, str]:
    """Installed versions, without importing anything. Raises EngineMissing naming the absent package."""
    try:
        return {package: metadata.version(package) for package in packages}
    except metadata.PackageNotFoundError as exc:
        hint = "pip install 'edgekit-toolkit[build]'"
        raise EngineMissing(f"cannot build for {engine}: {exc.name} is not installed", hint) from None


class Backend(Protocol):
    """Builds variants for one engine."""

    runtime: str

    def tools(self) -> dict[str, str]:
        """Library names and versions that decide the bytes. Raises EngineMissing."""
        ...

    def recipes(self, precision: str, target: Target, policy: CalibrationPolicy) -> Iterable[Recipe]:
        """The search space for one precision, best guess first; empty when the engine has no such thing."""
        ...

    def build(self, model: SourceModel, recipe: Recipe, calibration: Calibration) -> dict[str, bytes]:
        """File name to bytes. Pure in its arguments. Raises EngineError with the library's words."""
        ...


@runtime_checkable
class Layered(Protocol):
    """A backend that can leave single layers in floating point: the option "keep" names them."""

    def layers(self, model: SourceModel) -> list[str]:
        """ONNX names of the nodes that quantization touches, in graph order."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A backend that knows which of its recipes are a waste of time for a model."""

    def worth(self, model: SourceModel, recipe: Recipe) -> str:
        """The reason not to try it; empty when it is worth trying."""
        ...


@runtime_checkable
class Isolated(Protocol):
    """A backend that builds in a tool environment: a crash stays there, so it needs no worker process too."""

    isolated: bool


@runtime_checkable
class StandIn(Protocol):
    """A backend whose engine is seldom on the host."""

    stand_in: str
    """The runtime that computes the same answers from the same graph, at another speed."""

    def lend(
        self, files: Mapping[str, bytes], options: Mapping[str, Value]
    ) -> tuple[dict[str, bytes], dict[str, Value]]:
        """What the stand-in is given for a variant's files and engine options."""
        ...
