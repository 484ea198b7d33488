"""edgekit: from a trained model to a governed fleet of devices."""

from importlib.metadata import version

__version__ = version("edgekit-toolkit")
