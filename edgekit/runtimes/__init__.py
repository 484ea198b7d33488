"""Engines on the device, found by file name or by the entry point group `edgekit.runtimes`."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from functools import cache

from edgekit.errors import EngineMissing
from edgekit.runtimes._base import ENGINE_CACHE, Array, Files, Implemented, Options, Runtime, Session
from edgekit.runtimes._ports import Port, check_inputs

__all__ = [
    "ENGINE_CACHE",
    "Array",
    "Files",
    "Implemented",
    "Options",
    "Port",
    "Runtime",
    "Session",
    "check_inputs",
    "get",
    "names",
]


@cache
def _doors() -> dict[str, str]:
    """Engine name to "module:attribute". Built-in engines come through the same door as strangers."""
    built_in = {
        module.name: f"{__name__}.{module.name}:RUNTIME"
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }
    plugged = {e.name: e.value for e in importlib.metadata.entry_points(group="edgekit.runtimes")}
    return {**plugged, **built_in}


def names() -> list[str]:
    """Every known engine, installed or not."""
    return sorted(_doors())


def get(name: str) -> Runtime:
    """The engine called `name`. Raises EngineMissing for an unknown name."""
    try:
        module, _, attribute = _doors()[name].partition(":")
    except KeyError:
        raise EngineMissing(f"no engine is called {name!r}", f"known engines: {', '.join(names())}") from None
    runtime: Runtime = getattr(importlib.import_module(module), attribute)
    return runtime
