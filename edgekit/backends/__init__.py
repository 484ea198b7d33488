"""Builders for engines, found by file name or by the entry point group `edgekit.backends`."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from functools import cache

from edgekit.backends._base import (
    Backend,
    Calibration,
    Isolated,
    Layered,
    Recipe,
    Selective,
    SourceModel,
    StandIn,
    versions,
)
from edgekit.bundle.model import TensorSpec
from edgekit.errors import EngineMissing

__all__ = [
    "Backend",
    "Calibration",
    "Isolated",
    "Layered",
    "Recipe",
    "Selective",
    "SourceModel",
    "StandIn",
    "TensorSpec",
    "get",
    "names",
    "versions",
]


@cache
def _doors() -> dict[str, str]:
    """Engine name to "module:attribute"; built-ins come through the same door as strangers."""
    built_in = {
        module.name: f"{__name__}.{module.name}:BACKEND"
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }
    plugged = {e.name: e.value for e in importlib.metadata.entry_points(group="edgekit.backends")}
    return {**plugged, **built_in}


def names() -> list[str]:
    """Every engine that something can be built for."""
    return sorted(_doors())


def get(name: str) -> Backend:
    """The backend for the engine `name`. Raises EngineMissing for an unknown name."""
    try:
        module, _, attribute = _doors()[name].partition(":")
    except KeyError:
        hint = f"edgekit builds for: {', '.join(names())}"
        raise EngineMissing(f"nothing builds for the engine {name!r}", hint) from None
    backend: Backend = getattr(importlib.import_module(module), attribute)
    return backend
