"""edgekit: from a trained model to a governed fleet of devices.

The commands are functions too: `edgekit.build`, `optimize`, `convert`, `compress`, `bench`, `compare`,
`rebuild` (`edgekit.build.api` has them). `edgekit.Client` and `AsyncClient` ask a running agent
(`edgekit.client`). All are loaded when they are asked for: a device imports this package often.
"""

import os
from typing import Any

# ONNX Runtime tells its maker how it is used, from its import on, and keeps a database for that in the home
# folder. Its `disable_telemetry_events` comes too late for the first report; this it reads before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_COMMANDS = ("optimize", "convert", "compress", "bench", "compare", "rebuild", "Built")
_CLIENTS = ("Client", "AsyncClient")


def __getattr__(name: str) -> Any:
    """`__version__` when it is asked for: importing importlib.metadata costs a device 50 ms per process."""
    if name == "__version__":
        from importlib.metadata import version

        return version("edgekit-toolkit")
    if name == "build":
        from importlib import import_module

        return import_module(f"{__name__}.build")
    if name in _COMMANDS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.build.api"), name)
    if name in _CLIENTS:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_COMMANDS, *_CLIENTS, "__version__", "build"})
