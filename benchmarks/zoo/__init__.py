"""Five real tasks for the builder's benchmarks, prepared from ../shared/data."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekit import host
from edgekit.toolenv import find_uv


def board() -> str:
    """The profile that this machine is one of: with 8-bit weights where they do not saturate."""
    return "x86-haswell" if host.saturates(host.read()) else "intel-nuc"


def environment(folder: Path, packages: Sequence[str], bare: Sequence[str] = ()) -> Path:
    """The interpreter of a virtual environment with these packages; made where it is missing.

    `bare`: packages without what they depend on. Wheels in $PIP_FIND_LINKS are used first.
    """
    python = folder / "bin" / "python"
    if (folder / ".complete").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = find_uv()
    subprocess.run([uv, "venv", "--quiet", "--no-project", "--python", "3.11", str(folder)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python)]
    for links in os.environ.get("PIP_FIND_LINKS", "").split():
        install += ["--find-links", links]
    subprocess.run([*install, *packages], check=True)
    if bare:
        subprocess.run([*install, "--no-deps", *bare], check=True)
    (folder / ".complete").touch()
    return python
