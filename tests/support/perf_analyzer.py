"""NVIDIA's perf_analyzer, which now comes for newer systems only: from the last wheel of tritonclient that
has it for this C library, with the CUDA runtime that it is linked with (no graphics card is used)."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit import toolenv

_PINS = """
tritonclient==2.50.0 \\
  --hash=sha256:421fbb69ae6ab8cdb2c35b82134fcef2fe11e7af7718b1fcbc53335ab9bfe889
nvidia-cuda-runtime-cu12==12.9.79 \\
  --hash=sha256:25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3
"""


@dataclass(frozen=True)
class Done:
    code: int
    text: str
    """Standard output and error together."""


@cache
def _program() -> Path:
    """The program; fetched on first use, kept beside the toolkit's tool environments."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit" / "tests"
    place = cache_home / f"perf-analyzer-{hashlib.sha256(_PINS.encode()).hexdigest()[:12]}"
    if not place.exists():
        cache_home.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="perf-analyzer-", dir=cache_home))
        words = [
            toolenv.find_uv(),
            "pip",
            "install",
            "--quiet",
            "--python",
            sys.executable,
            "--target",
            str(made),
        ]
        subprocess.run([*words, "--no-deps", "--require-hashes", "-r", "-"], input=_PINS.encode(), check=True)
        try:
            made.rename(place)
        except OSError:  # another test run was faster
            shutil.rmtree(made)
    return place / "bin" / "perf_analyzer"


def run(*words: str) -> Done:
    """`perf_analyzer WORDS` to its end."""
    program = _program()
    libraries = program.parents[1] / "nvidia" / "cuda_runtime" / "lib"
    done = subprocess.run(
        [str(program), *words],
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    return Done(done.returncode, done.stdout)
