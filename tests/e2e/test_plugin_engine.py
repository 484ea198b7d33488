"""An engine from outside the tree: docs/plugins.md, line by line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import bundle
from edgekit.crypto.keyring import KeyRing

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "plugins.md"


def tutorial() -> str:
    """The page's one console block as a shell script."""
    (block,) = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return "set -e\n" + re.sub(r"^\$ ", "", block, flags=re.MULTILINE)


def test_the_tutorial_as_it_stands(tmp_path: Path) -> None:
    for name in ("README.md", "docs", "examples", "tests", "pyproject.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "UV_OFFLINE": "1",
        "EDGEKIT_KEYS": str(tmp_path / "keys"),
        "EDGEKIT_CACHE": str(tmp_path / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_ADDOPTS": "-p no:cacheprovider -p no:xdist",
    }
    done = subprocess.run(
        ["bash", "-c", tutorial()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1\d passed", done.stdout), done.stdout  # the conformance suite, for this engine alone
    opened = bundle.open(tmp_path / "kws.edgekit", [KeyRing(tmp_path / "keys").verify_key()])
    (entry,) = opened.variants
    assert (entry.config.engine.name, entry.certificate.engine) == ("pyonnx", "pyonnx")
    assert entry.certificate.coverage["numpy"] > 10
    assert 0.8 < entry.certificate.accuracy.value == entry.certificate.baseline_accuracy.value
    assert "pyonnx.pyonnx.fp32" in done.stdout


def test_without_the_distribution_nothing_remains() -> None:
    program = (
        "from edgekit import backends, runtimes; print('pyonnx' in {*runtimes.names(), *backends.names()})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
