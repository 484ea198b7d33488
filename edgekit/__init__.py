"""edgekit: from a trained model to a governed fleet of devices."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """`__version__` when it is asked for: importing importlib.metadata costs a device 50 ms per process."""
    if name == "__version__":
        from importlib.metadata import version

        return version("edgekit-toolkit")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
