"""Our own wheels, and what requirements.lock pins."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")


def build_wheels(folder: Path) -> Path:
    """As `make dist` does."""
    command = [str(UV), "build", "--quiet", "--wheel", "--all-packages", "--no-build-isolation"]
    command += ["--out-dir", str(folder)]
    environment = {**os.environ, "VIRTUAL_ENV": sys.prefix, "SOURCE_DATE_EPOCH": "1767225600"}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    return folder


def locked() -> dict[str, str]:
    """Name to version of every third party in requirements.lock."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)==([^\s;\\]+)", _lock(), re.MULTILINE))


def pins(names: Iterable[str]) -> str:
    """The lines of requirements.lock for `names`, hashes included. KeyError for one that is not there."""
    parts = re.split(r"^(?=[a-z0-9])", _lock(), flags=re.MULTILINE)
    found = {part.partition("==")[0]: part for part in parts if "==" in part}
    return "".join(found[name] for name in names)


def _lock() -> str:
    return (ROOT / "requirements.lock").read_text()
