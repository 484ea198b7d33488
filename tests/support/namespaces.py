"""Commands in namespaces of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import eavesdrop

NOT_ALLOWED = "this machine does not allow it: "


def unshare(*kinds: str) -> list[str]:
    """A command prefix with namespaces of its own; skips where this machine forbids it."""
    prefix = ["unshare", *(["--map-root-user"] if os.geteuid() else []), *kinds]
    if not shutil.which("unshare"):
        pytest.skip(NOT_ALLOWED + "no unshare")
    tried = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(NOT_ALLOWED + tried.stderr)
    return prefix


def walled(asked: Path) -> list[str]:
    """A command prefix without a network but loopback; the names that are asked for come to `asked`."""
    return [*unshare("--net", "--mount"), sys.executable, eavesdrop.__file__, str(asked)]
