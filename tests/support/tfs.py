"""The official TensorFlow Serving stubs without TensorFlow: its message types are in the tool environment."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path

from edgekit import toolenv


@functools.cache
def use_official_stubs() -> None:
    """Make `tensorflow_serving.apis` importable. Only TensorFlow's generated messages are; not TensorFlow."""
    packages = next(toolenv.ensure("tensorflow").parents[1].glob("lib/python3*/site-packages/tensorflow"))
    folder = Path(tempfile.mkdtemp(prefix="edgekit-tf-messages-"))
    (folder / "tensorflow").mkdir()
    (folder / "tensorflow" / "__init__.py").touch()
    for part in ("core", "compiler"):
        (folder / "tensorflow" / part).symlink_to(packages / part)
    sys.path.append(str(folder))
