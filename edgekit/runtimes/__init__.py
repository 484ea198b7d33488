"""Engines on the device, found by file name or by the entry point group `edgekit.runtimes`.

Types are loaded when first used: the agent's supervisor has a use for the names of engines, and none for the
NumPy below the rest.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import TYPE_CHECKING, Any

from edgekit.errors import EngineMissing

if TYPE_CHECKING:
    from edgekit.runtimes._base import (
        ENGINE_CACHE,
        Array,
        Files,
        Implemented,
        Options,
        Runtime,
        Session,
    )
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

_PORTS = ("Port", "check_inputs")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{'_ports' if name in _PORTS else '_base'}"), name)
    globals()[name] = value
    return value


@cache
def _built_in() -> dict[str, str]:
    """Engine name to "module:attribute"."""
    return {
        module.name: f"{__name__}.{module.name}:RUNTIME"
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }


@cache
def _plugged() -> dict[str, str]:
    """Those of strangers. Reading what is installed takes a while, hence only when it is asked for."""
    from importlib.metadata import entry_points

    return {entry.name: entry.value for entry in entry_points(group="edgekit.runtimes")}


def names() -> list[str]:
    """Every known engine, installed or not."""
    return sorted({**_plugged(), **_built_in()})


def get(name: str) -> Runtime:
    """The engine called `name`. Raises EngineMissing for an unknown name."""
    door = _built_in().get(name) or _plugged().get(name)
    if door is None:
        raise EngineMissing(f"no engine is called {name!r}", f"known engines: {', '.join(names())}")
    module, _, attribute = door.partition(":")
    runtime: Runtime = getattr(importlib.import_module(module), attribute)
    return runtime
