"""The device side of an engine: the whole contract.

A file `edgekit/runtimes/<name>.py` that ends with `RUNTIME: Runtime = Engine()` is an engine.
The heavy library is imported inside methods only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from edgekit.dtypes import DTYPE_NAMES as DTYPE_NAMES
from edgekit.dtypes import DTYPES as DTYPES
from edgekit.runtimes._cache import ENGINE_CACHE as ENGINE_CACHE

if TYPE_CHECKING:
    from edgekit.bundle.model import VariantConfig

Array = NDArray[Any]
Files = Mapping[str, bytes | memoryview]
"""File name to plaintext bytes; `Session`s are loaded from memory, plaintext never touches a disk."""

Options = Mapping[str, str | int | float | bool]
"""Engine options, part of a variant: threads, precision hint, session configuration entries."""


class Session(Protocol):
    """A loaded model."""

    thread_safe: bool
    """Whether `run` may be called by several threads at once."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference: (batch, ...) in, (batch, ...) out. Releases the GIL.

        Raises EngineError with the engine's own words in one line.
        """
        ...

    def coverage(self) -> dict[str, int]:
        """Nodes per compute unit, e.g. {"CPUExecutionProvider": 17}; empty when the engine cannot tell."""
        ...

    def close(self) -> None:
        """Give the memory back. `run` must not be called afterwards."""
        ...


class Runtime(Protocol):
    """An engine on the device."""

    name: str

    def version(self) -> str:
        """The library's version. Raises EngineMissing (hint: what to install); also the availability test."""
        ...

    def load(self, files: Files, options: Options) -> Session:
        """Load a variant's files. Raises EngineMissing or EngineError."""
        ...


@runtime_checkable
class Implemented(Protocol):
    """An engine that more than one library provides: their versions do not follow each other."""

    def implementation(self) -> str:
        """The package that `version` is of. Raises EngineMissing."""
        ...


def engine_files(config: VariantConfig, files: Files) -> Files:
    """The files that a variant's engine is given: all but the pipeline's."""
    return {name: files[name] for name in files if name in config.engine_files}
