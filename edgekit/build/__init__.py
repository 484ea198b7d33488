"""The builder. `edgekit.build(...)` is a function as well as this package: see `edgekit.build.api`."""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _Callable(types.ModuleType):
    """A package that is called like the command of its name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return importlib.import_module(f"{__name__}.api").build(*arguments, **named)


sys.modules[__name__].__class__ = _Callable
